"""Images and splits of the jsonl source: one sample per image, in one split, whatever the table says."""

import json
from pathlib import Path
from typing import Any

import pytest
from pair_tables import captions, make_images, opened, reasons, section, write_lines
from pydantic import ValidationError

from mmtune.ground.errors import DataError
from mmtune.sources import enforce_bad_limit, open_split, split_names
from mmtune.sources.jsonl import Section
from mmtune.sources.jsonl import open_split as open_unlimited


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images ``images/0.png`` ... ``9.png`` and nothing else."""
    return make_images(tmp_path)


# --- images


def test_bad_images_are_quarantined_one_by_one(folder: Path) -> None:
    (folder / "images" / "empty.png").write_bytes(b"")
    (folder / "images" / "page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "secret.png").write_bytes((folder / "images" / "0.png").read_bytes())
    names = ["0.png", "none.png", "empty.png", "page.jpg", "../secret.png", str(folder / "secret.png"), "sub/../1.png"]
    names += [".", "https://x.org/a.png", "a\0.png", str(folder / "images" / "2.png")]
    write_lines(folder, *({"image": name, "caption": "x"} for name in names))
    result = opened(folder)
    assert list(captions(result)) == ["0.png", "1.png", "2.png"]
    assert result.num_seen == len(names) == 3 + len(result.bad)
    found = {item.where.rsplit("/", 1)[-1]: item.reason for item in result.bad}
    assert found["none.png"] == "no such file"
    assert found["empty.png"] == "the file is empty"
    assert found["page.jpg"].startswith("not an allowed format: a web page")
    assert found["pairs.jsonl:5"].startswith("image outside its folder: '../secret.png'")
    assert found["pairs.jsonl:6"].startswith("image outside its folder: ")
    assert found["pairs.jsonl:9"].startswith("image is an address: ")
    assert all(item.split == "train" for item in result.bad)


def test_without_an_images_folder_paths_start_at_the_table(folder: Path) -> None:
    (folder / "images" / "p.csv").write_text(
        f"image,caption\n0.png,near\n{folder}/images/1.png,far\n../images/2.png,up\n"
    )
    result = open_unlimited(Section(kind="jsonl", path=str(folder / "images" / "p.csv"), split={}), "train", seed=0)
    assert captions(result) == {"0.png": ("near",), "1.png": ("far",), "2.png": ("up",)} and not result.bad


def test_ids(folder: Path) -> None:
    rows = [("0.png", "a"), ("1.png", "b"), ("2.png", "a"), ("0.png", "a"), ("3.png", None), ("4.png", 5)]
    write_lines(folder, *({"image": image, "caption": "x", "sku": sku} for image, sku in rows))
    result = opened(folder, id="sku")
    assert list(captions(result)) == ["a", "b", "5"]
    assert [reason.split(":")[0] for _, reason in reasons(result)] == ["empty cell", "id occurs twice"]


# --- splits


def many_rows(folder: Path, count: int = 300, **columns: Any) -> None:
    for number in range(count):
        (folder / "images" / f"m{number}.png").write_bytes((folder / "images" / "0.png").read_bytes())
    rows = [{"image": f"m{n}.png", "caption": f"c{n}"} for n in range(count)]
    write_lines(folder, *({**row, **{key: make(n) for key, make in columns.items()}} for n, row in enumerate(rows)))


def by_split(folder: Path, names: tuple[str, ...] = ("train", "validation", "test"), **settings: Any) -> dict[str, set]:
    return {name: {sample.id for sample in opened(folder, name, **settings).samples} for name in names}


def test_hash_split_covers_everything_once_and_nearly_as_asked(folder: Path) -> None:
    many_rows(folder)
    split = {"validation": "20%", "test": "10%"}
    found = by_split(folder, split=split)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 300
    # binomial: 60 +- 7 and 30 +- 5, four standard deviations
    assert 32 <= len(found["validation"]) <= 88 and 10 <= len(found["test"]) <= 50
    assert split_names(section(folder, split=split)) == ("train", "validation", "test")
    assert split_names(section(folder, split={"test": "1%"})) == ("train", "test")


def test_hash_split_follows_the_image_and_nothing_else(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the order of rows, nor new rows, nor the place of the folder, nor the seed moves an image."""
    many_rows(folder, 60)
    split = {"validation": "20%", "test": "20%"}
    before = by_split(folder, split=split)
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    folder.rename(moved)
    rows = (moved / "pairs.jsonl").read_text().splitlines()
    write_lines(moved, {"image": "9.png", "caption": "new"}, *reversed(rows))
    after = by_split(moved, split=split)
    assert {name: ids - {"9.png"} for name, ids in after.items()} == before
    other_seed = open_unlimited(section(moved, split=split), "test", seed=7)
    assert {sample.id for sample in other_seed.samples} == after["test"]


def test_larger_share_keeps_the_test_images(folder: Path) -> None:
    many_rows(folder, 100)
    small, large = (by_split(folder, ("test",), split={"test": share})["test"] for share in ("10%", "30%"))
    assert small < large


def test_groups_are_never_torn_apart(folder: Path) -> None:
    many_rows(folder, 200, product=lambda n: n // 4)
    split = {"validation": "20%", "test": "20%", "by": "product"}
    samples = {name: opened(folder, name, split=split).samples for name in ("train", "validation", "test")}
    groups = {name: {sample.group for sample in found} for name, found in samples.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 50
    assert sum(map(len, samples.values())) == 200
    torn = by_split(folder, split={"validation": "20%", "test": "20%"})
    products = [{int(name[1:-4]) // 4 for name in ids} for ids in torn.values()]
    assert products[0] & products[1] & products[2], "by image, products are torn: the test above can fail"


def test_groups_that_share_an_image_stay_together(folder: Path) -> None:
    chain = [{"image": f"{n // 2}.png", "caption": f"c{n}", "product": f"p{(n + 1) // 2}"} for n in range(20)]
    write_lines(folder, *chain)
    names = ("train", "validation", "test")
    found: dict[str, tuple] = {}
    for name in names:
        try:
            found[name] = opened(folder, name, split={"validation": "30%", "test": "30%", "by": "product"}).samples
        except DataError as error:
            assert "no usable image" in str(error)
    assert len(found) == 1, "ten images and eleven products in one chain are one group"
    assert len({sample.group for sample in next(iter(found.values()))}) == 1


def test_empty_group_is_bad(folder: Path) -> None:
    write_lines(
        folder, {"image": "0.png", "caption": "x", "product": 1}, {"image": "1.png", "caption": "x", "product": ""}
    )
    result = opened(folder, split={"by": "product"})
    assert len(result.samples) == 1 and reasons(result) == [("2", "empty cell: column 'product'")]


SPLITS = {"train": ["train", "rest"], "validation": "val", "test": "test"}


def test_split_column(folder: Path) -> None:
    values = ["train", "val", "test", "rest", "unused", ""]
    write_lines(folder, *({"image": f"{n}.png", "caption": "x", "split": value} for n, value in enumerate(values)))
    found = by_split(folder, splits=SPLITS)
    assert found == {"train": {"0.png", "3.png"}, "validation": {"1.png"}, "test": {"2.png"}}
    assert reasons(opened(folder, splits=SPLITS)) == [("6", "empty cell: column 'split'")]
    assert opened(folder, "test", splits=SPLITS).bad == ()
    with pytest.raises(DataError, match=r"no row for validation: 'dev'; column 'split' holds 'train' \(1 rows\)"):
        opened(folder, splits={**SPLITS, "validation": "dev"})
    with pytest.raises(DataError, match="data.splits.column: .* no column 'fold'"):
        opened(folder, splits={**SPLITS, "column": "fold"})
    with pytest.raises(DataError, match="data has no split 'test'; it has train"):
        opened(folder, "test", splits={"train": "train"})


def test_a_bad_row_counts_for_the_split_that_it_names(folder: Path) -> None:
    rows = [{"image": f"{n}.png", "caption": "x", "split": "val" if n > 1 else "train"} for n in range(4)]
    rows[3]["caption"] = None
    write_lines(folder, *rows)
    splits = {"train": "train", "validation": "val"}
    assert opened(folder, splits=splits).bad == ()
    assert [item.split for item in opened(folder, "validation", splits=splits).bad] == ["validation"]


def test_an_image_in_two_splits_stays_in_the_one_held_out(folder: Path) -> None:
    rows = [("0.png", "train"), ("0.png", "test"), ("1.png", "val"), ("1.png", "train"), ("2.png", "train")]
    write_lines(folder, *({"image": image, "caption": f"c {split}", "split": split} for image, split in rows))
    assert captions(opened(folder, "test", splits=SPLITS)) == {"0.png": ("c test",)}
    assert captions(opened(folder, "validation", splits=SPLITS)) == {"1.png": ("c val",)}
    train = opened(folder, splits=SPLITS)
    assert captions(train) == {"2.png": ("c train",)}
    assert [line for line, _ in reasons(train)] == ["1", "4"]
    assert all("image is in another split too" in item.reason and item.split == "train" for item in train.bad)


def test_one_file_per_split(folder: Path) -> None:
    write_lines(folder, {"image": "0.png", "caption": "x"}, {"image": "1.png", "caption": "x"}, name="train.jsonl")
    (folder / "test.csv").write_text("image,caption\n1.png,y\n2.png,\n")
    path = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.csv")}
    assert split_names(section(folder, path=path)) == ("train", "test")
    train, test = (opened(folder, name, path=path) for name in ("train", "test"))
    assert captions(train) == {"0.png": ("x",)} and captions(test) == {"1.png": ("y",)}
    assert "another split" in train.bad[0].reason and test.bad[0].where == f"{folder}/test.csv:3"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": None}, "how is the table split"),
        ({"split": {}, "splits": {"train": "train"}}, "delete one of them"),
        ({"path": {"train": "a.csv"}, "split": {}}, "delete split"),
        ({"path": {}}, "no file is named"),
        ({"splits": {"train": "a", "test": ["b", "a"]}}, "'a' would be in two splits"),
        ({"splits": {"column": "fold"}}, "no split is named"),
        ({"split": {"validation": "60%", "test": "40%"}}, "nothing to train on"),
        ({"split": {"validation": 5}}, "a share needs its percent sign: '5%'"),
        ({"split": {"validation": "500 steps"}}, "is no share of the data"),
        ({"split": {"valid": "5%"}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(folder, **settings)


def test_settings_survive_json(folder: Path) -> None:
    for settings in ({"split": {"validation": "5%", "by": "p"}}, {"splits": SPLITS}, {"path": {"train": "a.csv"}}):
        chosen = section(folder, **settings)
        assert Section.model_validate_json(json.dumps(chosen.model_dump(mode="json"))) == chosen


# --- the limit


def test_too_much_that_is_bad_stops_the_run(folder: Path) -> None:
    good = [{"image": f"{n}.png", "caption": "x"} for n in range(9)]
    write_lines(folder, *good, {"image": "none.png", "caption": "x"}, "broken")
    with pytest.raises(DataError) as caught:
        open_split(section(folder), "train", seed=0)
    message = str(caught.value)
    assert "2 of 11 lines and images are bad, 18.2%; data.max_bad_fraction allows 1.0%" in message
    assert "1 x not JSON" in message and "1 x no such file" in message and "pairs.jsonl:11: not JSON" in message
    allowed = open_split(section(folder, max_bad_fraction=0.2), "train", seed=0)
    assert len(allowed.samples) == 9 and len(allowed.bad) == 2
    enforce_bad_limit(allowed, 2 / 11)
    with pytest.raises(DataError):
        enforce_bad_limit(allowed, 0.18)


def test_nothing_usable_says_why(folder: Path) -> None:
    write_lines(folder, {"image": "none.png", "caption": "x"})
    with pytest.raises(DataError, match="no usable image: 1 bad .*none.png: no such file"):
        opened(folder)
