"""The pairwise sigmoid loss of SigLIP, with several positives.

What:
    Every pair of an image and a text is a yes/no question of its own; no normalisation over the batch.
Formula:
    s[i, j] = exp(log_scale) * <image i, text j> + bias;  z[i, j] = +1 where text j describes image i, else -1.
    L = -1/B * sum over i, j of log sigmoid(z[i, j] * s[i, j])
Shapes:
    see ``mmtune.losses``.
Needs:
    a backbone with ``embed``; one without a bias of its own is scored with bias 0, which is poor at the start.
Relatives:
    ``infonce`` ranks the candidates of a row against each other.
Source:
    Zhai et al. 2023 (SigLIP), algorithm 1; the bias starts near -10 there so that the many negatives do not swamp it.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmtune.ground.sections import StrictSection
from mmtune.losses._cosines import cosines

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_SCALE = None
"""SigLIP does not clamp its temperature."""


class Section(StrictSection):
    """Pairwise sigmoid loss of SigLIP."""

    kind: Literal["sigmoid"] = Field("sigmoid", description="SigLIP's loss: every pair is a yes/no question of its own")


def loss(
    image_embeds: "Tensor",
    text_embeds: "Tensor",
    positives: "Tensor",
    log_scale: "Tensor",
    bias: "Tensor | None" = None,
) -> "Tensor":
    """Loss of the batch per image, ``float[]``."""
    import torch

    logits = cosines(log_scale.exp() * image_embeds, text_embeds)
    if bias is not None:
        logits = logits + bias
    signs = torch.where(positives, 1.0, -1.0).to(logits.dtype)
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / logits.shape[0]
