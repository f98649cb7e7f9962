"""The contrastive loss of CLIP, in both directions, with several positives.

What:
    Every text of the batch is a candidate for every image and the other way round. Texts that describe the same image
    are never negatives of each other.
Formula:
    s[i, j] = exp(log_scale) * <image i, text j>;  P(i) the positives of image i, N(i) all others.
    share[i, p] = e^s[i,p] / (e^s[i,p] + sum over n in N(i) of e^s[i,n])
    L_image = mean over i of  1/|P(i)| * sum over p in P(i) of -log share[i, p]
    L = (L_image + L_text) / 2, where L_text is the same on the transposed matrix.
    With one positive per row this is CLIP's loss to the letter.
Shapes:
    see ``mmtune.losses``.
Needs:
    a backbone with ``embed`` and a temperature; large batches, since the batch is the pool of negatives.
Relatives:
    ``sigmoid`` judges every pair alone and needs no normalisation over the batch.
Source:
    Radford et al. 2021 (CLIP), figure 3; mean over positives outside the logarithm as in Khosla et al. 2020 (SupCon),
    equation 2, with the other positives left out of the denominator so that they are not pushed apart.
"""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mmtune.ground.sections import StrictSection
from mmtune.losses._cosines import cosines

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_SCALE = math.log(100.0)
"""CLIP clamps the inverse temperature to 100 after every step (Radford et al. 2021, section 2.5)."""


class Section(StrictSection):
    """Softmax contrastive loss of CLIP."""

    kind: Literal["infonce"] = Field("infonce", description="CLIP's loss in both directions, several positives allowed")


def loss(
    image_embeds: "Tensor",
    text_embeds: "Tensor",
    positives: "Tensor",
    log_scale: "Tensor",
    bias: "Tensor | None" = None,
) -> "Tensor":
    """Mean loss of the batch, ``float[]``. ``bias`` cancels in a softmax and is ignored."""
    logits = cosines(log_scale.exp() * image_embeds, text_embeds)
    return (_one_direction(logits, positives) + _one_direction(logits.T, positives.T)) / 2


def _one_direction(logits: "Tensor", positives: "Tensor") -> "Tensor":
    import torch

    negatives = torch.logsumexp(logits.masked_fill(positives, -torch.inf), dim=1, keepdim=True)
    # log(e^s / (e^s + e^negatives)) written so that neither side overflows at temperature 100.
    log_share = -torch.nn.functional.softplus(negatives - logits)
    # where() before the sum: a row without negatives has -inf - x, whose share is exactly 0 with a zero gradient.
    per_row = torch.where(positives, log_share, 0.0).sum(dim=1) / positives.sum(dim=1)
    return -per_row.mean()
