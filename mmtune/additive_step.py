"""One optimizer step's loss and gradients for tasks whose loss is a sum over samples: generate, match, classify.

The loss of a step is the sum over everything that is judged in the whole batch (label tokens, or samples) divided by
their number, over all micro-batches and ranks: how the batch is cut changes nothing but the order of sums. The number
is known before the first forward pass, from the labels alone.

Gradients are summed over the ranks, not averaged: the loss is already that of the whole batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.batch_building import Batch
from mmtune.ground.process_group import all_reduce_sum, rank
from mmtune.ground.seeding import seed_for
from mmtune.item_encoding import ANSWER_SCORES, IS_MATCH
from mmtune.step_context import StepContext, sum_over_ranks
from mmtune.token_states import head_of, token_states

if TYPE_CHECKING:
    from torch import Tensor

    Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """What an ability is trained by.

    Attributes:
        count: inputs of a micro-batch -> how much in it is judged.
        total: (backbone, inputs) -> the sum of its losses, ``float[]`` in at least fp32, with a graph.
    """

    count: "Callable[[Any, Inputs], int]"
    total: "Callable[[Any, Inputs], Tensor]"


def additive_step(context: StepContext, batches: Sequence[Batch], step: int) -> "Tensor":
    """Leave the whole batch's gradient in ``.grad`` of every trainable parameter and return the loss, ``float64[]``.

    Args:
        context: see ``StepContext``.
        batches: this rank's micro-batches of the step; any of them may have lost samples or be empty.
        step: number of finished optimizer steps.
    """
    import torch

    objective = OBJECTIVES[context.ability]
    traits = context.backbone.traits
    mine = sum(objective.count(traits, batch.inputs) for batch in batches if len(batch))
    number = int(all_reduce_sum(torch.tensor(mine, dtype=torch.int64, device=context.device)))
    loss = torch.zeros((), device=context.device, dtype=torch.float64)
    context.scale(torch.zeros((), device=context.device))  # fp16's scaler begins with this, also where all is bad
    for place, batch in enumerate(batches):
        if not len(batch):
            continue
        inputs = {name: value.to(context.device, non_blocking=True) for name, value in batch.inputs.items()}
        torch.manual_seed(seed_for(context.seed, "dropout", step, rank(), place))
        with context.autocast():
            part = objective.total(context.backbone, inputs) / max(1, number)
        context.num_forwards += 1
        if part.requires_grad:
            context.scale(part).backward()
        loss += part.detach()
    sum_over_ranks(context)
    return all_reduce_sum(loss)


# --- what is judged


def count_labels(traits: Any, inputs: "Inputs") -> int:
    """Label tokens that have a logit: all but those at the first place of a decoder, which nothing comes before."""
    labels = inputs["labels"][:, 1:] if traits.shifted_labels else inputs["labels"]
    return int((labels != -100).sum())


def token_total(backbone: Any, inputs: "Inputs") -> "Tensor":
    """Sum of the cross-entropies of all label tokens; logits exist for these alone, a chunk at a time."""
    from mmtune.losses._label_tokens import select_labels, sum_token_losses

    states = token_states(backbone, inputs)
    chosen, targets = select_labels(states, inputs["labels"], backbone.traits.shifted_labels)
    return sum_token_losses(chosen, targets, head_of(backbone))


def match_total(backbone: Any, inputs: "Inputs") -> "Tensor":
    """Sum of the binary cross-entropies of the log odds; for a head of two classes this is its cross-entropy."""
    import torch

    targets = inputs[IS_MATCH]
    log_odds = backbone.family.match(backbone.model, {n: v for n, v in inputs.items() if n != IS_MATCH})
    log_odds = log_odds.to(torch.promote_types(log_odds.dtype, torch.float32))
    return torch.nn.functional.binary_cross_entropy_with_logits(log_odds, targets.to(log_odds), reduction="sum")


def classify_total(backbone: Any, inputs: "Inputs") -> "Tensor":
    """Sum over samples and answers of the binary cross-entropy against the soft scores, as ViLT's own loss."""
    import torch

    targets = inputs[ANSWER_SCORES]
    logits = backbone.family.classify(backbone.model, {n: v for n, v in inputs.items() if n != ANSWER_SCORES})
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="sum")


OBJECTIVES = {
    "generate": Objective(count_labels, token_total),
    "match": Objective(lambda traits, inputs: len(inputs[IS_MATCH]), match_total),
    "classify": Objective(lambda traits, inputs: len(inputs[ANSWER_SCORES]), classify_total),
}
