"""Linear layers with LoRA beside them, several that read one input as one operation, forward and backward by hand.

What is saved against autograd over peft's layer: the update is added inside the matrix product instead of in three
passes over the output, the gradients of A and B take the low-rank route, the gradients that several projections send
to their common input are summed where they arise, and an input that needs no gradient gets none computed.
Formula: y = factor (x W^T + b + s (z A^T) B^T) with z = x, or x after dropout; LoRA arXiv:2106.09685.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Projection(NamedTuple):
    """What one linear layer computes at the moment.

    Attributes:
        weight: float[out, in], frozen.
        bias: float[out], frozen, or None.
        down: float[rank, in], the update's A; None where there is no update.
        up: float[out, rank], its B.
        scaling: what the update is multiplied with.
        dropout: share of the update's input that is dropped now; 0 outside of training.
    """

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 1.0
    dropout: float = 0.0

    def split(self, count: int) -> "list[Projection]":
        """As many projections of equal width that together are this one."""
        biases, ups = ([None] * count if whole is None else whole.chunk(count) for whole in (self.bias, self.up))
        return [
            self._replace(weight=weight, bias=bias, up=up)
            for weight, bias, up in zip(self.weight.chunk(count), biases, ups, strict=True)
        ]


def why_not_projection(module: nn.Module) -> str | None:
    """Why a module is not one whose computation is known: None for a frozen ``nn.Linear`` and for peft's LoRA over one
    with one plain active adapter.
    """
    from peft.tuners.lora.layer import Linear as LoraLinear

    if type(module) is nn.Linear:
        return _why_not_frozen(module)
    if type(module) is not LoraLinear:
        return f"a {type(module).__module__}.{type(module).__name__}, which is neither nn.Linear nor peft's LoRA layer"
    base = module.base_layer
    if type(base) is not nn.Linear:
        return f"LoRA over a {type(base).__name__}"
    return _why_not_frozen(base) or _why_not_lora(module)


def _why_not_frozen(linear: nn.Linear) -> str | None:
    own = [value for value in (linear.weight, linear.bias) if value is not None]
    if any(value.requires_grad for value in own):
        return "its own weights are trained"
    if any(type(value.data) is not Tensor or not value.is_floating_point() for value in own):
        return "its weights are no plain tensors of floats"
    return None


def _why_not_lora(module: Any) -> str | None:
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1:
        return f"{len(active)} active adapters"
    name = active[0]
    if name in module.lora_variant or module.use_dora.get(name):
        return "a variant of LoRA, such as DoRA"
    down, up, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    if type(down) is not nn.Linear or type(up) is not nn.Linear or down.bias is not None or up.bias is not None:
        return "LoRA with a bias of its own"
    if type(dropout) not in (nn.Identity, nn.Dropout):
        return f"a {type(dropout).__name__} as LoRA's dropout"
    if module.fan_in_fan_out or not module.cast_input_dtype_enabled:
        return "a transposed weight, or an input that is not cast"
    return None


def reader_of(module: Any) -> Callable[[], Projection]:
    """What tells what a module computes now, for one that ``why_not_projection`` has nothing against: merged and
    switched-off adapters count as none. To be made anew where adapters come, go, or become active.
    """
    if type(module) is nn.Linear:
        return lambda: Projection(module.weight, module.bias)
    base, scaling = module.base_layer, module.scaling
    name = next(name for name in module.active_adapters if name in module.lora_A)
    down, up, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    share = dropout.p if isinstance(dropout, nn.Dropout) else 0.0

    def read() -> Projection:
        if module.disable_adapters or module.merged_adapters:
            return Projection(base.weight, base.bias)
        drawn = share if dropout.training else 0.0
        return Projection(base.weight, base.bias, down.weight, up.weight, float(scaling[name]), drawn)

    return read


def project(
    x: Tensor,
    projections: Sequence[Projection],
    dropped: Sequence[Tensor | None] = (),
    factor: float = 1.0,
) -> tuple[Tensor, ...]:
    """Each projection of the same input.

    Args:
        x: float[N, in].
        projections: what to compute.
        dropped: what the update of each reads instead of x, where its dropout drew; none where nothing did.
        factor: multiplies the results.

    Returns:
        float[N, out] each, in the number format of x, or of autocast where it is on.
    """
    if len(projections) == 1 and projections[0].down is None and factor == 1:  # nothing to gain, and less to call
        return (nn.functional.linear(x, projections[0].weight, projections[0].bias),)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, dropped = x.to(dtype), [None if source is None else source.to(dtype) for source in dropped]
    if not any(source is not None for source in dropped):
        return _project(x, None, projections, factor)
    pairs = zip(projections, dropped, strict=True)
    return tuple(_project(x, source, [one], factor)[0] for one, source in pairs)


@dataclass(frozen=True)
class _Plan:
    """What ``_Project`` does beside its tensors: the factor, the scale of each projection's update (None: it has
    none), and the number format that updates are computed in.
    """

    factor: float
    scales: tuple[float | None, ...]
    dtype: torch.dtype | None


def _project(x: Tensor, dropped: Tensor | None, projections: Sequence[Projection], factor: float) -> tuple[Tensor, ...]:
    """One operation; ``dropped`` is what the updates read instead of x."""
    updates = [one for one in projections if one.down is not None]
    scales = tuple(None if one.down is None else one.scaling * factor for one in projections)
    # Under autocast peft's update is computed in autocast's format, else in that of A and B.
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = x.dtype if autocast or not updates else updates[0].down.dtype  # type: ignore[union-attr]
    frozen = [value for one in projections for value in (one.weight, one.bias)]
    trained = [value for one in updates for value in (one.down, one.up)]
    results: tuple[Tensor, ...] = _Project.apply(x, dropped, _Plan(factor, scales, dtype), *frozen, *trained)
    return results


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Switch autocast off on a kind of device, where it is on: the number formats are then those that are chosen."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class _Project(torch.autograd.Function):
    """``apply(x, dropped, plan, W, b, W, b, ..., A, B, A, B, ...)``: A and B of those alone that have an update."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor | None, plan: _Plan, *tensors: Any) -> tuple[Tensor, ...]:
        count = len(plan.scales)
        frozen, trained = tensors[: 2 * count], tensors[2 * count :]
        ctx.set_materialize_grads(False)
        ctx.plan, ctx.dtypes = plan, [one.dtype for one in trained]
        with without_autocast(x.device.type):
            weights = [one.to(x.dtype) for one in frozen[0::2]]
            results = [
                _product(x, weight, bias, plan.factor) for weight, bias in zip(weights, frozen[1::2], strict=True)
            ]
            if not trained:
                ctx.save_for_backward(*weights)
                return tuple(results)
            source = (x if dropped is None else dropped).to(plan.dtype)
            down = torch.cat([one.to(plan.dtype) for one in trained[0::2]])
            ups = [one.to(plan.dtype) for one in trained[1::2]]
            narrow = source @ down.t()
            for position, scale, piece, up in _pieces(plan, narrow, ups):
                results[position] = _added(results[position], piece, up, scale)
        learns = any(ctx.needs_input_grad[3 + 2 * count :])
        ctx.save_for_backward(*weights, *ups, down, *((narrow, source) if learns else ()))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        with without_autocast(ctx.saved_tensors[0].device.type):
            return _gradients(ctx, given)


def _gradients(ctx: Any, given: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """What ``_Project.backward`` gives: gradients of x, of what was dropped, and of every A and B."""
    plan, saved = ctx.plan, ctx.saved_tensors
    count, num_updates = len(plan.scales), len(ctx.dtypes) // 2
    weights, ups = saved[:count], saved[count : count + num_updates]
    for_x, for_dropped = ctx.needs_input_grad[:2]
    grad_x = _input_grad(given, weights, plan.factor) if for_x else None
    blank = [None] * (2 * count)
    if not num_updates:
        return (grad_x, None, None, *blank)
    down, kept = saved[count + num_updates], saved[count + num_updates + 1 :]
    steep = _steep(given, plan, ups)
    grads = _update_grads(given, steep, plan, ups, kept, ctx.dtypes) if kept else [None] * (2 * num_updates)
    if for_dropped:
        return (grad_x, steep @ down, None, *blank, *grads)
    return (_with_product(grad_x, steep, down), None, None, *blank, *grads)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """factor (x W^T + b)."""
    if bias is not None:
        return torch.addmm(bias.to(x.dtype), x, weight.t(), beta=factor, alpha=factor)
    return x @ weight.t() if factor == 1 else (x @ weight.t()).mul_(factor)


def _added(result: Tensor, narrow: Tensor, up: Tensor, scale: float) -> Tensor:
    """result + scale narrow B^T, in place where the number formats allow."""
    if result.dtype == up.dtype:
        return result.addmm_(narrow, up.t(), alpha=scale)
    return torch.addmm(result.to(up.dtype), narrow, up.t(), alpha=scale).to(result.dtype)


def _pieces(plan: _Plan, narrow: Tensor, ups: Sequence[Tensor]) -> Iterator[tuple[int, float, Tensor, Tensor]]:
    """Position among the projections, scale, the update's columns of float[N, ranks], its B."""
    start = 0
    updates = [(position, scale) for position, scale in enumerate(plan.scales) if scale is not None]
    for (position, scale), up in zip(updates, ups, strict=True):
        yield position, scale, narrow[:, start : start + up.shape[1]], up
        start += up.shape[1]


def _input_grad(given: Sequence[Tensor | None], weights: Sequence[Tensor], factor: float) -> Tensor | None:
    """factor times the sum of all G W."""
    total: Tensor | None = None
    for grad, weight in zip(given, weights, strict=True):
        if grad is None:
            continue
        if total is None:
            total = grad @ weight if factor == 1 else torch.addmm(grad.new_empty(1), grad, weight, beta=0, alpha=factor)
        else:
            total.addmm_(grad, weight, alpha=factor)
    return total


def _steep(given: Sequence[Tensor | None], plan: _Plan, ups: Sequence[Tensor]) -> Tensor:
    """scale G B of every update, side by side: float[N, ranks]."""
    like = next(grad for grad in given if grad is not None)
    steep = ups[0].new_zeros(like.shape[0], sum(up.shape[1] for up in ups))
    for position, scale, piece, up in _pieces(plan, steep, ups):
        grad = given[position]
        if grad is not None:
            torch.mul(grad.to(up.dtype) @ up, scale, out=piece)
    return steep


def _update_grads(
    given: Sequence[Tensor | None], steep: Tensor, plan: _Plan, ups: Sequence[Tensor], kept: Any, dtypes: Sequence[Any]
) -> list[Tensor | None]:
    """Gradients of A and B of each update in turn."""
    narrow, source = kept
    of_down = (steep.t() @ source).split([up.shape[1] for up in ups])
    grads: list[Tensor | None] = []
    for index, (position, scale, piece, up) in enumerate(_pieces(plan, narrow, ups)):
        grad = given[position]
        # This way round, the short side first, the product takes a quarter of the time.
        of_up = None if grad is None else (piece.t() @ grad.to(up.dtype)).mul_(scale).t()
        grads += [of_down[index].to(dtypes[2 * index]), None if of_up is None else of_up.to(dtypes[2 * index + 1])]
    return grads


def _with_product(grad_x: Tensor | None, steep: Tensor, down: Tensor) -> Tensor | None:
    """grad_x + steep A, in place where the number formats allow."""
    if grad_x is None:
        return None
    if grad_x.dtype == down.dtype:
        return grad_x.addmm_(steep, down)
    return torch.addmm(grad_x.to(down.dtype), steep, down).to(grad_x.dtype)
