"""What ``predict`` embeds: images or sounds of a folder or a glob, the same or texts of a table, lines of a file."""

import glob
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import ImageFile
from mmtune.ground.records import MEDIA_WORDS, BadItem, MediaReference, a_type, printable
from mmtune.ground.sound_reading import SOUND_SUFFIXES, SoundFile, require_packages
from mmtune.sources._pairs import NUM_THREADS
from mmtune.sources._table import SUFFIXES, as_text, format_of, is_missing, nearest, read_table
from mmtune.sources.image_folder import IMAGE_SUFFIXES, images_below

InputKind = Literal["image", "audio", "text"]

COLUMNS: dict[InputKind, tuple[str, ...]] = {
    "image": ("image", "file_name"),
    "audio": ("audio",),
    "text": ("text", "caption"),
}
"""Columns that are looked for where none is named."""

FILES: dict[InputKind, tuple[type[ImageFile] | type[SoundFile], frozenset[str]]] = {
    "image": (ImageFile, IMAGE_SUFFIXES),
    "audio": (SoundFile, SOUND_SUFFIXES),
}
"""What a path stands for, and the endings of its kind."""


ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".parquet", ".arrow")
"""Endings of files that hold many images or sounds."""


@dataclass(frozen=True)
class EmbeddingInput:
    """What is to be embedded, in the order in which it will be.

    Attributes:
        kind: what the items are.
        ids: one per item: the ``id`` column, the file's path or ``file:line``.
        items: references, or texts.
        bad: what was found bad already, with its reason.
        fingerprint: changes when any item does (for files: path, size or time of change).
        asked: what a table says beside each item, "" where nothing was looked for.
    """

    kind: InputKind
    ids: tuple[str, ...]
    items: Sequence[MediaReference | str]
    bad: tuple[BadItem, ...]
    fingerprint: str
    asked: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Listed:
    where: str
    id: str
    value: str
    asked: str = ""


def list_input(
    source: str | Path | Sequence[str | Path],
    kind: InputKind | None = None,
    *,
    column: str | None = None,
    images: str | Path | None = None,
    modality: Literal["image", "audio"] = "image",
    ask_column: str | None = None,
) -> EmbeddingInput:
    """Find out what ``source`` is and list it; headers of images and sounds are checked, nothing is decoded.

    Args:
        source: a folder (every image, or sound, below it), a file, a glob of them (``**`` for all depths), a table
            (JSON lines, CSV, TSV), or a ``.txt`` (a text or a path per line); of several, each a file of one image or
            sound, as a shell makes them of a glob.
        kind: ``image``, ``audio`` or ``text``; None: what ``source`` holds, texts for a ``.txt``.
        column: the table's column; None: ``image`` or ``file_name``, ``audio``, ``text`` or ``caption``.
        images: folder that a table's or list's paths start from; None: the folder it lies in.
        modality: what is taken from a folder or a glob where ``kind`` does not say.
        ask_column: of a table, what is asked about each image.

    Raises:
        DataError: there is nothing, or it is not clear what is meant.
    """
    if not isinstance(source, str | Path):
        if len(source) != 1:
            return _of_several([Path(each) for each in source], kind or modality, column)
        source = source[0]
    path = Path(source)
    suffix = path.suffix.lower()
    bad: list[BadItem] = []
    if path.is_file() and suffix in SUFFIXES:
        kind, listed = _of_table(path, kind, column, bad, ask_column)
    elif path.is_file() and suffix == ".txt":
        kind, listed = kind or "text", _of_lines(path)
    elif kind == "text":
        raise DataError(f"{source}: texts come from a table ({', '.join(SUFFIXES)}) or a .txt with a text per line")
    else:
        kind = kind or modality
        listed = _of_files(path, kind)
    if (column is not None or ask_column is not None) and suffix not in SUFFIXES:
        raise DataError(f"{source} is no table and has no column '{column or ask_column}'")
    listing = path.is_file() and suffix in (*SUFFIXES, ".txt")
    root = Path(images) if listing and images is not None else path.parent if listing else Path("")
    made = _texts(listed, bad) if kind == "text" else _references(listed, root, bad, kind)
    if not made.items:
        first = f"; first: {bad[0].where}: {bad[0].reason}" if bad else ""
        where = f"; {FILES[kind][0].noun} paths start from {root.resolve()}" if listing and kind != "text" else ""
        where += f" (looked for {MEDIA_WORDS[kind]})" if path.is_dir() and kind != "text" else ""
        raise DataError(f"{source}: nothing to embed, {len(bad)} bad{first}{where}")
    return made


def _of_several(paths: list[Path], kind: InputKind, column: str | None) -> EmbeddingInput:
    """Files of images or sounds, each once, in the order given."""
    alone = "give a folder, a glob in quotes, a table or a .txt alone"
    if not paths:
        raise DataError("no input: give a folder, a glob, a table (JSON lines, CSV, TSV) or a .txt")
    for path in paths:
        if kind == "text" or column is not None or path.is_dir() or path.suffix.lower() in (*SUFFIXES, ".txt"):
            raise DataError(f"{len(paths)} inputs, among them {path}: several are files of images or sounds; {alone}")
    _refuse_archives(paths)
    bad: list[BadItem] = []
    listed = [one for path in dict.fromkeys(paths) for one in _of_files(path, kind)]
    made = _references(listed, Path(""), bad, kind)
    if not made.items:
        raise DataError(f"nothing to embed, {len(bad)} bad; first: {bad[0].where}: {bad[0].reason}")
    return made


def _refuse_archives(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.suffix.lower() in ARCHIVES and path.is_file():
            raise DataError(
                f"{path}: tars, archives and parquet files are not taken here: unpack it, and give the folder"
            )


def _of_files(path: Path, kind: InputKind) -> list[_Listed]:
    """The files of a folder or a glob; their ids are paths within the folder, or as the glob gives them."""
    if path.is_dir():
        found = images_below(path, FILES[kind][1])
        return [_Listed(str(file), file.relative_to(path).as_posix(), str(file)) for file in found]
    names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    files = [name for name in names if os.path.isfile(name)]
    _refuse_archives([Path(name) for name in files])
    if not files and not glob.has_magic(str(path)):
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"no such file or folder: {path}{nearest(path.name, siblings)}")
    if not files:
        raise DataError(f"{path} matches no file")
    return [_Listed(name, name, name) for name in files]


def _of_lines(path: Path) -> list[_Listed]:
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8: byte {problem.start}") from None
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    return [_Listed(f"{path}:{number}", f"{path.name}:{number}", line) for number, line in lines if line.strip()]


def _of_table(
    path: Path, kind: InputKind | None, column: str | None, bad: list[BadItem], ask_column: str | None = None
) -> tuple[InputKind, list[_Listed]]:
    table = read_table(path, format_of(path))
    bad += table.bad
    kind, column = _choose_column(path, table.columns, kind, column)
    kind = kind or _kind_of([row.values.get(column) for row in table.rows])
    if ask_column is not None and ask_column not in table.columns:
        raise DataError(f"{path} has no column '{ask_column}'{nearest(ask_column, table.columns)}")
    listed = []
    for row in table.rows:
        value = row.values.get(column)
        if is_missing(value):
            bad.append(BadItem(row.where, f"empty cell: column '{column}'"))
        elif not isinstance(value, str):
            bad.append(BadItem(row.where, f"not text: column '{column}' holds {a_type(value)}"))
        elif ask_column is not None and is_missing(row.values.get(ask_column)):
            bad.append(BadItem(row.where, f"empty cell: column '{ask_column}'"))
        else:
            asked = as_text(row.values.get(ask_column)).strip() if ask_column is not None else ""
            fallback = value.strip() if kind != "text" else f"{path.name}:{row.where.rsplit(':', 1)[1]}"
            listed.append(_Listed(row.where, as_text(row.values.get("id")).strip() or fallback, value.strip(), asked))
    return kind, listed


def _choose_column(
    path: Path, columns: tuple[str, ...], kind: InputKind | None, column: str | None
) -> tuple[InputKind | None, str]:
    if column is not None:
        if column not in columns:
            raise DataError(f"{path} has no column '{column}'{nearest(column, columns)}")
        known: dict[str, InputKind] = {name: kind for kind, names in COLUMNS.items() for name in names}
        return kind or known.get(column), column
    found = {each: [name for name in names if name in columns] for each, names in COLUMNS.items()}
    kinds = [each for each in COLUMNS if found[each] and kind in (None, each)]
    if len(kinds) == 1:
        return kinds[0], found[kinds[0]][0]
    wanted = ", ".join(name for each in COLUMNS for name in COLUMNS[each] if kind in (None, each))
    if not kinds:
        raise DataError(f"{path} has no column {wanted}; it has {', '.join(columns) or 'none'}; name one with --column")
    there = " and ".join([*(MEDIA_WORDS[each] for each in kinds if each != "text"), "texts"])
    raise DataError(f"{path} has {there}: say which with --kind {' or --kind '.join(kinds)}")


def _kind_of(values: Sequence[object]) -> InputKind:
    """Images or sounds where most cells of a column are names of such files, texts otherwise."""
    endings = [Path(value.strip()).suffix.lower() for value in values if isinstance(value, str)]
    for kind, (_, suffixes) in FILES.items():
        if sum(ending in suffixes for ending in endings) > len(values) / 2:
            return kind
    return "text"


def _references(listed: list[_Listed], root: Path, bad: list[BadItem], kind: InputKind) -> EmbeddingInput:
    if kind == "audio":
        require_packages()
    references = [FILES[kind][0](os.path.join(root, one.value)) for one in listed if "\0" not in one.value]
    listed = [one for one in listed if "\0" not in one.value]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        reasons = list(pool.map(_check, references))
    whole = [place for place, reason in enumerate(reasons) if reason is None]
    bad += [BadItem(listed[place].where, str(reason)) for place, reason in enumerate(reasons) if reason is not None]
    kept = [references[place] for place in whole]
    ids = tuple(printable(listed[place].id) for place in whole)
    stats = [os.stat(reference.key) for reference in kept]
    marks = [
        f"{reference.key}\0{stat.st_size}\0{stat.st_mtime_ns}" for reference, stat in zip(kept, stats, strict=True)
    ]
    asked = tuple(listed[place].asked for place in whole)
    return EmbeddingInput(kind, ids, kept, tuple(bad), _fingerprint(ids, marks), asked)


def _check(reference: ImageFile | SoundFile) -> str | None:
    return reference.check()


def _texts(listed: list[_Listed], bad: list[BadItem]) -> EmbeddingInput:
    texts, ids = [one.value for one in listed], tuple(printable(one.id) for one in listed)
    return EmbeddingInput("text", ids, texts, tuple(bad), _fingerprint(ids, texts))


def _fingerprint(ids: Sequence[str], marks: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name, mark in zip(ids, marks, strict=True):
        digest.update(f"{name}\1{mark}\2".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
