"""What every kind of step is given, and the sum of its gradients over the ranks."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune.ground.process_group import all_reduce_sum, rank, world_size

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    Precision = Callable[[], AbstractContextManager[Any]]


@dataclass
class StepContext:
    """What a step needs to know beside its batches.

    Attributes:
        backbone: the adapted backbone.
        task: the task's module, and its recipe section.
        trainable: name -> parameter, in the order that is the same on every rank.
        device: where the forward passes run.
        autocast: makes the mixed-precision context of a forward pass.
        seed: the recipe's seed.
        ability: what the task asks of the backbone; see ``mmtune.tasks.ability_for``.
        scale: multiplies the loss before backward (the fp16 scaler's), 1 otherwise.
        num_forwards: counts the forward passes made, for tests and reports.
        num_prompt_passes: counts how often all class prompts were embedded.
        kept: what a step keeps for later ones of the same process.
    """

    backbone: Any
    task: Any
    section: Any
    trainable: "dict[str, Tensor]"
    device: "torch.device"
    autocast: "Precision"
    seed: int
    ability: str = "embed"
    scale: "Callable[[Tensor], Tensor]" = field(default=lambda loss: loss)
    num_forwards: int = 0
    num_prompt_passes: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    def temperature(self) -> "tuple[Tensor, Tensor | None]":
        """The live temperature parameters of the backbone."""
        pair: tuple[Tensor, Tensor | None] = self.backbone.family.temperature(self.backbone.model)
        return pair


def sum_over_ranks(context: StepContext) -> None:
    """Sum gradients over the ranks in one flat message; what has none on any rank has none afterwards.

    The temperature's gradient is that of the whole loss on every rank already, so only rank 0's counts.
    """
    import torch

    if world_size() == 1:
        return
    once = set(context.backbone.traits.temperature)
    named = list(context.trainable.items())
    reached = torch.tensor([parameter.grad is not None for _, parameter in named], dtype=torch.int64)
    counts = all_reduce_sum(reached.to(context.device)).tolist()
    named = [each for each, count in zip(named, counts, strict=True) if count]
    if not named:
        return
    parameters = [parameter for _, parameter in named]
    for name, parameter in named:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if name in once and rank() > 0:
            parameter.grad.zero_()
    flat = all_reduce_sum(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]))
    start = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()
