"""``kind: jsonl``, your own pairs: a table (JSON lines, CSV or TSV) that names images, or sounds, in a folder."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmtune.ground.errors import DataError
from mmtune.ground.image_reading import ImageFile
from mmtune.ground.sound_reading import SoundFile, require_packages
from mmtune.sources import OpenedSplit
from mmtune.sources._made_up import file_stem, group_name, make_up, picture, sound
from mmtune.sources._made_up_rows import made_up_rows, write_table
from mmtune.sources._pairs import Pair, Quarantine, RowReader, good_pairs, open_pairs, rows_by_column
from mmtune.sources._splits import ColumnSplit, HashSplit, SplitFiles, check_one_way, paths_by_split, splits_named
from mmtune.sources._table import SUFFIXES, TableFormat, format_of, read_table, require_columns
from mmtune.sources._table_section import TableSection

_KEYS = {"image": ("images", "image"), "audio": ("sounds", "audio")}
"""Modality -> the keys of its folder and of its column; the column's name is the key's, unless the recipe says."""

_FILES: dict[str, type[ImageFile] | type[SoundFile]] = {"image": ImageFile, "audio": SoundFile}


class Section(TableSection):
    """A table with one row per pair of an image (or a sound) and a caption; rows of one image become one sample.

    Say how it is split in one of three ways: ``split`` (by hash), ``splits`` (by a column) or one file per split::

        data: {kind: jsonl, path: pairs.csv, images: photos, caption: "{title} by {brand}",
               split: {validation: 5%, test: 5%, by: product_id}}
        data: {kind: jsonl, path: pairs.jsonl, images: photos, splits: {train: train, validation: val, test: test}}
        data: {kind: jsonl, path: {train: train.jsonl, validation: val.jsonl}, images: photos}
        data: {kind: jsonl, path: clips.csv, sounds: clips, audio: file, split: {validation: 5%, test: 5%}}

    With ``question`` (and ``answers``) every row is a question about its image; with ``label`` every row says whether
    its caption is true::

        data: {kind: jsonl, path: vqa.jsonl, images: photos, question: question, answers: answers, split: {test: 5%}}
        data: {kind: jsonl, path: nlvr.csv, images: photos, caption: sentence, label: label, split: {test: 5%}}
    """

    kind: Literal["jsonl"] = Field(description="a table of images or sounds with captions: JSON lines, CSV, TSV")
    path: str | SplitFiles = Field(description="the table, or one table per split: {train: a.csv, test: b.csv}")
    format: TableFormat | None = Field(
        None, description=f"null: by the file's ending ({', '.join(SUFFIXES)}); CSV and TSV need a header line"
    )
    images: str | None = Field(
        None,
        description="folder that holds the images, paths may not lead out of it; "
        "null: paths are absolute or start from the table's folder",
    )
    image: str | None = Field(None, description="column with the image's path; null: image")
    sounds: str | None = Field(
        None, description="folder that holds the sounds, as images; instead of images and image (needs mmtune[audio])"
    )
    audio: str | None = Field(
        None, description="column with the path of a sound: wav, flac, ogg, mp3; null: audio where sounds is given"
    )
    id: str | None = Field(
        None,
        description="column that identifies the image in reports, or with question or label the row; null: its path",
    )
    split: HashSplit | None = Field(
        None, description="split one table by hash of a group: {validation: 5%, test: 5%, by: product_id}"
    )
    splits: ColumnSplit | None = Field(
        None, description="split one table by a column: {train: train, validation: val, test: test, column: split}"
    )

    @model_validator(mode="after")
    def _check(self) -> "Section":
        check_one_way(self.path, self.split, self.splits)
        both = [[name for name in names if getattr(self, name) is not None] for names in _KEYS.values()]
        if all(both):
            raise ValueError(f"{both[0][0]} names images and {both[1][0]} names sounds; keep one of them")
        if self.format is None:
            for path in self._files.values():
                format_of(path)
        return self

    @property
    def modality(self) -> Literal["image", "audio"]:
        """What the table names."""
        return "image" if self.sounds is None and self.audio is None else "audio"

    @property
    def _files(self) -> dict[str, str]:
        """Split -> file; "" stands for a file that holds all of them."""
        return paths_by_split(self.path)


def split_names(section: Section) -> tuple[str, ...]:
    """The splits that the section names; no file is opened."""
    return splits_named(section.path, section.split or section.splits)


def open_split(section: Section, split: str, *, seed: int) -> OpenedSplit:
    """The samples of a split in the order of their first rows. Every line of the table and every image header of the
    split is checked here. ``seed`` changes nothing: the same images test, whatever the run's seed.

    An image that two splits claim stays in the one that is held out most (test, then validation); its rows in the
    others are quarantined. Lines that cannot be read count for the first split.

    Raises:
        DataError: a file, column or split is missing, nothing in the split is usable, or sounds cannot be read here.
    """
    if section.modality == "audio":
        require_packages()
    names = split_names(section)
    if split not in names:
        raise DataError(f"data has no split '{split}'; it has {', '.join(names)}")
    quarantine = Quarantine(names[0], _FILES[section.modality].noun)
    pairs = [pair for name in section._files for pair in _read_pairs(section, name, quarantine)]
    return open_pairs(pairs, section.split, split, quarantine)


def _read_pairs(section: Section, name: str, quarantine: Quarantine) -> list[Pair]:
    """The good rows of one file (that of the split ``name``, or "" for the one that holds all splits)."""
    path = Path(section._files[name])
    folder_key, column_key = _KEYS[section.modality]
    given = getattr(section, folder_key)
    folder = Path(given) if given is not None else path.parent
    if not folder.is_dir():
        raise DataError(f"data.{folder_key}: no such folder: {folder}")
    reader = RowReader(
        image=getattr(section, column_key) or column_key,
        caption=section.rule,
        folder=folder,
        confined=given is not None,
        id=section.id,
        by=section.split.by if section.split else None,
        file=_FILES[section.modality],
        asked=section.asked,
    )
    table = read_table(path, section.format or format_of(path))
    column = [("data.splits.column", section.splits.column)] if section.splits else []
    require_columns(table, reader.wanted() + column)
    for item in table.bad:
        quarantine.add(item.where, item.reason, name)
    rows = [(row, name) for row in table.rows]
    if section.splits is not None:
        rows = rows_by_column(section.splits, table.rows, str(path), quarantine)
    return good_pairs(reader, rows, quarantine)


def write_tiny(section: Section, folder: Path) -> Section:
    """Made-up images (or tones) and tables in the section's format; see `mmtune.sources`."""
    folder_key, column_key = _KEYS[section.modality]
    column = getattr(section, column_key) or column_key
    ending, draw = (".png", picture) if section.modality == "image" else (".wav", sound)
    inside = "" if getattr(section, folder_key) is not None else f"{folder_key}/"
    by = section.split.by if section.split and section.split.by != column else None
    group = group_name if by else lambda number, attempt: f"{inside}{file_stem(number, attempt)}{ending}"
    pictures = make_up(split_names(section), section.split, group)
    (folder / folder_key).mkdir(parents=True, exist_ok=True)
    for one in pictures:
        (folder / folder_key / f"{one.name}{ending}").write_bytes(draw(one.number))
    rows = made_up_rows(
        pictures,
        section.rule,
        id=section.id,
        by=by,
        splits=section.splits,
        modality=section.modality,
        asked=section.asked,
        listed=all((section.format or format_of(path)) == "jsonl" for path in section._files.values()),
    )
    written: dict[str, str] = {}
    for name, path in section._files.items():
        written[name] = str(folder / f"{name or 'pairs'}{Path(path).suffix}")
        there = [{**row, column: f"{inside}{one.name}{ending}"} for one, row in rows if name in ("", one.split)]
        write_table(Path(written[name]), section.format or format_of(path), there)
    moved = {} if inside else {folder_key: str(folder / folder_key)}
    tables = written[""] if isinstance(section.path, str) else section.path.model_copy(update=written)
    return section.model_copy(update={"path": tables, **moved})
