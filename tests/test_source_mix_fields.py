"""Mixes of questions, labels and conversations: all parts hold the same, and nothing leaks between them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from conversation_rows import spoken
from pair_tables import make_images, write_lines
from pydantic import ValidationError

from mmtune.ground.records import NoMedia, Sample, Turn
from mmtune.sources import open_split, split_names, write_tiny
from mmtune.sources.mix import Section
from mmtune.train_data import hash_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images ``images/0.png`` ... ``9.png`` and nothing else."""
    return make_images(tmp_path)


def mix(folder: Path, **sources: dict[str, Any]) -> Section:
    common = {"images": str(folder / "images"), "kind": "jsonl"}
    named = {name: {**common, "split": {}, **settings} for name, settings in sources.items()}
    for settings in named.values():
        if not isinstance(settings["path"], str):
            del settings["split"]
    return Section.model_validate_json(json.dumps({"kind": "mix", "sources": named, "max_bad_fraction": 0.9}))


def chats(path: Any) -> dict[str, Any]:
    return {"kind": "conversations", "path": path}


def test_all_parts_hold_the_same(folder: Path) -> None:
    asked, told = {"path": "a.jsonl", "question": "q", "answers": "a"}, {"path": "a.jsonl"}
    assert mix(folder, a=asked, b=asked).fields == {"question", "answers"} and mix(folder, a=told).fields == {
        "captions"
    }
    assert mix(folder, a=chats("a.json"), b=chats("b.json")).fields == {"turns"}
    for other, held in ((told, "captions"), (chats("a"), "turns"), ({"path": "a.csv", "question": "q"}, "question")):
        with pytest.raises(ValidationError) as caught:
            mix(folder, a=asked, b=other)
        assert f"the samples of all sources must hold the same (a: answers, question; b: {held})" in str(caught.value)
    with pytest.raises(ValidationError, match="must hold the same .a: captions; b: captions, label."):
        mix(folder, a=told, b={**told, "label": "l"})


def test_questions_of_an_image_in_two_sources_are_held_out_together(folder: Path) -> None:
    rows = [{"image": f"{n}.png", "q": f"{n}?", "a": "x"} for n in range(3)]
    write_lines(folder, *rows, name="a.jsonl")
    write_lines(folder, {**rows[1], "q": "other?"}, name="b.jsonl")
    write_lines(folder, rows[0] | {"image": "9.png"}, name="c.jsonl")
    files = {"train": str(folder / "c.jsonl"), "test": str(folder / "b.jsonl")}
    asked = {"question": "q", "answers": "a"}
    section = mix(folder, a={"path": str(folder / "a.jsonl"), **asked}, b={"path": files, **asked})
    train, test = (open_split(section, name, seed=0) for name in ("train", "test"))
    assert [(one.id, one.question) for one in train.samples] == [
        ("a/0.png#1", "0?"),
        ("a/2.png#1", "2?"),
        ("b/9.png#1", "0?"),
    ]
    assert [one.id for one in test.samples] == ["b/1.png#1"] and "source b puts it into test" in train.bad[0].reason


def test_a_false_caption_is_not_true_because_another_source_has_the_image(folder: Path) -> None:
    write_lines(folder, {"image": "0.png", "caption": "a cat", "l": False}, name="a.jsonl")
    write_lines(folder, {"image": "0.png", "caption": "a dog", "l": True}, name="b.jsonl")
    paths = {name: {"path": str(folder / f"{name}.jsonl")} for name in "ab"}
    labelled = mix(folder, **{name: {**path, "label": "l"} for name, path in paths.items()})
    assert [one.also_true for one in open_split(labelled, "train", seed=0).samples] == [(), ()]
    told = open_split(mix(folder, **paths), "train", seed=0).samples
    assert [one.also_true for one in told] == [("a dog",), ("a cat",)]


def test_conversations_know_all_their_images_and_words_stay_apart(folder: Path) -> None:
    two = spoken(("human", "<image><image>?"), ("gpt", "x"), images=["0.png", "1.png"])
    last = {"conversations": two["conversations"], "images": ["2.png", "1.png"]}
    words = spoken(("human", "hello"), ("gpt", "hi"))
    write_lines(folder, two, words, name="a.jsonl")
    write_lines(folder, words, name="train.jsonl")
    write_lines(folder, last, words, name="test.jsonl")
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    section = mix(folder, a=chats(str(folder / "a.jsonl")), b=chats({**files, "train": str(folder / "chat.jsonl")}))
    write_lines(folder, spoken(("human", "bye"), ("gpt", "bye")), name="chat.jsonl")
    train, test = (open_split(section, name, seed=0) for name in ("train", "test"))
    assert [one.id for one in train.samples] == ["a/row-2", "b/train-1"], "the second image of a/row-1 is held out"
    assert [item.reason for item in train.bad] == ["image is in another split too: source b puts it into test"]
    assert [one.id for one in test.samples] == ["b/test-1", "b/test-2"]
    assert train.samples[0].media == NoMedia("a/row-2", f"{folder}/a.jsonl:2")


def test_tiny_mix(folder: Path, tmp_path: Path) -> None:
    asked = {"path": "/none/a.csv", "question": "q", "answers": "a"}
    for section, count in (
        (mix(folder, a=asked, b=asked), 96),
        (mix(folder, a=chats("a.json"), b=chats("b.json")), 48),
    ):
        tiny = write_tiny(section, tmp_path / str(count))
        opened = [open_split(tiny, name, seed=0) for name in split_names(tiny)]
        assert sum(len(one.samples) for one in opened) == count and not any(one.bad for one in opened)


BASE = Sample("a", NoMedia("a", "x:1"), captions=("c",))
TURNS = (Turn("user", ("hi", NoMedia("p", "p"))), Turn("assistant", ("yes",)))
CHANGED: list[dict[str, Any]] = [
    {"question": "q"},
    {"question": "r"},
    {"answers": ("q",)},
    {"question": "q", "answers": ("a", "b")},
    {"question": "q", "answers": ("b", "a")},
    {"question": "q", "answers": ("ab",)},
    {"label": True},
    {"label": False},
    {"turns": TURNS},
    {"turns": TURNS[::-1]},
    {"turns": (Turn("user", ("hi",)), TURNS[1])},
    {"turns": (Turn("user", (NoMedia("p", "p"), "hi")), TURNS[1])},
    {"turns": (Turn("system", TURNS[0].content), TURNS[1])},
    {"captions": ("d",)},
    {"id": "b"},
]


def test_a_data_position_knows_all_that_samples_hold() -> None:
    hashes = [hash_samples([Sample(**{**vars(BASE), **changed})]) for changed in [{}, *CHANGED]]
    assert len(set(hashes)) == len(CHANGED) + 1
    moved = {"turns": (Turn("user", ("hi", NoMedia("elsewhere", "p"))), TURNS[1])}
    assert hash_samples([Sample(**{**vars(BASE), **moved})]) == hashes[1 + CHANGED.index({"turns": TURNS})]
    plain = hashlib.sha256(b"a\x1fc\x1f\x1e").hexdigest()
    assert hashes[0] == plain, "what a run on captions remembers stays what it was"
