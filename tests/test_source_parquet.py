"""Parquet files that hold images: read by row group, known by their bytes, quarantined cell by cell."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_bytes import HUGE_HEADER, first_channel, image_bytes
from pydantic import ValidationError
from small_runs import small_recipe

from mmtune.ground.errors import DataError
from mmtune.recipe_schema import recipe_from_json, resolved_json
from mmtune.sources import OpenedSplit, _column_files, _columns, split_names
from mmtune.sources.parquet import Section, open_split


def write(path: Path, *rows: dict[str, Any], groups: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=groups)
    return path


def cell(number: int) -> dict[str, Any]:
    return {"bytes": image_bytes(number), "path": f"{number}.png"}


def section(path: Path | str | dict[str, str], **settings: Any) -> Section:
    if not isinstance(path, dict) and "splits" not in settings:
        settings.setdefault("split", {})
    return Section(kind="parquet", path=path if isinstance(path, dict) else str(path), **settings)


def opened(path: Path | str | dict[str, str], which: str = "train", **settings: Any) -> OpenedSplit:
    return open_split(section(path, **settings), which, seed=0)


def numbers(found: OpenedSplit) -> list[int]:
    return [first_channel(sample.media.read()) for sample in found.samples]


@pytest.mark.parametrize("wrapped", [True, False])
def test_images_in_cells(tmp_path: Path, wrapped: bool) -> None:
    rows = [{"image": cell(n) if wrapped else image_bytes(n), "caption": [f"c{n}", f"d{n}"]} for n in range(8)]
    found = opened(write(tmp_path / "a.parquet", *rows))
    assert numbers(found) == list(range(8)) and not found.bad
    assert found.samples[4].captions == ("c4", "d4")
    assert found.samples[4].media.where == f"{tmp_path}/a.parquet: row 5"
    again = pickle.loads(pickle.dumps(found.samples[7].media))
    assert again == found.samples[7].media and first_channel(again.read()) == 7, "a worker gets it whole"
    assert len(pickle.dumps(again)) < 600, "and small"


def test_equal_bytes_are_one_image_in_whatever_file(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"image": cell(1), "caption": "a"}, {"image": cell(2), "caption": "b"})
    write(tmp_path / "2.parquet", {"image": {"bytes": image_bytes(1), "path": None}, "caption": "c"})
    found = opened(tmp_path / "*.parquet")
    assert [sample.captions for sample in found.samples] == [("a", "c"), ("b",)]
    moved = tmp_path / "deep" / "other.parquet"
    moved.parent.mkdir()
    (tmp_path / "1.parquet").rename(moved)
    assert [one.id for one in opened(moved).samples] == [one.id for one in found.samples], "ids survive a move"


def test_several_files_by_braces_and_one_pattern_per_split(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"part-{n:02d}.parquet", {"image": cell(n), "caption": "x"})
    write(tmp_path / "held.parquet", {"image": cell(9), "caption": "y"}, {"image": cell(0), "caption": "leaks"})
    path = {"train": f"{tmp_path}/part-{{00..02}}.parquet", "test": f"{tmp_path}/held.parquet"}
    assert split_names(section(path)) == ("train", "test")
    assert numbers(opened(path, "test")) == [9, 0]
    train = opened(path)
    assert numbers(train) == [1, 2] and "another split" in train.bad[0].reason
    with pytest.raises(DataError, match=r"data.path: no such file: .*03.parquet, .*04.parquet"):
        opened(f"{tmp_path}/part-{{00..04}}.parquet")
    with pytest.raises(DataError, match="no such file: .*holds .*held.parquet"):
        opened(tmp_path / "none*.parquet")


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    for n in (2, 0, 1):
        write(tmp_path / "pq" / f"part-{n}.parquet", {"image": cell(n), "caption": "x"})
    write(tmp_path / "pq" / "below" / "part-3.parquet", {"image": cell(3), "caption": "x"})
    (tmp_path / "pq" / "README.md").write_text("no table")
    assert numbers(opened(tmp_path / "pq")) == [0, 1, 2]
    assert numbers(opened({"train": f"{tmp_path}/pq", "test": f"{tmp_path}/pq/below"}, "test")) == [3]
    (tmp_path / "none" / "pq").mkdir(parents=True)
    write(tmp_path / "none" / "pq" / "a.parquet", {"image": cell(3), "caption": "x"})
    with pytest.raises(
        DataError, match=r"data.path: .*none is a folder without \*.parquet; it holds pq; write '.*none/"
    ):
        opened(tmp_path / "none")


def test_the_nearest_neighbours_are_listed(tmp_path: Path) -> None:
    for n in range(20):
        write(tmp_path / f"a{n:02d}.parquet", {"image": cell(n), "caption": "x"})
    write(tmp_path / "products.parquet", {"image": cell(1), "caption": "x", **{f"c{n}": "" for n in range(20)}})
    with pytest.raises(DataError, match="no such file: .*; .* holds products.parquet, a"):
        opened(tmp_path / "prodcuts.parquet")
    with pytest.raises(DataError, match="there are: 'caption', "):
        opened(tmp_path / "products.parquet", caption="captn")


def test_splits_by_column_and_by_hash_of_a_group(tmp_path: Path) -> None:
    rows = [{"image": cell(n), "caption": "x", "fold": ("a", "b")[n % 2], "shop": n // 10} for n in range(60)]
    path = write(tmp_path / "a.parquet", *rows, groups=7)
    assert numbers(opened(path, "test", splits={"train": "a", "test": "b", "column": "fold"})) == list(range(1, 60, 2))
    halves = [numbers(opened(path, name, split={"test": "50%", "by": "shop"})) for name in ("train", "test")]
    assert sorted(sum(halves, [])) == list(range(60))
    assert not {n // 10 for n in halves[0]} & {n // 10 for n in halves[1]}
    with pytest.raises(DataError, match="has no row for test: 'c'; column 'fold' holds 'a'"):
        opened(path, splits={"train": "a", "test": "c", "column": "fold"})


def test_captions_and_ids_from_columns(tmp_path: Path) -> None:
    rows = [
        {"image": cell(1), "title": "cup", "price": 3.5, "sku": 7, "tags": ["a", None]},
        {"image": cell(2), "title": None, "price": 1.0, "sku": 8, "tags": []},
    ]
    path = write(tmp_path / "a.parquet", *rows)
    found = opened(path, caption="{title} for {price}", id="sku")
    assert [(one.id, one.captions) for one in found.samples] == [("7", ("cup for 3.5",))]
    assert [item.reason for item in found.bad] == ["empty caption: column 'title' of the template"]
    tags = opened(path, caption="tags")
    assert [one.captions for one in tags.samples] == [("a",)]
    assert [item.reason for item in tags.bad] == [
        "empty caption: column 'tags', item 2 of its list; the row stays with its other captions",
        "empty caption: column 'tags' is an empty list",
    ]


def test_bad_cells_are_quarantined_one_by_one(tmp_path: Path) -> None:
    cells = [cell(0), {"bytes": b"", "path": None}, {"bytes": b"<html>", "path": None}, None]
    cells += [{"bytes": HUGE_HEADER, "path": None}, {"bytes": None, "path": "gone.png"}, {"bytes": None, "path": None}]
    rows = [{"image": each, "caption": "x"} for each in cells]
    path = write(tmp_path / "a.parquet", *rows)
    found = opened(path)
    assert numbers(found) == [0] and found.num_seen == len(cells)
    reasons = {item.where.removeprefix(f"{path}: "): item.reason for item in found.bad}
    assert reasons["row 2"] == "the file is empty"
    assert reasons["row 3"].startswith("not an allowed format: a web page")
    assert reasons["row 4"] == reasons["row 7"] == "no image: column 'image' is empty"
    assert reasons["row 5"].startswith("too many pixels")
    assert reasons[str(tmp_path / "gone.png")] == "no such file"


def test_a_bad_cell_counts_for_the_split_that_its_row_names(tmp_path: Path) -> None:
    names = ["train"] * 3 + ["val"] * 2 + ["elsewhere"]
    rows = [{"image": cell(n), "caption": "x", "split": name} for n, name in enumerate(names)]
    rows[4]["image"] = rows[5]["image"] = {"bytes": b"<html>", "path": None}
    path, splits = write(tmp_path / "a.parquet", *rows), {"train": "train", "validation": "val"}
    assert opened(path, splits=splits).bad == ()
    held = opened(path, "validation", splits=splits)
    assert [item.where for item in held.bad] == [f"{path}: row 5"] and held.num_seen == 2


def test_a_wrong_column_is_said_once_for_all_files(tmp_path: Path) -> None:
    for n in range(30):
        write(tmp_path / f"{n:02d}.parquet", {"image": cell(n), "text": "x"})
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "*.parquet")
    first = f"data.caption: 30 files (the first: {tmp_path}/00.parquet) have no column 'caption'"
    assert str(caught.value) == f"{first}; there are: 'image', 'text'"


def test_paths_in_cells(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(image_bytes(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "2.png").write_bytes(image_bytes(2))
    path = write(tmp_path / "data" / "a.parquet", {"image": "1.png", "caption": "x"}, {"image": "../b", "caption": "x"})
    found = opened(path, images=str(tmp_path / "pictures"))
    assert numbers(found) == [1] and found.samples[0].id == "1.png"
    assert found.bad[0].reason.startswith("image outside its folder")
    beside = write(tmp_path / "data" / "b.parquet", {"image": "2.png", "caption": "x"})
    assert numbers(opened(beside)) == [2], "without images, from the file's folder"
    held = write(tmp_path / "c.parquet", {"image": cell(1), "caption": "x"})
    with pytest.raises(DataError, match=r"data.images: column 'image' holds the images themselves .*leave images out"):
        opened(held, images=str(tmp_path / "pictures"))


def test_files_and_columns_that_are_wrong_come_at_once(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {"img": cell(1), "text": "x"})
    (tmp_path / "2.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:100])
    (tmp_path / "3.parquet").write_bytes(b"hello")
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "*.parquet", split={"test": "10%", "by": "shop"})
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0].split(" is ")[0] for line in lines] == [
        "data.image",
        "data.split.by",
        "data.caption",
        f"{tmp_path}/2.parquet",
        f"{tmp_path}/3.parquet",
    ]
    assert "no column 'image'; did you mean 'img'?" in lines[0] and "damaged, or neither parquet nor arrow" in lines[3]


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": cell(1), "caption": "x"})
    old = opened(path).samples[0]
    write(path, {"image": cell(2), "caption": "longer"}, {"image": cell(3), "caption": "y"})
    with pytest.raises(DataError, match="row 1: the file changed"):
        old.media.read()
    assert numbers(opened(path)) == [2, 3], "what is known of a file ends with it"


def test_images_are_hashed_once_and_never_all_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": cell(n), "caption": "x"} for n in range(200)]
    path = write(tmp_path / "a.parquet", *rows, groups=100)
    sizes, checked = [], []
    real = _columns.check_header
    monkeypatch.setattr(_columns, "check_header", lambda content: checked.append(1) or real(content))
    batches = _column_files.ParquetFile.batches

    def watched(self: Any, *given: Any) -> Any:
        for batch in batches(self, *given):
            sizes.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(_column_files.ParquetFile, "batches", watched)
    split = {"test": "50%"}
    both = [opened(path, name, split=split) for name in ("train", "test")]
    assert len(checked) == 200 == sum(len(one.samples) for one in both)
    assert max(sizes) <= _column_files.ROWS_AT_ONCE


def test_text_that_is_not_utf8_is_quarantined(tmp_path: Path) -> None:
    captions = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    images = pa.array([cell(number) for number in range(3)])
    table = pa.table({"image": images, "caption": captions.view(pa.string()), "raw": captions})
    pq.write_table(table, tmp_path / "a.parquet")
    found = opened(tmp_path / "a.parquet")
    assert [one.captions for one in found.samples] == [("good",), ("fine",)]
    assert [item.reason for item in found.bad] == ["caption is not text: column 'caption' holds a bytes"]
    with pytest.raises(DataError, match="caption is not text: column 'raw' holds a bytes"):
        opened(tmp_path / "a.parquet", caption="raw")
    assert [one.id for one in opened(tmp_path / "a.parquet", id="raw").samples] == ["good", "fine"]


def test_groups_that_are_too_large_to_hold_are_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrapped in (True, False):
        rows = [{"image": cell(n) if wrapped else image_bytes(n), "caption": "x"} for n in range(200)]
        found = opened(write(tmp_path / f"{wrapped}.parquet", *rows, groups=150))
        monkeypatch.setattr(_columns, "GROUP_LIMIT", 100)
        _columns._cells.cache_clear()
        assert numbers(found) == list(range(200))
        assert _columns._cells.cache_info().currsize == 0


def test_sections_that_cannot_be_meant() -> None:
    for settings, message in (
        ({"path": "a.parquet"}, "how is the table split"),
        ({"path": {"train": "a"}, "split": {"test": "5%"}}, "one file per split already"),
        ({"path": "a", "split": {}, "splits": {"train": "a"}}, "delete one of them"),
        ({"path": "a", "split": {}, "caption": "{x"}, "brace"),
        ({"path": "a", "split": {}, "columns": "x"}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            Section(kind="parquet", **settings)


def test_two_steps_read_by_workers(tmp_path: Path, tiny_clip_folder: Path) -> None:
    """Forked workers read the files that the parent has read before them."""
    from mmtune.training_run import fit

    path = write(tmp_path / "a.parquet", *({"image": cell(n), "caption": f"number {n}"} for n in range(12)))
    data = section(path, split={}).model_dump(mode="json")
    small = small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", "train.workers=2")
    run = fit(recipe_from_json({**resolved_json(small), "data": data}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "loss" in row]) == 2
    assert json.loads((run / "manifest.json").read_text())["data"]["samples_trained"] == 8
