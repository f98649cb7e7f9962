"""The states that a generating model would make logits from, without making the logits.

Letters: B samples, L places, D width, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

NOT_INPUTS = ("labels",)
"""What is in a batch and is not the model's to see: given labels, transformers would make all logits and a loss."""

CAPS_LOGITS = ("paligemma",)
"""Model types whose class bounds the logits after its head where the text model's config says so: PaliGemma 2 does,
other classes over the same text models do not."""


def token_states(backbone: Any, inputs: "Mapping[str, Tensor]") -> "Tensor":
    """States float[B, L, D] at every place of the text; the family's own ``token_states`` where it has one.

    Args:
        backbone: whose model may be adapted.
        inputs: a padded batch; its labels are not shown to the model.
    """
    given = {name: value for name, value in inputs.items() if name not in NOT_INPUTS}
    own = getattr(backbone.family, "token_states", None)
    if own is not None:
        states: Tensor = own(backbone.model, given)
        return states
    return headless_states(backbone.model, given, backbone.traits.head)


def headless_states(model: Any, inputs: "Mapping[str, Tensor]", head: str) -> "Tensor":
    """States float[B, L, D] of a model's own forward pass, which ends before the head at that path."""
    with headless(model, head), uncapped(model):
        states: Tensor = model(**inputs, use_cache=False).logits  # a cache would only take memory
        return states


def head_of(backbone: Any) -> "nn.Module":
    """The layer that maps states to logits, with what the model's class does to them after it."""
    head: nn.Module = backbone.model.get_submodule(backbone.traits.head)
    cap = cap_of(backbone.model)
    return head if cap is None else soft_capped(head, cap)


def cap_of(model: Any) -> float | None:
    """The bound that the class puts on its logits after the head, None where it puts none."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in CAPS_LOGITS:
        return None
    cap: float | None = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return cap


def soft_capped(head: "nn.Module", cap: float) -> "nn.Module":
    """A head whose logits stay between -cap and cap: ``cap * tanh(logits / cap)``."""
    from torch import nn

    class SoftCapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, states: "Tensor") -> "Tensor":
            return cap * (self.head(states) / cap).tanh()

    return SoftCapped()


@contextmanager
def uncapped(model: Any) -> "Iterator[None]":
    """In this block the class puts no bound on what its head gives: those are states, not logits."""
    cap = cap_of(model)
    if cap is None:
        yield
        return
    text = model.config.get_text_config()
    text.final_logit_softcapping = None
    try:
        yield
    finally:
        text.final_logit_softcapping = cap


@contextmanager
def headless(model: "nn.Module", path: str) -> "Iterator[None]":
    """The model's forward pass ends before its head: an identity stands at ``path``, in this instance and this block.

    Parameters, keys and what adapters hold on to are as before afterwards.
    """
    from torch import nn

    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    head = parent._modules[name]
    parent._modules[name] = nn.Identity()
    try:
        yield
    finally:
        parent._modules[name] = head
