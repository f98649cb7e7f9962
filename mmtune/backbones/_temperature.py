"""Holding the temperature in its range, and giving one to models whose class has none."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from mmtune.backbones._family import Backbone

PUBLISHED_LOG_SCALE = math.log(1 / 0.07)
"""The temperature of 0.07 that BLIP and BLIP-2 start their training with (and CLIP): 2.6593 as a log scale."""

CONFIG_KEY = "logit_scale_init_value"
"""Where config.json says the log scale that a model without a parameter of its own begins with."""


def clamp_temperature(backbone: "Backbone", max_log_scale: float | None) -> None:
    """Hold the log scale at or below ``max_log_scale``, in place; None: no limit but the family's own.

    A family whose parameter is not the log scale itself (``align``) has a ``clamp_temperature(model, max_log_scale)``
    of its own, because what its ``temperature`` gives is computed and not the parameter.
    """
    import torch

    own = getattr(backbone.family, "clamp_temperature", None)
    with torch.no_grad():
        if own is not None:
            own(backbone.model, max_log_scale)
        elif max_log_scale is not None and backbone.traits.temperature:
            backbone.family.temperature(backbone.model)[0].clamp_(max=max_log_scale)


def give_temperature(model: "nn.Module") -> None:
    """Register ``logit_scale`` float32[] on a model whose class has no temperature.

    It begins at ``config.logit_scale_init_value``, where that is not there at the published 0.07. It is trained and
    saved like any other, but is no part of ``state_dict``: transformers' class would not know it. ``note_temperature``
    writes it where the next load finds it.
    """
    import torch

    config: Any = model.config
    start = getattr(config, CONFIG_KEY, None)
    device = next(model.parameters()).device
    value = torch.tensor(PUBLISHED_LOG_SCALE if start is None else float(start), dtype=torch.float32, device=device)
    model.register_parameter("logit_scale", torch.nn.Parameter(value, requires_grad=False))
    model.register_state_dict_post_hook(_leave_out)


def _leave_out(model: "nn.Module", state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state.pop(f"{prefix}logit_scale", None)


def note_temperature(model: "nn.Module") -> None:
    """Write the live log scale into the model's config, so that a saved folder begins with it: exact in float32."""
    config: Any = model.config
    setattr(config, CONFIG_KEY, float(model.logit_scale.detach()))  # type: ignore[operator]
