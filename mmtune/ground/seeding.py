"""Randomness as a function of names, never of a global generator's history."""

import hashlib

import numpy as np


def seed_for(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, the same on every machine and Python.

    Names of files that are not UTF-8 are welcome: Python reads their bytes as lone surrogates.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *names: object) -> np.random.Generator:
    """A fresh numpy generator for the draw called ``names``."""
    return np.random.Generator(np.random.PCG64(seed_for(seed, *names)))


def fraction_for(name: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on ``name`` alone: used to split data by hash."""
    return seed_for(0, "fraction", salt, name) / 2**63


def text_key(text: str) -> int:
    """A 63-bit identity of a caption: equal for captions that differ only in unicode form, case or white space.

    "Red Shirt" and "red  shirt" are one caption: CLIP's tokenizer composes, lowers and collapses white space, so that
    their embeddings are equal and no loss or score could tell them apart. SigLIP's lower too; SigLIP 2 alone sees
    repeated blanks, which say nothing about an image.

    Source: transformers' ``CLIPTokenizer``, ``SiglipTokenizer`` and ``Siglip2Tokenizer``; collisions are
    below 1e-7 for a million captions (birthday bound at 2**63).
    """
    import unicodedata

    return seed_for(0, "text", " ".join(unicodedata.normalize("NFC", text).lower().split()))
