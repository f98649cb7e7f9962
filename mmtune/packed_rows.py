"""Which rows of a padded batch are computed: tokens of all texts in one row, or one place per sequence.

Letters: B sequences, T places each, D width, N rows that are computed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAYS_BELOW = 0.9
"""Share of the places that may hold tokens for packing to save more than the moving of rows costs."""


class _Take(torch.autograd.Function):
    """Rows float[N, D] of float[M, D]; no row twice, so that its backward pass is a copy and no sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, grad.shape[1]).index_copy_(0, index, grad), None


class _Spread(torch.autograd.Function):
    """float[N, D] put at rows ``index`` of zeros float[M, D]; no row twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(num_rows, rows.shape[1]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.index_select(0, index), None, None


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows float[N, D] of float[M, D] at ``index`` int64[N], none of them twice."""
    result: Tensor = _Take.apply(rows, index)
    return result


def spread(rows: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """float[num_rows, D] that holds float[N, D] at ``index`` int64[N], none of them twice, and zeros elsewhere."""
    result: Tensor = _Spread.apply(rows, index, num_rows)
    return result


@dataclass(frozen=True)
class Rows:
    """How the rows float[N, D] that layers compute stand for states float[B, T, D].

    Attributes:
        batch: B.
        length: T.
        mask: what attention is told, as transformers' layers get it: bool[B, 1, T, T], true where a place is seen,
            or None.
        causal: whether places see no later ones (where ``mask`` is None).
        read: int64[B], the place of each sequence that is read in the end; None: all of them.
        packed: int64[N], the places of float[B * T, D] that are computed, in order: those of each sequence up to the
            one that is read; None: all of them.
        lengths: how many of them each sequence has; None where ``packed`` is.
    """

    batch: int
    length: int
    mask: Tensor | None = None
    causal: bool = False
    read: Tensor | None = None
    packed: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def spaced(self, rows: Tensor) -> Tensor:
        """float[B * T, D] of rows float[N, D], zeros where nothing is computed."""
        return rows if self.packed is None else spread(rows, self.packed, self.batch * self.length)

    def dropped(self, rows: Tensor, share: float, *, read: bool) -> Tensor:
        """Rows after dropout, with the masks that would be drawn for all of float[B * T, D].

        Args:
            rows: float[N, D], or float[B, D] of the read places.
            share: of the numbers that are dropped.
            read: whether the rows are those of the read places.
        """
        dropout = torch.nn.functional.dropout
        index = self.read_places if read else self.packed
        if index is None:
            return dropout(rows, share, training=True)
        factors = dropout(rows.new_ones(self.batch * self.length, rows.shape[1]), share, training=True)
        return rows * factors.index_select(0, index)

    @property
    def read_rows(self) -> Tensor:
        """int64[B], where the read places are among float[N, D]."""
        assert self.read is not None
        if self.packed is not None:  # packed texts end where they are read
            return (self.read + 1).cumsum(0) - 1
        return self.read_places

    @property
    def read_places(self) -> Tensor:
        """int64[B], where the read places are among float[B * T, D]."""
        assert self.read is not None
        return self.read + torch.arange(self.batch, device=self.read.device) * self.length

    @property
    def read_mask(self) -> Tensor | None:
        """bool[B, 1, 1, T], what the read places see; None: everything."""
        assert self.read is not None
        if self.mask is not None and self.packed is None:
            first = torch.arange(self.batch, device=self.read.device)
            return self.mask.expand(self.batch, -1, self.length, -1)[first, :, self.read][:, :, None]
        if self.causal or self.packed is not None:
            return _seen_by(self.read, self.length)[:, None, None]
        return None


def _seen_by(places: Tensor, length: int) -> Tensor:
    """bool[B, T]: true up to the place and at it."""
    return torch.arange(length, device=places.device) <= places[:, None]


def packed_causal(rows: Rows) -> Rows:
    """The rows without those after the read places, which causal attention does not let matter; as given where nothing
    is gained, or a place before the read one is hidden, as padding on the left would be.
    """
    if rows.read is None or not (rows.causal or rows.mask is not None):
        return rows
    seen = _seen_by(rows.read, rows.length)
    mask = rows.read_mask if rows.mask is not None else None
    if mask is not None and (mask.dtype != torch.bool or not bool((mask[:, :, 0] == seen[:, None]).all())):
        return rows
    if int(seen.sum()) > PAYS_BELOW * seen.numel():
        return rows
    index = seen.flatten().nonzero()[:, 0]
    lengths = tuple((rows.read + 1).tolist())
    return Rows(rows.batch, rows.length, causal=True, read=rows.read, packed=index, lengths=lengths)
