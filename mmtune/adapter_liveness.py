"""Is everything that the recipe asked to train in fact being trained? One row per part, and a stop when one is dead.

LoRA's A has no gradient while B is zero, so parts are judged and not tensors, and only after the first updates.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.adapters._effective_change import effective_change, plain_weight
from mmtune.ground.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.adapters import Adapted

JUDGED_AFTER = 3
"""Updates before parts are judged: the first may have learning rate 0, the second moves B, the third moves A too."""


@dataclass
class PartLife:
    """What was seen of one part.

    Attributes:
        gradient_norm: largest L2 norm of the part's gradient over the updates seen.
        reached: a gradient tensor existed for some parameter of the part.
        change: Frobenius norm of the change of its effective weights over that of the weights; None until judged.
        num_moved: modules whose effective weight changed.
    """

    gradient_norm: float = 0.0
    reached: bool = False
    change: float | None = None
    num_moved: int = 0


class Liveness:
    """Watches the first updates of a run.

    Attributes:
        last_step: the step after which parts are judged; nothing needs to be called beyond it.
    """

    def __init__(self, adapted: "Adapted") -> None:
        self.adapted = adapted
        self.last_step = JUDGED_AFTER
        self.lives = {report.part: PartLife() for report in adapted.parts}
        self.start = {name: value.detach().cpu().clone() for name, value in adapted.trainable().items()}

    def start_table(self) -> str:
        """One row per part before the first step: modules matched, trainable parameters, share of all."""
        return self._table(("part", "modules", "trainable", "share"), num_columns=4)

    def after_backward(self) -> None:
        """Look at the gradients of a whole step, before the update.

        A step whose gradient is not finite (one that the fp16 scaler skips) does not count: parts are judged later.
        """
        gradients: dict[str, list[Tensor]] = {part: [] for part in self.lives}
        for name, value in self.adapted.trainable().items():
            if value.grad is not None:
                gradients[self.adapted.part_of[name]].append(value.grad.detach())
        norms = {part: _norm(each) for part, each in gradients.items()}
        if not all(math.isfinite(norm) for norm in norms.values()):
            self.last_step += 1
            return
        for part, life in self.lives.items():
            life.reached |= bool(gradients[part])
            life.gradient_norm = max(life.gradient_norm, norms[part])

    def after_step(self, step: int, say: Callable[[str], Any] = print) -> None:
        """After update number ``step``: at ``last_step`` say one row per part and judge them.

        Raises:
            TrainingError: a part that was asked for is dead; the message says why, for all dead parts at once.
        """
        if step != self.last_step:
            return
        self._measure_change()
        header = ("part", "modules", "trainable", "share", "gradient", "change", "moved")
        for line in self._table(header, num_columns=7).splitlines():
            say(line)
        self.start.clear()
        reasons = [self._why_dead(part) for part in self.lives if part != "temperature"]
        dead = [reason for reason in reasons if reason]
        if dead:
            raise TrainingError(f"after {step} updates something that the recipe trains is dead:\n" + "\n".join(dead))

    def _measure_change(self) -> None:
        for part, life in self.lives.items():
            moved = whole = 0.0
            for difference, weight in _effective_changes(self.adapted, part, self.start):
                life.num_moved += difference > 0
                moved += difference**2
                whole += weight**2
            life.change = (moved / whole) ** 0.5 if whole else moved**0.5

    def _why_dead(self, part: str) -> str | None:
        life = self.lives[part]
        if not life.reached:
            return (
                f"part {part!r}: no gradient reaches it, so the loss does not depend on what it computes "
                "(detached, or not used by this task); take it out of adapter.parts, or mend the path to the loss"
            )
        if life.gradient_norm == 0:
            return (
                f"part {part!r}: its gradient is exactly zero in every update, so nothing it computes can change the "
                "loss (a constant or clamped output, masked inputs); take it out of adapter.parts, or mend that"
            )
        if life.change == 0:
            return (
                f"part {part!r}: gradients arrive (norm {life.gradient_norm:.3g}) but no effective weight moved: "
                "train.learning_rate is zero or below the resolution of the weights, or the optimizer does not hold it"
            )
        return None

    def _table(self, header: tuple[str, ...], num_columns: int) -> str:
        rows = [header]
        for report in self.adapted.parts:
            life = self.lives[report.part]
            cells = [report.part, str(report.num_modules), f"{report.num_trainable:,}", f"{report.share:.3%}"]
            cells += [f"{life.gradient_norm:.3g}", f"{life.change or 0.0:.3g}"]
            cells += [f"{life.num_moved}/{report.num_modules}"]
            rows.append(tuple(cells[:num_columns]))
        widths = [max(len(row[column]) for row in rows) for column in range(num_columns)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )


def _effective_changes(adapted: "Adapted", part: str, start: "dict[str, Tensor]") -> Iterator[tuple[float, float]]:
    """Per module of a part: Frobenius norms of the change of its effective weight and of the weight at the start."""
    modules = dict(adapted.model.named_modules())
    trained = adapted.trainable()
    for name in adapted.modules[part]:
        is_embedding = hasattr(getattr(modules.get(name), "base_layer", None), "num_embeddings")
        if name in modules and hasattr(modules[name], "base_layer") and not is_embedding:
            change = _lora_change if hasattr(modules[name], "lora_A") else effective_change
            yield change(modules[name], name, start)
            continue
        own = [n for n in start if adapted.part_of[n] == part and (n == name or n.rpartition(".")[0] == name)]
        own += [n for n in start if is_embedding and n.startswith(f"{name}.")]  # rows of it, by name of the adapter
        differences = [trained[n].detach().cpu().double() - start[n].double() for n in own]
        yield _norm(differences), _norm([start[n] for n in own])


def _lora_change(layer: Any, name: str, start: "dict[str, Tensor]") -> tuple[float, float]:
    """The same for a layer that peft wrapped, in float32; 4-bit and 8-bit base weights are dequantized for it."""
    import torch

    adapter = "default"
    with torch.no_grad():
        weight = plain_weight(layer).float().cpu()
        factors = [start[f"{name}.lora_{letter}.{adapter}.weight"].float() for letter in "BA"]
        before = (factors[0].flatten(1) @ factors[1].flatten(1)).view_as(weight) * layer.scaling[adapter]
        now = layer.get_delta_weight(adapter).detach().float().cpu()
        if adapter in layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector[adapter].weight.detach().float().cpu()
            before = _with_lengths(weight + before, start[f"{name}.lora_magnitude_vector.{adapter}.weight"].float())
            now = _with_lengths(weight + now, magnitude)
        return _norm([now - before]), _norm([weight])


def _with_lengths(weight: "Tensor", lengths: "Tensor") -> "Tensor":
    """DoRA's effective weight: rows of float[out, in] scaled to the given lengths."""
    return weight * (lengths / weight.norm(dim=1)).unsqueeze(1)


def _norm(tensors: "list[Tensor]") -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
