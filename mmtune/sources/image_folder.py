"""``kind: image_folder``, images that lie in folders: one folder per class, or a metadata file beside the images."""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, SourceSection
from mmtune.sources._captions import parse_caption
from mmtune.sources._made_up import file_stem, group_name, make_up, picture
from mmtune.sources._made_up_rows import made_up_rows, write_table
from mmtune.sources._pairs import Quarantine, RowReader, good_pairs, open_pairs
from mmtune.sources._splits import SPLITS, HashSplit, SplitName
from mmtune.sources._table import Row, Table, as_text, format_of, read_table, require_columns

SPLIT_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
METADATA = ("metadata.jsonl", "metadata.csv")

_READABLE = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".dib",
    ".gif",
    ".tif",
    ".tiff",
)
_PORTABLE = (".ppm", ".pgm", ".pbm", ".pnm")
_UNREADABLE = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".tga")

IMAGE_SUFFIXES = frozenset((*_READABLE, *_PORTABLE, *_UNREADABLE))
"""Files that are taken for images. Formats that are not allowed are among them: listed as bad, not passed over."""


class Section(SourceSection):
    """A folder of images, split by its subfolders ``train``, ``validation`` (or ``val``) and ``test``, or by hash.

    Where a folder holds ``metadata.jsonl`` or ``metadata.csv`` (column ``file_name``, as Hugging Face's imagefolder),
    its rows are the data; otherwise every image below it is, and the folder it lies in is its class::

        data: {kind: image_folder, path: birds, caption: "a photo of a {class}"}
        data: {kind: image_folder, path: scans, caption: text, split: {validation: 5%, test: 5%}}
    """

    kind: Literal["image_folder"] = Field(description="a folder per class, or a folder with a metadata file")
    path: str = Field(description="the folder")
    caption: str = Field(
        "a photo of a {class}",
        description="template over {class} (the folder's name, underscores read as blanks) and the columns of the "
        "metadata file, or one of those columns",
    )
    split: HashSplit | None = Field(
        None,
        description="split by hash of a group: {validation: 5%, test: 5%, by: class}; null: by the subfolders "
        "train, validation and test",
    )

    @field_validator("caption")
    @classmethod
    def _check_caption(cls, text: str) -> str:
        parse_caption(text)
        return text


def split_names(section: Section) -> tuple[str, ...]:
    """The splits of the section or, without a hash split, those whose folder exists.

    Raises:
        DataError: there is no such folder, or it is not clear how it is split.
    """
    if section.split is None:
        return tuple(_split_folders(section))
    _split_folders(section)
    return section.split.names


def splits_on_disk(section: Section) -> bool:
    """Without a hash split, subfolders say which splits there are."""
    return section.split is None


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split, in order of their paths (or of the metadata's rows), every image header checked.
    ``seed`` changes nothing: the same images test, whatever the run's seed.

    Raises:
        DataError: the folder, split or a column is missing, or nothing in the split is usable.
    """
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; {section.path} has {', '.join(names)}")
    quarantine = Quarantine(names[0])
    reader = RowReader(
        image="file_name",
        caption=parse_caption(section.caption),
        folder=Path(section.path),
        confined=True,
        by=section.split.by if section.split else None,
    )
    rows = _all_rows(section, reader, quarantine)
    return open_pairs(good_pairs(reader, rows, quarantine), section.split, split, quarantine)


def _split_folders(section: Section) -> dict[SplitName, str]:
    """Split -> name of its subfolder; empty where the section splits by hash."""
    root = Path(section.path)
    if not root.is_dir():
        raise DataError(f"data.path: no such folder: {root}")
    found: dict[SplitName, str] = {}
    for split in SPLITS:
        there = [name for name in SPLIT_FOLDERS[split] if (root / name).is_dir()]
        if len(there) > 1:
            raise DataError(f"{root} has both {' and '.join(there)}; keep one of them")
        if there:
            found[split] = there[0]
    if section.split is not None and found:
        raise DataError(
            f"data.split splits by hash, but {root} has the folders {', '.join(found.values())}; "
            "delete `split`, or point `path` to one of them"
        )
    if section.split is None and not found:
        raise DataError(
            f"{root} has no folder train, validation or test; make them, or split by hash with "
            "split: {validation: 5%, test: 5%}"
        )
    return found


def _all_rows(section: Section, reader: RowReader, quarantine: Quarantine) -> list[tuple[Row, str]]:
    """The rows of every split with the split's name ("" where a hash decides)."""
    root, folders = Path(section.path), _split_folders(section)
    whole = _metadata_of(root)
    if whole is not None:
        table = _metadata_rows(whole, root, root, reader, quarantine, "")
        return _in_split_folders(table, folders, quarantine) if folders else [(row, "") for row in table.rows]
    rows: list[tuple[Row, str]] = []
    for split, name in folders.items() or {"": "."}.items():
        metadata = _metadata_of(root / name)
        if metadata is not None:
            table = _metadata_rows(metadata, root, root / name, reader, quarantine, split)
        else:
            table = _class_rows(root, root / name, reader)
        rows += [(row, split) for row in table.rows]
    return rows


def _in_split_folders(table: Table, folders: dict[SplitName, str], quarantine: Quarantine) -> list[tuple[Row, str]]:
    """Rows of the top metadata file with the split whose folder their path begins with."""
    by_folder: dict[str, str] = {folder: split for split, folder in folders.items()}
    rows = []
    for row in table.rows:
        name = as_text(row.values.get("file_name"))
        split = by_folder.get(name.split("/")[0])
        if split is None:
            quarantine.add(row.where, f"image is in no split: '{name}' is in none of {', '.join(by_folder)}")
        else:
            rows.append((row, split))
    return rows


def _metadata_of(folder: Path) -> Path | None:
    there = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(there) > 1:
        raise DataError(f"{folder} has both {' and '.join(METADATA)}; keep one of them")
    return there[0] if there else None


def _metadata_rows(
    path: Path, root: Path, folder: Path, reader: RowReader, quarantine: Quarantine, split: str
) -> Table:
    """The metadata's rows with ``file_name`` made relative to ``root`` and the folder's name as ``class``."""
    table = read_table(path, format_of(path))
    for item in table.bad:
        quarantine.add(item.where, item.reason, split)
    require_columns(table, [("metadata", "file_name")])
    assert reader.caption is not None, "folders of images have captions"
    if not set(reader.caption.columns) & set(table.columns):
        columns = ", ".join(name for name in table.columns if name != "file_name")
        raise DataError(
            f"data.caption: '{reader.caption.text}' uses no column of {path}; it has {columns or 'none'} "
            "beside file_name: name one of them, or take the file away to use the class folders"
        )
    rows = tuple(replace(row, values=_located(row, root, folder)) for row in table.rows)
    table = replace(table, rows=rows, columns=(*table.columns, "class"))
    require_columns(table, reader.wanted())
    return table


def _located(row: Row, root: Path, folder: Path) -> dict[str, object]:
    name = row.values.get("file_name")
    if not isinstance(name, str) or not name.strip():
        return dict(row.values)
    path = os.path.normpath(os.path.join(folder, name.strip()))
    where = path if os.path.isabs(name) else os.path.relpath(path, root).replace(os.sep, "/")
    return {"class": _class_of(Path(path), folder), **row.values, "file_name": where}


def _class_of(path: Path, folder: Path) -> str:
    """The name of the folder that an image lies in; "" for one that lies in the split's folder itself."""
    return "" if os.path.abspath(path.parent) == os.path.abspath(folder) else path.parent.name.replace("_", " ")


def _class_rows(root: Path, folder: Path, reader: RowReader) -> Table:
    rows = tuple(
        Row(str(path), {"file_name": path.relative_to(root).as_posix(), "class": _class_of(path, folder)})
        for path in images_below(folder)
    )
    if not rows:
        raise DataError(f"no images below {folder}")
    table = Table(folder, rows, (), ("file_name", "class"))
    require_columns(table, reader.wanted())
    return table


def images_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """Image files (or others) by suffix, sorted; hidden files and folders are passed over, links followed once."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        visible = [] if real in seen else [name for name in folders if not name.startswith((".", "__MACOSX"))]
        folders[:] = sorted(visible)
        if real in seen:
            continue
        seen.add(real)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(where) / name


def write_tiny(section: Section, folder: Path) -> Section:
    """Made-up class folders, with metadata files where the caption needs columns; see `mmtune.sources`."""
    rule = parse_caption(section.caption)
    by_class = section.split is not None and section.split.by == "class"
    by = section.split.by if section.split and not by_class else None
    group = group_name if by else _tiny_class if by_class else _tiny_path
    pictures = make_up(section.split.names if section.split else SPLITS, section.split, group)
    tables: dict[str, list[dict[str, object]]] = {}
    for one, row in made_up_rows(pictures, rule, by=by):
        top = "" if section.split else f"{one.split}/"
        name = _tiny_path(one.number, one.attempt)
        if by_class:
            name = f"{_tiny_class(one.number, one.attempt).replace(' ', '_')}/{one.name}.png"
        (folder / top / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / top / name).write_bytes(picture(one.number))
        tables.setdefault(top, []).append({**row, "file_name": name})
    if not set(rule.columns) <= {"class"}:
        for top, rows in tables.items():
            written = [{key: value for key, value in row.items() if key != "class"} for row in rows]
            write_table(folder / top / METADATA[0], "jsonl", written)
    return section.model_copy(update={"path": str(folder)})


def _tiny_class(number: int, attempt: int) -> str:
    return f"spot {number % 6} {attempt}"


def _tiny_path(number: int, attempt: int) -> str:
    return f"spot_{number % 6}/{file_stem(number, attempt)}.png"
