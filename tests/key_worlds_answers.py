"""Questions, labels and conversations for `key_worlds`: tables, base recipes, and looks at what samples hold."""

import json
from pathlib import Path
from typing import Any

import pytest
from image_server import image_server
from key_worlds import Refused, World
from key_worlds_sources import write_arrow

from mmtune.ground.errors import MmtuneError
from mmtune.recipe_schema import Recipe

NUM = 18
SPLITS = ("train", "train", "train", "val", "test", "extra")
BY_COLUMN = "splits: {train: train, validation: val, test: test}"


def write_answer_world(folder: Path) -> None:
    """``asked`` as JSON lines, parquet and a saved data set; ``chats`` and ``fewer_chats``; recipes over them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_row(number) for number in range(NUM)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    filled = [{**row, "image": {"bytes": (folder / "images" / row["image"]).read_bytes()}} for row in rows]
    pq.write_table(pa.Table.from_pylist(filled), folder / "asked.parquet")
    for split in dict.fromkeys(SPLITS):
        (folder / "saved_asked" / split).mkdir(parents=True)
        write_arrow(
            folder / "saved_asked" / split / "data.arrow",
            pa.Table.from_pylist([row for row in filled if row["split"] == split]),
        )
        (folder / "saved_asked" / split / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / "saved_asked" / "dataset_dict.json").write_text(json.dumps({"splits": list(dict.fromkeys(SPLITS))}))
    chats = [json.dumps(_chat(number)) for number in range(NUM)]
    for name, chosen in (("chats", chats), ("fewer_chats", chats[:12]), ("odd_chats", [*chats, "not json"])):
        (folder / f"{name}.jsonl").write_text("\n".join(chosen) + "\n")
    _write_recipes(folder)


def _row(number: int) -> dict[str, Any]:
    return {
        "image": f"{number // 2}.png",
        "caption": f"a {number}",
        "question": f"is it {number}?",
        "second": f"is it not {number}?",
        "answers": ["yes", "no"],
        "answer": f"{number}",
        "fits": number % 2 == 0,
        "fails": number % 2 == 1,
        "split": SPLITS[number // 2 % 6],
    }


def _chat(number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"a {number}"}]
    return {"image": f"{number}.png", "conversations": turns, "sku": f"s{number}", "split": SPLITS[number % 6]}


def _write_recipes(folder: Path) -> None:
    tables = {
        "jsonl": f"kind: jsonl, path: {folder}/asked.jsonl, images: {folder}/images, {BY_COLUMN}",
        "parquet": f"kind: parquet, path: {folder}/asked.parquet, {BY_COLUMN}",
        "hub": f"kind: hub, id: {folder}/saved_asked, {BY_COLUMN}",
    }
    chats = f"kind: conversations, path: {folder}/chats.jsonl, images: {folder}/images"
    web = f"kind: conversations, path: {folder}/web.jsonl, split: {{}}, max_bad_fraction: 0.9"
    data = {
        f"asked_{name}": ("vqa", f"{table}, question: question, answers: answers") for name, table in tables.items()
    }
    data |= {f"labelled_{name}": ("matching", f"{table}, label: fits") for name, table in tables.items()}
    data |= {
        "chats": ("chat", f"{chats}, {BY_COLUMN}"),
        "chats_hash": ("chat", f"{chats}, split: {{test: 30%}}"),
        "web": ("chat", f"{web}, downloads: {{folder: {folder}/kept, seconds: 5}}"),
    }
    for name, (task, section) in data.items():
        (folder / f"{name}.yaml").write_text(
            f"backbone: {{id: {folder}/tiny}}\nadapter: {{kind: lora, parts: [text]}}\ndata: {{{section}}}\n"
            f"task: {{kind: {task}}}\ntrain: {{length: 1 steps, batch: 2, learning_rate: 1e-3}}\n"
            f"output: {folder}/run\n"
        )


def held(world: World, recipe: Recipe) -> Any:
    """Everything that the samples of every split hold, with their pixels; or what is wrong."""
    from mmtune.sources import split_names
    from mmtune.train_data import open_checked

    try:
        opened = {split: open_checked(recipe, split) for split in split_names(recipe.data)}
    except MmtuneError as error:
        return Refused(error)
    return {
        split: [
            (one.id, one.group, one.captions, one.question, one.answers, one.label)
            + (tuple(turn.text for turn in one.turns), one.media.read().tobytes())
            for one in found.samples
        ]
        for split, found in opened.items()
    }


def fetched(world: World, recipe: Recipe) -> Any:
    """How many images of a small server, one of them slow, end in which folder."""
    import shutil

    from mmtune.train_data import open_checked

    for folder in world.folder.glob("kept*"):
        shutil.rmtree(folder)
    with pytest.MonkeyPatch.context() as patch, image_server() as server:
        patch.setenv("no_proxy", "*")
        turns = _chat(0)["conversations"]
        rows = [{"image": server.url + path, "conversations": turns} for path in ("/1.png", "/slow_body", "/2.png")]
        rows.append({"image": str(world.folder / "images" / "0.png"), "conversations": turns})
        (world.folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ids = [one.id for one in open_checked(recipe, "train").samples]
        return ids, {folder.name: len(list(folder.iterdir())) for folder in sorted(world.folder.glob("kept*"))}
