"""The optimizer and the learning-rate schedule of a run."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
"""Our word -> transformers' word; all of them warm up."""


def make_optimizer(adapted: Any, section: Any) -> "Optimizer":
    """AdamW over the adapter's groups (each holds ``names`` and its own learning rate and weight decay).

    ``adamw`` is torch's fused kernel where there is one: on a core it takes a third of the time of a loop over the
    tensors, and differs from it by roundings. ``adamw_8bit`` keeps the two averages of tensors of 4,096 values or more
    in 8 bit, in blocks of 256 with a scale each; the paged one lets them move to the host when the GPU is full.
    Source: AdamW arXiv:1711.05101; 8-bit optimizers arXiv:2110.02861; paging arXiv:2305.14314.

    Raises:
        RecipeError: rates per part that leave a trained part out; a paged optimizer without a GPU.
    """
    from mmtune.adapters import optimizer_groups

    groups = optimizer_groups(adapted, section.learning_rate, section.weight_decay, section.layer_decay)
    if section.optimizer == "adamw":
        import torch

        has_kernel = all(held.device.type in ("cpu", "cuda") for group in groups for held in group["params"])
        made = torch.optim.AdamW(groups, betas=tuple(section.betas), foreach=False, fused=has_kernel)
        made._step_supports_amp_scaling = False  # else an update that the scaler skips makes state
        return made
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    if section.optimizer == "paged_adamw_8bit" and not on_gpu:
        raise RecipeError("train.optimizer: paged_adamw_8bit moves its state off a GPU; write adamw_8bit here")
    import bitsandbytes

    kinds = {"adamw_8bit": bitsandbytes.optim.AdamW8bit, "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit}
    optimizer: Optimizer = kinds[section.optimizer](groups, betas=tuple(section.betas))
    return optimizer


def highest_rate(section: Any, parts: Iterable[str]) -> float:
    """The highest learning rate that a recipe gives to any of ``parts``: what is logged, times the schedule's factor.

    A default that stands for no part counts for nothing.
    """
    rates: float | dict[str, float] = section.learning_rate
    if not isinstance(rates, dict):
        return rates
    default = rates.get("default", 0.0)
    return max(rates.get(part, default) for part in parts)


def make_schedule(optimizer: "Optimizer", section: Any, *, warmup_steps: int, total_steps: int) -> "LambdaLR":
    """Warm-up to the learning rate, then cosine or linear to zero at ``total_steps``, or constant."""
    from transformers import get_scheduler

    schedule: LambdaLR = get_scheduler(
        SCHEDULES[section.schedule], optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps
    )
    return schedule


def has_moved(schedule: "LambdaLR", step: int) -> bool:
    """Whether any of the first ``step`` updates had a learning rate above zero (a warm-up's first has none)."""
    return any(schedule.lr_lambdas[0](done) > 0 for done in range(step))


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
    """The optimizer's state as named tensors, ``PARAMETER//STATE``, in the formats in which it is held.

    A plain integer (the step count of the 8-bit optimizers) becomes ``int64[]``.
    """
    import torch

    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                held = value if isinstance(value, torch.Tensor) else torch.tensor(value)
                tensors[f"{name}//{key}"] = held.detach().clone() if key.startswith("qmap") else held
    return tensors


def restore_optimizer(optimizer: "Optimizer", tensors: "dict[str, Tensor]") -> None:
    """The inverse of ``optimizer_tensors``, bit for bit.

    Raises:
        CheckpointError: state for a parameter that is not trained here.
    """
    import torch

    places = {
        name: (parameter, group, number, position)
        for number, group in enumerate(optimizer.param_groups)
        for position, (name, parameter) in enumerate(zip(group["names"], group["params"], strict=True))
    }
    unknown = sorted({name.rsplit("//", 1)[0] for name in tensors} - set(places))
    if unknown:
        raise CheckpointError(f"optimizer state for parameters that this recipe does not train: {', '.join(unknown)}")
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("//", 1)
        parameter, group, number, position = places[name]
        state = optimizer.state[parameter]
        if not state and hasattr(optimizer, "init_state"):
            optimizer.init_state(group, parameter, number, position)  # bitsandbytes: buffers where it wants them
        if tensor.dtype == torch.int64 and tensor.dim() == 0:
            state[key] = int(tensor)
        elif key == "step" and not group.get("fused"):
            state[key] = tensor  # the plain AdamW keeps its step count on the CPU
        elif key in state:
            state[key].copy_(tensor)
        else:
            state[key] = tensor.to(parameter.device)
