"""The optimizer and the learning-rate schedule of a run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Our word -> transformers' word; all of them warm up."""


def make_optimizer(adapted: Any, section: Any) -> "Optimizer":
    """AdamW over the adapter's groups (each holds ``names`` and its own learning rate and weight decay)."""
    import torch

    from mmtune.adapters import optimizer_groups

    groups = optimizer_groups(adapted, section.learning_rate, section.weight_decay)
    return torch.optim.AdamW(groups, betas=tuple(section.betas), foreach=False)


def make_schedule(optimizer: "Optimizer", section: Any, *, warmup_steps: int, total_steps: int) -> "LambdaLR":
    """Warm-up to the learning rate, then cosine or linear to zero at ``total_steps``, or constant."""
    from transformers import get_scheduler

    schedule: LambdaLR = get_scheduler(
        SCHEDULES[section.schedule], optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps
    )
    return schedule


def move_schedule(schedule: "LambdaLR", step: int) -> None:
    """Put a fresh schedule where it stands after ``step`` steps: its rate is a function of the step alone."""
    schedule.last_epoch = step
    schedule._step_count = step + 1
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(step)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def optimizer_tensors(optimizer: "Optimizer") -> "dict[str, Tensor]":
    """The optimizer's state as named tensors: ``PARAMETER//STATE``."""
    import torch

    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}//{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return tensors


def restore_optimizer(optimizer: "Optimizer", tensors: "dict[str, Tensor]") -> None:
    """The inverse of ``optimizer_tensors``.

    Raises:
        CheckpointError: state for a parameter that is not trained here.
    """
    from mmtune.ground.errors import CheckpointError

    places = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    unknown = sorted({name.rsplit("//", 1)[0] for name in tensors} - set(places))
    if unknown:
        raise CheckpointError(f"optimizer state for parameters that this recipe does not train: {', '.join(unknown)}")
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("//", 1)
        parameter = places[name]
        on_host = key == "step"  # AdamW keeps its step count on the CPU
        optimizer.state[parameter][key] = tensor if on_host else tensor.to(parameter.device, parameter.dtype)
