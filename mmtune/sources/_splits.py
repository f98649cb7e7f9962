"""Which split an image belongs to: by a column, by its file, or by the hash of a group that is never torn apart."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from mmtune.ground.durations import Duration, Span, parse_span
from mmtune.ground.errors import DataError
from mmtune.ground.sections import StrictSection
from mmtune.ground.seeding import fraction_for

SplitName = Literal["train", "validation", "test"]

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
"""From seen to held out: an image that two splits claim stays in the later one."""


def split_name(text: str) -> SplitName:
    """The split of that name."""
    return next(name for name in SPLITS if name == text)


def _as_share(value: object) -> Span:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"a share needs its percent sign: '{value:g}%'")
    span = parse_span(value)
    if span.unit != "%":
        raise ValueError(f"'{span}' is no share of the data; write a percentage such as '5%'")
    return span


Share = Annotated[
    Duration, BeforeValidator(_as_share), WithJsonSchema({"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%\s*$"})
]
"""A percentage such as ``5%``."""


class HashSplit(StrictSection):
    """Shares of one table or folder, by hash: the same images whatever the seed, the order of rows or new rows."""

    validation: Share = Field(Span(0, "%"), description="share of the groups that validate, such as 5%")
    test: Share = Field(Span(0, "%"), description="share of the groups that test, such as 5%")
    by: str | None = Field(
        None,
        description="column whose value names the group (a product, a patient): rows of one group are never in two "
        "splits; null: the image",
    )

    @model_validator(mode="after")
    def _leave_some(self) -> "HashSplit":
        if self.validation.amount + self.test.amount >= 100:
            raise ValueError("validation and test take everything, which leaves nothing to train on")
        return self

    @property
    def names(self) -> tuple[SplitName, ...]:
        """The splits that get a share; ``train`` gets the rest."""
        shares = {"train": 1.0, "validation": self.validation.amount, "test": self.test.amount}
        return tuple(name for name in SPLITS if shares[name] > 0)

    def assign(self, group: str) -> SplitName:
        """The split of a group, a function of its name and the shares."""
        place = 100 * fraction_for(group, "split")
        if place < self.test.amount:
            return "test"
        return "validation" if place < self.test.amount + self.validation.amount else "train"


class ColumnSplit(StrictSection):
    """Splits that the table names: for each of our names the value (or values) in the column."""

    train: str | list[str] | None = Field(None, description="value or values of the column that mean train")
    validation: str | list[str] | None = Field(None, description="value or values of the column that mean validation")
    test: str | list[str] | None = Field(None, description="value or values of the column that mean test")
    column: str = Field("split", description="column that names the split; rows with other values are left out")

    @model_validator(mode="after")
    def _name_each_once(self) -> "ColumnSplit":
        listed = [value for name in SPLITS for value in self._values(name)]
        twice = sorted(value for value, count in Counter(listed).items() if count > 1)
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} would be in two splits")
        if not listed:
            raise ValueError("no split is named; write for example {train: train, validation: val, test: test}")
        return self

    def _values(self, name: SplitName) -> list[str]:
        value = getattr(self, name)
        return [value] if isinstance(value, str) else list(value or [])

    @property
    def names(self) -> tuple[SplitName, ...]:
        """The splits that are mapped."""
        return tuple(name for name in SPLITS if self._values(name))

    @property
    def name_of(self) -> dict[str, SplitName]:
        """Value in the column -> our name."""
        return {value: name for name in SPLITS for value in self._values(name)}

    def check_values(self, seen: Mapping[str, int], where: str) -> None:
        """Every split that is mapped occurs.

        Raises:
            DataError: a split has no row; the values that occur are listed.
        """
        empty = [name for name in self.names if not any(value in seen for value in self._values(name))]
        if empty:
            there = ", ".join(f"'{value}' ({count} rows)" for value, count in list(seen.items())[:12]) or "none"
            wanted = ", ".join(f"{name}: {getattr(self, name)!r}" for name in empty)
            raise DataError(f"splits: {where} has no row for {wanted}; column '{self.column}' holds {there}")


class SplitFiles(StrictSection):
    """One table per split."""

    train: str | None = Field(None, description="file of the train split (or a pattern, where several are read)")
    validation: str | None = Field(None, description="file of the validation split, or a pattern")
    test: str | None = Field(None, description="file of the test split, or a pattern")

    @model_validator(mode="after")
    def _name_one(self) -> "SplitFiles":
        if not self.files:
            raise ValueError("no file is named; write for example {train: train.csv, test: test.csv}")
        return self

    @property
    def files(self) -> dict[SplitName, str]:
        """Split -> path, for those that are named."""
        named = {name: getattr(self, name) for name in SPLITS}
        return {name: path for name, path in named.items() if path is not None}


def paths_by_split(path: str | SplitFiles) -> dict[str, str]:
    """Split -> path; "" stands for a path that holds all of them."""
    if isinstance(path, str):
        return {"": path}
    return {str(name): each for name, each in path.files.items()}


def splits_named(path: str | SplitFiles, chosen: "HashSplit | ColumnSplit | None") -> tuple[SplitName, ...]:
    """The splits that a section names: by a path each, or as ``chosen`` divides the one path. Nothing is opened."""
    if isinstance(path, SplitFiles):
        return tuple(path.files)
    return chosen.names if chosen is not None else ()


class SplitFolders(StrictSection):
    """One folder of images per split."""

    train: str | None = Field(None, description="folder of the train split's images")
    validation: str | None = Field(None, description="folder of the validation split's images")
    test: str | None = Field(None, description="folder of the test split's images")

    @model_validator(mode="after")
    def _name_one(self) -> "SplitFolders":
        if not self.folders:
            raise ValueError("no folder is named; write for example {train: train2017, validation: val2017}")
        return self

    @property
    def folders(self) -> dict[SplitName, str]:
        """Split -> folder, for those that are named."""
        named = {name: getattr(self, name) for name in SPLITS}
        return {name: path for name, path in named.items() if path is not None}


class SplitLists(StrictSection):
    """For each of our splits the name (or names) that a data set gives it."""

    train: str | list[str] | None = Field(None, description="name or names of the data set's splits that train")
    validation: str | list[str] | None = Field(None, description="name or names of the splits that validate")
    test: str | list[str] | None = Field(None, description="name or names of the splits that test")

    @model_validator(mode="after")
    def _name_each_once(self) -> "SplitLists":
        listed = [name for names in self.names.values() for name in names]
        twice = sorted(name for name, count in Counter(listed).items() if count > 1)
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} would be in two splits")
        if not listed:
            raise ValueError("no split is named; write for example {train: train, validation: validation, test: test}")
        return self

    @property
    def names(self) -> dict[SplitName, list[str]]:
        """Split -> the data set's names for it, for those that are named."""
        given = {name: getattr(self, name) for name in SPLITS}
        return {name: [value] if isinstance(value, str) else value for name, value in given.items() if value}


def check_one_way(path: str | SplitFiles, split: HashSplit | None, splits: StrictSection | None) -> None:
    """A table is split in exactly one way: by hash, by what its rows say, or by one file per split.

    Raises:
        ValueError: none or several are given.
    """
    given = [name for name, value in (("split", split), ("splits", splits)) if value is not None]
    if not isinstance(path, str) and given:
        raise ValueError(f"path names one file per split already; delete {' and '.join(given)}")
    if len(given) == 2:
        raise ValueError("split is by hash and splits is by a column; delete one of them")
    if isinstance(path, str) and not given:
        raise ValueError(
            "how is the table split? write split: {validation: 5%, test: 5%} (by hash), "
            "splits: {train: train, validation: val, test: test} (by a column), or one file per split in path"
        )


def most_held_out(names: Iterable[SplitName]) -> SplitName:
    """Of several splits that claim an image, the one that keeps it: test before validation before train."""
    return max(names, key=SPLITS.index)


def join_groups(pairs: Iterable[tuple[Hashable, str]]) -> dict[str, str]:
    """Groups that share an image become one, named after the smallest: (image, group) -> {group: its new name}."""
    leader: dict[str, str] = {}

    def find(group: str) -> str:
        leader.setdefault(group, group)
        while leader[group] != group:
            leader[group] = leader[leader[group]]
            group = leader[group]
        return group

    first_of: dict[Hashable, str] = {}
    for image, group in pairs:
        one, other = find(first_of.setdefault(image, group)), find(group)
        leader[max(one, other)] = min(one, other)
    return {group: find(group) for group in list(leader)}
