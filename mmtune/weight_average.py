"""The running average of what is trained (EMA): what is validated, saved for users, evaluated, merged and pushed.

Formula: after every update, average = d average + (1 - d) weights. With warm-up, d = min(decay, (1 + n) / (10 + n))
after n updates, so that a short run does not remember its start. Frozen weights are not averaged: they do not move.
Memory: one more copy of what is trained.
Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage(num_updates=...)``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmtune.ground.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class WeightAverage:
    """Averages of live parameters.

    Attributes:
        live: name -> the parameter that training moves.
        values: name -> its average, of the same shape, dtype and device.
    """

    def __init__(self, live: "Mapping[str, Tensor]", *, decay: float, warmup: bool) -> None:
        self.live = live
        self.values = {name: value.detach().clone() for name, value in live.items()}
        self._decay = decay
        self._warmup = warmup

    def decay_after(self, num_updates: int) -> float:
        """The share of the old average that stays at update number ``num_updates`` (the first is 1)."""
        return min(self._decay, (1 + num_updates) / (10 + num_updates)) if self._warmup else self._decay

    def update(self, num_updates: int) -> None:
        """Move the averages after update number ``num_updates``."""
        share = 1 - self.decay_after(num_updates)
        for name, value in self.live.items():
            self.values[name].lerp_(value.detach(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the block runs the model holds the averages; afterwards its own weights, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, value in self.live.items():
            held = value.data.clone()
            value.data.copy_(self.values[name])
            self.values[name].copy_(held)

    def raw(self) -> "dict[str, Tensor]":
        """The weights that training goes on with, by name."""
        return {name: value.detach() for name, value in self.live.items()}

    def take(self, raw: "Mapping[str, Tensor]") -> None:
        """Go on from a checkpoint: the model holds its averages now, ``raw`` are the weights to train on from.

        Raises:
            CheckpointError: other names or shapes than what is trained here.
        """
        wanted = {name: value.shape for name, value in self.live.items()}
        if wanted != {name: value.shape for name, value in raw.items()}:
            raise CheckpointError("the weights kept beside the averages are not those that this recipe trains")
        for name, value in self.live.items():
            self.values[name].copy_(value.detach())
            value.data.copy_(raw[name])
