"""What a row says of its image: a path that stays within its folder, or why it is none."""

import os
from pathlib import Path


class BadRow(Exception):
    """A row of which nothing can be kept; the message is the reason."""


def is_address(path: str) -> bool:
    """Whether a text names a place on a network, or embeds a file, instead of naming one here."""
    return path.split("://")[0].lower() in ("http", "https", "ftp", "s3", "gs", "file") or path.startswith("data:")


def name_within(path: str, folder: Path, *, confined: bool, noun: str = "image") -> str:
    """A path relative to the folder, normalised.

    Args:
        path: as a row writes it.
        folder: what relative paths start from.
        confined: paths that lead out of ``folder`` are bad.
        noun: what the message calls it.

    Raises:
        BadRow: it is an address, or leads out of the folder.
    """
    if is_address(path):
        raise BadRow(f"{noun} is an address: '{path[:200]}'; fetch the files first and give their paths")
    root = os.path.abspath(folder)
    name = os.path.relpath(os.path.join(root, path), root).replace(os.sep, "/")
    if name != ".." and not name.startswith("../"):
        return name
    if confined:
        raise BadRow(f"{noun} outside its folder: '{path}' leads out of '{folder}'")
    return os.path.normpath(path) if os.path.isabs(path) else name
