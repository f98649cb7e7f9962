"""Data sets of the hub: local folders, what the caches hold, and never a connection where none is wanted."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from picture_bytes import HUGE_HEADER, first_channel, image_bytes
from pydantic import ValidationError

from mmtune.ground.errors import DataError
from mmtune.sources import OpenedSplit, _hub_cache, split_names
from mmtune.sources.hub import Section, open_split

COMMIT, OTHER = "a" * 40, "b" * 40
ROWS = {"train": (1, 2, 3), "dev": (4,), "test": (5, 6)}
OURS = {"train": "train", "validation": "dev", "test": "test"}


@pytest.fixture(autouse=True)
def no_connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Whoever connects to anything fails the test."""
    tried: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: refuse(None, given))  # type: ignore[arg-type]
    yield tried
    assert not tried


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of `datasets` (``prepared``) and of the hub (``hub``)."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache" / "prepared"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    return tmp_path / "cache"


def rows_of(numbers: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": image_bytes(n), "path": None}, "text": f"t{n}", "texts": [f"a{n}", f"b{n}"], "label": n % 2}
        for n in numbers
    ]


def dataset(numbers: tuple[int, ...], rows: list[dict[str, Any]] | None = None) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    features = {"image": Image(), "text": Value("string"), "texts": List(Value("string"))}
    return Dataset.from_list(
        rows or rows_of(numbers), features=Features({**features, "label": ClassLabel(names=["cat", "dog"])})
    )


def save(folder: Path) -> Path:
    """What ``save_to_disk`` writes."""
    from datasets import DatasetDict

    DatasetDict({name: dataset(numbers) for name, numbers in ROWS.items()}).save_to_disk(str(folder))
    return folder


def write_parquet(folder: Path, shards: int = 1) -> Path:
    (folder / "data").mkdir(parents=True)
    for name, numbers in ROWS.items():
        for shard in range(shards):
            path = folder / "data" / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            dataset(numbers).select(range(shard, len(numbers), shards)).to_parquet(str(path))
    return folder


def prepare(cache: Path, commit: str, numbers: dict[str, tuple[int, ...]], name: str = "default") -> Path:
    """What `datasets` leaves in its cache of ``owner/Some_Name``."""
    folder = cache / "prepared" / "owner___some_name" / name / "0.0.0" / commit
    folder.mkdir(parents=True)
    for split, listed in numbers.items():
        table = pa.Table.from_pylist(rows_of(listed))
        with (
            pa.OSFile(str(folder / f"some_name-{split}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    info = {"config_name": name, "splits": {split: {"name": split} for split in numbers}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def section(id: Path | str, **settings: Any) -> Section:
    if "split" not in settings:
        settings.setdefault("splits", OURS)
    return Section(kind="hub", id=str(id), **{"caption": "text", **settings})


def opened(id: Path | str, which: str = "train", **settings: Any) -> OpenedSplit:
    return open_split(section(id, **settings), which, seed=0)


def numbers(found: OpenedSplit) -> list[int]:
    return [first_channel(sample.media.read()) for sample in found.samples]


# --- folders


@pytest.mark.parametrize("make", [save, write_parquet])
def test_local_folders(make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "data set")
    assert [numbers(opened(folder, name)) for name in split_names(section(folder))] == [[1, 2, 3], [4], [5, 6]]
    found = opened(folder, caption="a {label} of {text}")
    assert [one.captions for one in found.samples] == [("a dog of t1",), ("a cat of t2",), ("a dog of t3",)]
    assert [one.captions for one in opened(folder, caption="texts").samples][0] == ("a1", "b1")
    assert found.notes == (str(folder),)
    both = opened(folder, "test", splits={"train": "train", "test": ["dev", "test"]})
    assert numbers(both) == [4, 5, 6]
    hashed = [numbers(opened(folder, name, split={"test": "40%"})) for name in ("train", "test")]
    assert sorted(sum(hashed, [])) == [1, 2, 3, 4, 5, 6] and all(hashed)


def test_a_single_saved_split_and_arrow_files(tmp_path: Path) -> None:
    dataset((1, 2)).save_to_disk(str(tmp_path / "one"))
    assert numbers(opened(tmp_path / "one", splits={"train": "train"})) == [1, 2]
    (tmp_path / "arrow").mkdir()
    shutil.copy(tmp_path / "one" / "data-00000-of-00001.arrow", tmp_path / "arrow" / "test.arrow")
    assert numbers(opened(tmp_path / "arrow", "test", splits={"test": "test"})) == [1, 2]
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="state.json names files that are missing"):
        opened(tmp_path / "one", splits={"train": "train"})


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.id: there is no folder .*none"):
        opened(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data set"):
        opened(tmp_path / "empty")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.csv").write_text("image,text\n")
    with pytest.raises(DataError, match="no parquet or arrow files but train.csv; try kind: jsonl"):
        opened(tmp_path / "tables")
    with pytest.raises(DataError, match="is a folder, which has no revision 'main'"):
        opened(tmp_path / "tables", revision="main")
    with pytest.raises(DataError, match="was saved to disk and has no configurations"):
        opened(save(tmp_path / "saved"), name="large")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_connection: list[Any]
) -> None:
    save(tmp_path / "d" / "hubset")
    for n in range(9):
        (tmp_path / "d" / f"another{n}").mkdir()
    monkeypatch.chdir(tmp_path)
    said = r"data.id: there is no folder d/hubsett; did you mean d/hubset\?; d has hubset, another0"
    with pytest.raises(DataError, match=said):
        opened("d/hubsett")
    assert opened("d/hubset").samples and not no_connection


def test_splits_and_columns_that_are_not_there(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved")
    with pytest.raises(DataError) as caught:
        opened(folder, splits={"train": ["train", "trian"], "test": "tests"})
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"data.splits.train: {folder} has no split 'trian'; did you mean 'train'")
    assert lines[1].startswith(f"data.splits.test: {folder} has no split 'tests'; did you mean 'test'")
    with pytest.raises(
        DataError, match="(?s)data.image: .*no column 'img'; .*data.caption: .*'txt'; did you mean 'text'"
    ):
        opened(folder, image="img", caption="txt")


def test_images_are_read_as_everywhere_in_this_house(tmp_path: Path) -> None:
    contents = [image_bytes(9), image_bytes(9, "JPEG", "CMYK"), image_bytes(9)[:50], HUGE_HEADER, b""]
    rows = [{"image": {"bytes": one, "path": None}, "text": "x", "texts": [], "label": 0} for one in contents]
    dataset((), rows).save_to_disk(str(tmp_path / "saved"))
    found = opened(tmp_path / "saved", splits={"train": "train"})
    modes = [sample.media.read().mode for sample in found.samples[:2]]
    assert modes == ["RGB", "RGB"]
    with pytest.raises(DataError, match="row 3: damaged or cut short"):
        found.samples[2].media.read()
    assert [item.reason.split(":")[0] for item in found.bad] == ["too many pixels", "the file is empty"]


def test_caption_lists_of_mixed_types(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save(folder)
    (folder / "train").mkdir(exist_ok=True)
    values = [["good", None, "  "], [["nested"]], [3.5], "plain"]
    for number, value in enumerate(values):
        table = pa.Table.from_pylist([{"image": {"bytes": image_bytes(number), "path": None}, "text": value}])
        path = folder / "train" / "data-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
        if number in (0, 3):
            found = opened(folder)
            assert [one.captions for one in found.samples] == [("good",) if number == 0 else ("plain",)]
            assert len(found.bad) == (2 if number == 0 else 0)
        else:
            with pytest.raises(DataError, match=f"caption is not text: .* holds a {('list', 'float')[number - 1]}"):
                opened(folder)


# --- the hub


def test_offline_uses_what_datasets_prepared(cache: Path) -> None:
    prepare(cache, COMMIT, ROWS)
    found = opened("owner/Some_Name")
    assert numbers(found) == [1, 2, 3] and found.notes == (
        f"owner/Some_Name at commit {COMMIT} (the one in the cache: HF_HUB_OFFLINE is set)",
    )
    os.utime(prepare(cache, OTHER, {**ROWS, "train": (9,)}), (9e9, 9e9))
    assert numbers(opened("owner/Some_Name")) == [9], "the newest, where nothing says which"
    assert numbers(opened("owner/Some_Name", revision=COMMIT)) == [1, 2, 3]
    (cache / "hub" / "datasets--owner--Some_Name" / "refs").mkdir(parents=True)
    (cache / "hub" / "datasets--owner--Some_Name" / "refs" / "main").write_text(COMMIT)
    assert numbers(opened("owner/Some_Name")) == [1, 2, 3], "the cache knows what main was"
    with pytest.raises(DataError, match=f"HF_HUB_OFFLINE is set, so it is not known which .*'v2'.*: {COMMIT}, {OTHER}"):
        opened("owner/Some_Name", revision="v2")
    with pytest.raises(DataError, match="not in the local cache and HF_HUB_OFFLINE is set: run `hf download"):
        opened("owner/Some_Name", revision="c" * 40)


def test_offline_uses_what_hf_download_fetched(cache: Path) -> None:
    repository = cache / "hub" / "datasets--owner--Some_Name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    write_parquet(repository / "snapshots" / COMMIT, shards=2)
    assert numbers(opened("owner/Some_Name", splits={"train": "train"})) == [1, 3, 2]
    (repository / "snapshots" / COMMIT / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="in the local cache in part only: files of train are missing"):
        opened("owner/Some_Name", splits={"train": "train"})


def test_offline_without_anything(cache: Path) -> None:
    with pytest.raises(DataError, match="'owner/none' is not in the local cache and HF_HUB_OFFLINE is set"):
        opened("owner/none")


def test_several_configurations(cache: Path) -> None:
    for name in ("large", "small"):
        prepare(cache, COMMIT, {"train": (1,) if name == "small" else (1, 2)}, name)
    assert numbers(opened("owner/Some_Name", name="large", splits={"train": "train"})) == [1, 2]
    with pytest.raises(DataError, match="data.name: .*several configurations: large, small; write one"):
        opened("owner/Some_Name", splits={"train": "train"})


def test_a_hub_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch, no_connection: list[Any]) -> None:
    monkeypatch.setattr(_hub_cache, "is_offline", lambda: False)

    def silent(id: str, revision: str | None) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(_hub_cache, "_ask_commit", silent)
    with pytest.raises(DataError, match="not in the local cache and the hub cannot be reached: run `hf download"):
        opened("owner/Some_Name")
    prepare(cache, COMMIT, ROWS)
    assert numbers(opened("owner/Some_Name")) == [1, 2, 3]


def test_a_real_client_that_cannot_connect(monkeypatch: pytest.MonkeyPatch, no_connection: list[Any]) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError):
        _hub_cache._ask_commit("owner/name", None)
    assert no_connection, "it tried"
    no_connection.clear()


def test_what_is_not_cached_is_fetched_at_the_commit(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[Any] = []
    saved = datasets.load_from_disk(str(save(tmp_path / COMMIT)))

    def load(*given: Any, **named: Any) -> Any:
        asked.append((given, named))
        return saved

    monkeypatch.setattr(_hub_cache, "is_offline", lambda: False)
    monkeypatch.setattr(_hub_cache, "_ask_commit", lambda id, revision: asked.append(revision) or COMMIT)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert numbers(opened("owner/Some_Name", revision="v1", name="large")) == [1, 2, 3]
    assert asked == ["v1", (("owner/Some_Name", "large"), {"revision": COMMIT})], "no code is trusted"
    saved = datasets.load_from_disk(str(save(tmp_path / OTHER)))
    with pytest.raises(DataError, match="the hub does not give commit aaaa"):
        opened("owner/Some_Name", revision="v1", name="large")
    del asked[2:]
    prepare(cache, COMMIT, {**ROWS, "train": (8,)}, "large")
    assert numbers(opened("owner/Some_Name", revision="v1", name="large")) == [8] and len(asked) == 3


def test_sections_that_cannot_be_meant() -> None:
    for settings, message in (
        ({}, "how is the data set split"),
        ({"split": {}, "splits": {"train": "a"}}, "delete one of them"),
        ({"splits": {"train": "a", "test": ["b", "a"]}}, "'a' would be in two splits"),
        ({"splits": {}}, "no split is named"),
        ({"split": {}, "trust_remote_code": True}, "Extra inputs"),
    ):
        with pytest.raises(ValidationError, match=message):
            Section(kind="hub", id="a/b", **settings)
