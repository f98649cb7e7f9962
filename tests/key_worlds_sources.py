"""Data of the sources beyond tables and folders for `key_worlds`, a base recipe for each, and a look at a mix."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from key_worlds import Refused, World
from picture_bytes import image_bytes

from mmtune.ground.errors import MmtuneError
from mmtune.recipe_schema import Recipe

NUM = 18
SPLITS = ("train", "train", "train", "val", "test", "extra")


def write_source_worlds(folder: Path) -> None:
    """Parquet files, a saved data set, shards, annotation files, and recipes over them."""
    _write_parquet(folder)
    _write_hub(folder)
    _write_shards(folder)
    _write_annotations(folder)
    jsonl = "{{kind: jsonl, path: {0}/{1}.jsonl, images: {0}/images, split: {{validation: 20%, test: 20%}}}}"
    first, second = (jsonl.format(folder, name) for name in ("fewer", "later"))
    lines = (folder / "pairs.jsonl").read_text().splitlines()
    (folder / "later.jsonl").write_text("\n".join(lines[12:]))
    by_column = "splits: {train: train, validation: val, test: test}"
    images = f"{folder}/images"
    three = f"train: {images}, validation: {images}, test: {images}"
    bases = {
        "parquet": f"{{kind: parquet, path: {folder}/a.parquet, {by_column}}}",
        "parquet_hash": f"{{kind: parquet, path: {folder}/a.parquet, split: {{test: 40%}}}}",
        "parquet_paths": f"{{kind: parquet, path: {folder}/a.parquet, image: name, images: {images}, {by_column}}}",
        "hub": f"{{kind: hub, id: {folder}/saved, splits: {{train: train, validation: val, test: test}}}}",
        "hub_hash": f"{{kind: hub, id: {folder}/saved, split: {{test: 40%}}}}",
        "shards": f"{{kind: webdataset, path: {{train: '{folder}/{{0,1}}.tar', test: {folder}/2.tar}}}}",
        "shards_hash": f"{{kind: webdataset, path: '{folder}/{{0..1}}.tar', split: {{test: 30%}}}}",
        "coco": f"{{kind: coco, path: {{train: {folder}/coco0.json, test: {folder}/coco1.json}}, images: {images}}}",
        "coco_folders": f"{{kind: coco, path: {{train: {folder}/coco0.json, validation: {folder}/coco2.json, "
        f"test: {folder}/coco1.json}}, images: {{{three}}}}}",
        "coco_hash": f"{{kind: coco, path: {folder}/coco0.json, images: {folder}/images, split: {{test: 30%}}}}",
        "coop": f"{{kind: coop, path: {folder}/coop.json, images: {folder}/images}}",
        "karpathy": f"{{kind: karpathy, path: {folder}/karpathy.json, images: {folder}/images}}",
        "mix": f"{{kind: mix, sources: {{a: {first}, b: {second}}}}}",
    }
    for name, data in bases.items():
        (folder / f"{name}.yaml").write_text(
            f"backbone: {{id: {folder}/tiny}}\nadapter: {{kind: lora, parts: [vision, text]}}\ndata: {data}\n"
            "task: {kind: retrieval}\ntrain: {length: 4 steps, batch: 2, learning_rate: 1e-2}\n"
            f"output: {folder}/run\n"
        )


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": image_bytes(number), "path": None},
            "second": {"bytes": image_bytes(100 + number), "path": None},
            "name": f"{number}.png",
            "caption": [f"a {number}", f"the {number}"],
            "title": f"title {number}",
            "sku": f"sku-{number}",
            "product": f"product {number // 3}",
            "split": SPLITS[number % 6],
            "fold": SPLITS[(number + 1) % 6],
        }
        for number in range(NUM)
    ]


def _write_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows()
    odd = {**rows[0], "image": {"bytes": b"no image", "path": None}}
    for name, chosen in (("a", rows), ("b", rows[:12]), ("odd", [*rows, odd])):
        pq.write_table(pa.Table.from_pylist(chosen), folder / f"{name}.parquet")


def _write_hub(folder: Path) -> None:
    """``saved`` and ``saved2`` (other images), and in the hub's cache two commits and two configurations of one."""
    import pyarrow as pa

    rows = _rows()
    odd = {**rows[0], "image": {"bytes": b"no image", "path": None}}
    for name, rename, more in (("saved", 0, []), ("saved2", 30, []), ("saved_odd", 0, [odd])):
        for split in dict.fromkeys(SPLITS):
            chosen = [{**row, "caption": [f"{text} {rename}" for text in row["caption"]]} for row in rows]
            table = pa.Table.from_pylist([row for row in [*chosen, *more] if row["split"] == split])
            (folder / name / split).mkdir(parents=True)
            write_arrow(folder / name / split / "data.arrow", table)
            (folder / name / split / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        (folder / name / "dataset_dict.json").write_text(json.dumps({"splits": list(dict.fromkeys(SPLITS))}))
    for number, (name, commit) in enumerate((("large", "a" * 40), ("small", "a" * 40), ("large", "b" * 40))):
        prepared = folder / "prepared" / "owner___name" / name / "0.0.0" / commit
        prepared.mkdir(parents=True)
        table = pa.Table.from_pylist(rows[: 6 + number])
        write_arrow(prepared / "name-train.arrow", table)
        (prepared / "dataset_info.json").write_text(json.dumps({"splits": {"train": {}}}))


def write_arrow(path: Path, table: Any) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def _write_shards(folder: Path) -> None:
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(6):
                own = shard * 6 + number
                members = {"png": image_bytes(own), "seg.png": image_bytes(100 + own), "txt": f"text {own}".encode()}
                members["json"] = json.dumps({"title": f"title {own}", "shop": f"shop {own // 3}"}).encode()
                if shard == 3 and number == 0:
                    members["png"] = b"no image"
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{own:03d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _write_annotations(folder: Path) -> None:
    entries = []
    for number, half in enumerate((range(8), range(8, 16), range(16, 20), [*range(8), 99])):
        images = [{"id": one, "file_name": f"{one}.png", "shop": f"shop {one // 2}"} for one in half]
        annotations = [{"image_id": one, "caption": f"{text} {one}"} for one in half for text in "ab"]
        (folder / f"coco{number}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for one in range(16):
        split = ("train", "restval", "val", "test")[one % 4]
        entries.append(
            {"filename": f"{one}.png", "split": split, "sentences": [{"raw": f"a {one}"}, {"raw": f"b {one}"}]}
        )
    lists: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for one in range(16):
        lists[("train", "train", "val", "test")[one % 4]].append([f"{one}.png", one % 2, f"class {one % 2}"])
    (folder / "coop.json").write_text(json.dumps(lists))
    (folder / "coop2.json").write_text(json.dumps({**lists, "train": lists["train"][:3]}))
    (folder / "coop3.json").write_text(json.dumps({**lists, "train": [*lists["train"], ["gone.png", 0, "class 0"]]}))
    (folder / "karpathy.json").write_text(json.dumps({"images": entries}))
    (folder / "karpathy2.json").write_text(json.dumps({"images": entries[:12]}))
    gone = {"filename": "gone.png", "split": "train", "sentences": [{"raw": "x"}]}
    (folder / "karpathy3.json").write_text(json.dumps({"images": [*entries, gone]}))


def prepared(world: World, recipe: Recipe) -> Any:
    """What a data set of the hub gives from the cache, or why it is refused."""
    import datasets.config
    import huggingface_hub.constants
    from key_worlds import sampled

    world.patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(world.folder / "prepared"))
    world.patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(world.folder / "hub"))
    return sampled(world, recipe)


def mixed(world: World, recipe: Recipe) -> Any:
    """The samples of a mix's splits and what stands at every place of two epochs, or what is wrong."""
    from mmtune.epoch_items import epoch_items
    from mmtune.sources import split_names
    from mmtune.tasks import retrieval
    from mmtune.train_data import open_checked

    try:
        opened = {split: open_checked(recipe, split) for split in split_names(recipe.data)}
    except MmtuneError as error:
        return Refused(error)
    items = epoch_items(retrieval, opened["train"].samples, recipe.data, recipe.seed)
    shown = [items.at(epoch, place) for epoch in range(2) for place in range(len(items))]
    return {split: [(one.id, one.captions) for one in found.samples] for split, found in opened.items()}, shown
