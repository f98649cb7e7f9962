"""Attention among the rows of a batch that are computed (``packed_rows``): of all of them, or of those that are read.

Letters: B sequences, T places each, H heads, D width, N rows that are computed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtune.fused_projection import Projection, without_autocast
from mmtune.packed_rows import Rows, take

TEXT_BY_TEXT = frozenset({"cpu"})
"""Devices on which attention of one text after another takes less time than of all of them with padding."""


Source = tuple[Projection, Tensor | None]
"""A projection, and what its update reads instead of the projection's input where dropout drew."""


@dataclass(frozen=True)
class Heads:
    """How attention is computed: number of heads, and what the products of queries and keys are multiplied with."""

    num: int
    scale: float

    def attend(self, rows: Rows, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of every row: float[N, D] of three float[N, D]."""
        if rows.packed is None:
            causal = rows.causal and rows.length > 1
            return self._attend(rows.batch, queries, keys, values, attn_mask=rows.mask, is_causal=causal)
        if queries.device.type in TEXT_BY_TEXT:
            texts = zip(*(one.split(rows.lengths) for one in (queries, keys, values)), strict=True)
            return torch.cat([self._attend(1, *text, is_causal=len(text[0]) > 1) for text in texts])
        spaced = (rows.spaced(one) for one in (queries, keys, values))
        return take(self._attend(rows.batch, *spaced, is_causal=rows.length > 1), rows.packed)

    def _attend(self, batch: int, queries: Tensor, keys: Tensor, values: Tensor, **how: Any) -> Tensor:
        of_query, of_key, of_value = (self._parts(one, batch) for one in (queries, keys, values))
        how["scale"] = self.scale
        mixed = torch.nn.functional.scaled_dot_product_attention(of_query, of_key, of_value, **how)
        return mixed.transpose(1, 2).reshape(queries.shape)

    def _parts(self, rows: Tensor, batch: int) -> Tensor:
        """float[B, H, T, D / H] of float[B * T, D]."""
        return rows.view(batch, -1, self.num, rows.shape[1] // self.num).transpose(1, 2)

    def attend_read(self, rows: Rows, queries: Tensor, normed: Tensor, of_key: Source, of_value: Source) -> Tensor:
        """Attention of the read places, without making keys and values: with one query per sequence it is less work to
        turn the query into what it asks of the states, and to project the mixed states.

        Formula: q (W n + b) = (W^T q) n + q b, whose last term is the same for all places and so changes no share;
        sum of p (W n + b) = W (sum of p n) + b, as the shares p add up to 1. The update of W likewise.

        Args:
            rows: what the rows stand for.
            queries: float[B, D].
            normed: float[N, D], what keys and values are made of.
            of_key: how keys are made, and what their update reads instead where its dropout drew.
            of_value: the same for values.

        Returns:
            float[B, D] in the number format of the queries; half formats are computed in float32.
        """
        dtype = torch.promote_types(queries.dtype, torch.float32)
        with without_autocast(queries.device.type):
            states = self._places(rows, normed.to(dtype))
            asking = queries.to(dtype).view(rows.batch, self.num, -1).transpose(0, 1)
            scores = torch.bmm(self._split(of_key[0].weight, asking, back=True), states.transpose(1, 2))
            if (update := self._narrow(rows, normed, *of_key)) is not None:
                up, narrow = update
                scores = scores + torch.bmm(self._split(up, asking, back=True), narrow.transpose(1, 2))
            shares = _masked(scores * self.scale, rows.read_mask).softmax(-1)
            mixed = self._split(of_value[0].weight, torch.bmm(shares, states), back=False)
            if (update := self._narrow(rows, normed, *of_value)) is not None:
                up, narrow = update
                mixed = mixed + self._split(up, torch.bmm(shares, narrow), back=False)
            if of_value[0].bias is not None:
                mixed = mixed + of_value[0].bias.to(dtype)
        return mixed.to(queries.dtype)

    def _places(self, rows: Rows, values: Tensor) -> Tensor:
        """float[B, T, D] of rows float[N, D]."""
        return rows.spaced(values).view(rows.batch, rows.length, -1)

    def _narrow(
        self, rows: Rows, normed: Tensor, projection: Projection, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """B float[D, rank] of a projection's update, and what it is applied to, scaled: float[B, T, rank]."""
        if projection.down is None or projection.up is None:
            return None
        dtype = torch.promote_types(normed.dtype, torch.float32)
        source = (normed if dropped is None else dropped).to(dtype)
        return projection.up, self._places(rows, source @ projection.down.to(dtype).t()) * projection.scaling

    def _split(self, weight: Tensor, parts: Tensor, *, back: bool) -> Tensor:
        """Products with the rows of a weight float[D, in] that belong to each head.

        Args:
            weight: whose rows are those of the heads in turn.
            parts: back: float[H, B, D / H]; else float[B, H, in].
            back: whether the weight is applied backwards, from the heads' parts to its inputs.

        Returns:
            back: float[B, H, in]; else float[B, D].
        """
        of_heads = weight.to(parts.dtype).view(self.num, -1, weight.shape[1])
        if back:
            return torch.bmm(parts, of_heads).transpose(0, 1)
        made = torch.bmm(parts.transpose(0, 1), of_heads.transpose(1, 2))
        return made.transpose(0, 1).reshape(len(parts), -1)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores float[B, H, T] with a mask [B, 1, 1, T]: bool, true where a place is seen, or a float that is added."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask[:, :, 0], float("-inf"))
    return scores + mask[:, :, 0]
