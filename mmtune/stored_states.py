"""States as bytes, and the line of a table that says what they are and proves them by a checksum."""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
"""Of a trunk's folder, its table and its entries; part of every checksum."""

FILE_NAME = re.compile(r"states-[0-9a-f]{32}\.bin")

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool)
    + (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
}

MOST_VALUES = 2**48
"""Of a shape, sides of 0 counted as 1; a larger one is damage."""


@dataclass(frozen=True, eq=False)
class Stored:
    """What is kept of one image or text.

    Attributes:
        states: any shape, of a type in `DTYPES`.
        beside: small tensors that belong to it, kept exactly.
    """

    states: Tensor
    beside: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A line of the table: where the bytes lie and what they are.

    Attributes:
        file: name of the file of states.
        offset: of the first byte.
        shape: of the states.
        dtype: what they are stored in.
        origin: what they were added in.
        checksum: CRC-32 over the key, all but the place, `beside` and the bytes.
        beside: safetensors, empty where there are none.
    """

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    origin: str
    checksum: int
    beside: bytes

    @property
    def num_bytes(self) -> int:
        """Of the states in their file."""
        return DTYPES[self.dtype].itemsize * prod(self.shape)


def narrowed(states: Tensor, dtype: str) -> Tensor:
    """The tensor as it is stored, on the CPU: floating point wider than ``dtype`` becomes ``dtype``.

    Values that ``dtype`` cannot hold (beyond 65,504 in float16) would become infinite: such states stay as they are.
    """
    plain = states.detach().to("cpu").contiguous()
    wanted = DTYPES[dtype]
    if not plain.is_floating_point() or plain.dtype.itemsize <= wanted.itemsize:
        return plain
    smaller = plain.to(wanted)
    return smaller if bool(smaller.isfinite().all()) or not bool(plain.isfinite().all()) else plain


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; writing to it changes the tensor."""
    content: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return content


def pack_beside(beside: Mapping[str, Tensor]) -> bytes:
    """Small tensors as safetensors."""
    from safetensors.torch import save

    plain = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in beside.items()}
    packed: bytes = save(plain) if plain else b""
    return packed


def unpack_beside(packed: bytes) -> dict[str, Tensor]:
    """What ``pack_beside`` packed."""
    from safetensors.torch import load

    tensors: dict[str, Tensor] = load(packed) if packed else {}
    return tensors


def checksum(name: bytes, entry: Entry, content: memoryview) -> int:
    """CRC-32 of an entry: 1 of 4 billion damages goes unseen.

    Args:
        name: the trunk and the key, so that another trunk's table or another entry's line does not pass.
        entry: its place and checksum are not looked at.
        content: the bytes of the states.
    """
    head = json.dumps([FORMAT, name.hex(), list(entry.shape), entry.dtype, entry.origin, len(entry.beside)])
    return zlib.crc32(content, zlib.crc32(entry.beside, zlib.crc32(head.encode())))


def entry_of(name: bytes, stored: Stored, states: Tensor) -> Entry:
    """The line of an entry that has no place yet; ``states`` are ``stored.states`` as they will lie in the file."""
    dtype, origin = (str(each.dtype).removeprefix("torch.") for each in (states, stored.states))
    assert {dtype, origin} <= set(DTYPES), (dtype, origin)
    entry = Entry("", 0, tuple(states.shape), dtype, origin, 0, pack_beside(stored.beside))
    return replace(entry, checksum=checksum(name, entry, as_bytes(states)))


def as_row(entry: Entry, file: str, offset: int) -> tuple[Any, ...]:
    """The line as a table holds it; text as bytes, because damaged text need not be UTF-8."""
    shape = ",".join(map(str, entry.shape)).encode()
    kinds = entry.dtype.encode(), entry.origin.encode()
    return file.encode(), offset, shape, *kinds, entry.checksum, entry.beside


def entry_from_row(row: Sequence[Any]) -> Entry | None:
    """The line of a table, or None where it cannot be one of ours."""
    file, offset, shape, dtype, origin, number, beside = row
    if not all(isinstance(text, bytes) for text in (file, shape, dtype, origin, beside)):
        return None
    if not isinstance(offset, int) or not isinstance(number, int) or offset < 0:
        return None
    try:
        entry = Entry(file.decode(), offset, _shape(shape), dtype.decode(), origin.decode(), number, beside)
    except ValueError:
        return None
    known = FILE_NAME.fullmatch(entry.file) and entry.dtype in DTYPES and entry.origin in DTYPES
    return entry if known else None


def _shape(text: bytes) -> tuple[int, ...]:
    """``b"577,1024"`` as a shape; no text is a single number's.

    Raises:
        ValueError: no shape.
    """
    sides = tuple(int(side) for side in text.decode().split(",")) if text else ()
    if any(side < 0 for side in sides) or prod(max(side, 1) for side in sides) > MOST_VALUES:
        raise ValueError("no shape of states")
    return sides
