"""Conversations for the tests of chat models: short, long, without an image, with several; encoded, as a batch."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from mmtune.ground.records import Turn

ROUNDING = 5e-5
"""Logits of spread 0.3 to 2 computed twice in float32, in other orders of summation and with other padding."""

SEEN = 1e-3
"""Least difference of logits that counts as one."""

ONE_EXCHANGE = ("paligemma", "florence2")
"""Models that take one question and no turns before it."""


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """Random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Shown:
    """An image of a conversation, made when it is read."""

    def __init__(self, number: int = 0, width: int = 60, height: int = 40) -> None:
        self.key = self.where = f"shown {number}"
        self.number, self.size = number, (width, height)

    def read(self) -> Image.Image:
        return picture(self.number, *self.size)


LONG = "three of them, I think, and a very small one that is hard to see"
EXCHANGES = (
    (Turn("user", (Shown(0), "What is it?")), Turn("assistant", ("a red dog",))),
    (Turn("user", (Shown(1, 40, 64), "How many apples are on the table?")), Turn("assistant", (LONG,))),
)
WITHOUT_IMAGE = (Turn("user", ("What is a dog?",)), Turn("assistant", ("no cat",)))
SEVERAL = (
    Turn("system", ("Say little.",)),
    Turn("user", (Shown(0), "and", Shown(1, 40, 64), "What are they?")),
    Turn("assistant", ("two pictures",)),
    Turn("user", ("Of what?",)),
    Turn("assistant", ("A dog. Yes.",)),
)


def encode(backbone: Any, turns: tuple[Turn, ...]) -> dict[str, torch.Tensor]:
    return backbone.family.encode_turns(backbone.processor, turns, images_of(turns))


def prompt_of(backbone: Any, turns: tuple[Turn, ...]) -> dict[str, torch.Tensor]:
    return backbone.family.encode_prompt(backbone.processor, turns, images_of(turns))


def images_of(turns: tuple[Turn, ...]) -> list[Any]:
    return [media.read() for turn in turns for media in turn.media]


def pad(backbone: Any, *encoded: Any, side: str = "right") -> dict[str, torch.Tensor]:
    return backbone.family.pad(backbone.processor, list(encoded), side=side)


def logits(backbone: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
