"""Conversations that cannot be trained on: each costs itself, with its file, its line and what would be right."""

from pathlib import Path
from typing import Any

import pytest
from conversation_rows import messages, opened, section, spoken
from pair_tables import make_images, reasons, write_lines

from mmtune.ground.errors import DataError
from mmtune.sources import open_split

GOOD = spoken(("human", "<image>\nhow many?"), ("gpt", "two"), image="0.png")
BAD: list[tuple[Any, str]] = [
    ("{'a': 1}", "not JSON: Expecting property name"),
    ("[1]", "not a JSON object: a list"),
    ('{"messages": "\\ud800"}', "half a character"),
    (
        {"caption": "x", "image": "0.png"},
        "no conversation: the row has caption, image; write a list of turns under mes",
    ),
    ({}, "no conversation: the row has nothing"),
    ({"messages": "hello"}, "no list of turns: 'messages' holds a str"),
    ({"messages": []}, "no turns: 'messages' is an empty list"),
    ({"messages": ["hello"]}, "not a turn: turn 1 is a str, not an object with role and content"),
    (
        spoken(("human", "hi"), ("gpt", "hello"), ("human", "bye")),
        "no answer to learn: the last turn is the user's; it",
    ),
    (spoken(("human", "hi")), "no answer to learn: the last turn is the user's; it must be the assistant's (assistant"),
    (
        messages(("system", "be brief")),
        "nobody asked: the first turn after the system's is the user's; no answer to le",
    ),
    (
        messages(("system", "")),
        "nobody asked: the first turn after the system's is the user's; no answer to learn: the",
    ),
    (spoken(("gpt", "hello"), ("human", "hi"), ("gpt", "bye")), "nobody asked: the first turn after the system's is t"),
    (
        messages(("user", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")),
        "system turn in the middle: it may only stand first",
    ),
    (messages(("user", "hi"), ("assistant", "")), "empty answer: turn 2 (assistant) says nothing"),
    (messages(("user", "hi"), ("assistant", None)), "empty answer: turn 2 (assistant) says nothing"),
    (spoken(("human", "hi"), ("gpt", " \n")), "empty answer: turn 2 (gpt) says nothing"),
    (messages(("user", []), ("assistant", "hi")), "empty turn: turn 1 (user) says nothing"),
    (
        spoken(("human", ""), ("gpt", ""), ("tool", "x")),
        "empty turn: turn 1 (human) says nothing; empty answer: turn 2 (gpt) says nothing; unknown role: turn 3 is by "
        "'tool'; write one of user, human, assistant, gpt, system",
    ),
    ({"messages": [{"content": "hi"}]}, "unknown role: turn 1 is by None; write one of"),
    (spoken(("human", "<video>\nwho?"), ("gpt", "x"), video="a.mp4"), "no images: the row has video, and images alone"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
        "turn with a weight of its own: turn 2 has weight 0; all that the assistant says is learned alike",
    ),
    (messages(("user", 5), ("assistant", "x")), "content is not text: turn 1 holds an int; write a text, or a list of"),
    (
        messages(("user", [{"type": "video", "video": "a.mp4"}]), ("assistant", "x")),
        "unknown content: turn 1 has a part 'video'; write type text (with text), image or image_url",
    ),
    (messages(("user", [{"type": "text"}]), ("assistant", "x")), "unknown content: turn 1 has a part 'text'"),
    (messages(("user", [7]), ("assistant", "x")), "unknown content: turn 1 has a part an int"),
    (
        messages(("user", "draw"), ("assistant", "<image>"), image="0.png"),
        "image in a wrong turn: turn 2 is by 'assistant'; images and <image> stand in user turns",
    ),
    (
        messages(("system", "<image>"), ("user", "a"), ("assistant", "b"), image="0.png"),
        "image in a wrong turn: turn 1",
    ),
    (
        spoken(("human", "how many?"), ("gpt", "two"), image="0.png"),
        "missing image placeholder: 1 image in image or images; write <image> in the user's text where each stands",
    ),
    (
        spoken(("human", "<image> <image>?"), ("gpt", "two"), image="0.png"),
        "more placeholders than images: 2 <image> and 1 image in image or images; write one for each image",
    ),
    (spoken(("human", "what is <image>?"), ("gpt", "a tag")), "more placeholders than images: 1 <image> and 0 images"),
    (
        spoken(("human", "<image>?"), ("gpt", "two"), images=["0.png", "1.png"]),
        "fewer placeholders than images: 1 <image> and 2 images in image or images; write one for each image",
    ),
    (
        messages(("user", [{"type": "image", "image": 5}]), ("assistant", "x")),
        "image is no path: turn 1 holds an int; write its path",
    ),
    (spoken(("human", "<image>"), ("gpt", "x"), image={"bytes": "x"}), "image is no path: 'image' holds a dict"),
    (spoken(("human", "<image>"), ("gpt", "x"), image="0.png", images=["0.png"]), "both image and images: the row has"),
    (
        spoken(("human", "<image>"), ("gpt", "x"), image="../up.png"),
        "image outside its folder: '../up.png' leads out of",
    ),
    (
        spoken(("human", "<image>"), ("gpt", "x"), image="/etc/hosts"),
        "image outside its folder: '/etc/hosts' leads out",
    ),
    (
        messages(("user", [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}]), ("assistant", "x")),
        "image is an address: 'https://x.org/a.png'; fetch the files first and give their paths, or allow it in the "
        "recipe: data.downloads: {max_bytes: 5000000, seconds: 10}",
    ),
    (
        spoken(("human", "<image>"), ("gpt", "x"), image="HTTP://x.org/a.png"),
        "image is an address: 'HTTP://x.org/a.png'",
    ),
    (
        spoken(("human", "<image>"), ("gpt", "x"), image="file:///etc/passwd"),
        "image is an address: 'file:///etc/passwd'",
    ),
    (spoken(("human", "<image>"), ("gpt", "x"), image="ftp://x.org/a.png"), "image is an address: 'ftp://x.org/a.png'"),
    (
        spoken(("human", "<image>"), ("gpt", "x"), image="data:image/png;base64,AA"),
        "image is written in letters (data:",
    ),
    (spoken(("human", "<image>"), ("gpt", "x"), image="none.png"), "no such file: "),
    (spoken(("human", "<image>"), ("gpt", "x"), image="page.png"), "not an allowed format: a web page"),
    (
        spoken(("human", "<image><image>"), ("gpt", "x"), images=["none.png", "page.png"]),
        "no such file: FOLDER/images/none.png; not an allowed format: a web page, allowed are JPEG, PNG, WEBP, BMP, "
        "GIF, TIFF, PPM: FOLDER/images/page.png",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, and a web page that calls itself one."""
    made = make_images(tmp_path)
    (made / "images" / "page.png").write_bytes(b"<html>not found</html>")
    return made


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_each_bad_row_says_what_is_wrong_and_what_would_be_right(folder: Path, row: Any, reason: str) -> None:
    write_lines(folder, GOOD, row, GOOD, name="chats.jsonl")
    result = opened(folder)
    assert [sample.id for sample in result.samples] == ["row-1", "row-3"] and result.num_seen == 3
    (line, found), *others = reasons(result)
    assert not others and line == "2" and result.bad[0].where == f"{folder}/chats.jsonl:2"
    assert found.startswith(reason.replace("FOLDER", str(folder)))


def test_nothing_is_lost(folder: Path) -> None:
    rows = [row for row, _ in BAD]
    write_lines(folder, *rows, GOOD, name="chats.jsonl")
    result = opened(folder)
    assert len(result.samples) == 1 and len(result.bad) == len(rows) and result.num_seen == len(rows) + 1
    assert sorted(int(line) for line, _ in reasons(result)) == list(range(1, len(rows) + 1))
    split = {"validation": "30%", "test": "30%"}
    write_lines(folder, *rows, *(dict(GOOD, image=f"{n}.png") for n in range(10)), name="chats.jsonl")
    found = [opened(folder, name, split=split) for name in ("train", "validation", "test")]
    assert sum(each.num_seen for each in found) == len(rows) + 10
    assert sum(len(each.samples) for each in found) == 10


def test_the_run_goes_on_within_the_limit_and_not_beyond(folder: Path) -> None:
    write_lines(folder, *[GOOD] * 9, BAD[8][0], name="chats.jsonl")
    assert len(open_split(section(folder, max_bad_fraction=0.1), "train", seed=0).samples) == 9
    with pytest.raises(DataError) as caught:
        open_split(section(folder), "train", seed=0)
    assert "1 of 10 lines and images are bad, 10.0%; data.max_bad_fraction allows 1.0%" in str(caught.value)
    assert "1 x no answer to learn" in str(caught.value) and "chats.jsonl:10: no answer to learn" in str(caught.value)
    write_lines(folder, BAD[8][0], name="chats.jsonl")
    with pytest.raises(DataError, match="split 'train' has no usable conversation: 1 bad rows; first: .*chats.jsonl:1"):
        open_split(section(folder), "train", seed=0)


def test_empty_keys(folder: Path) -> None:
    write_lines(folder, {**GOOD, "id": "a"}, GOOD, {**GOOD, "id": ""}, name="chats.jsonl")
    result = opened(folder, id="id")
    assert [sample.id for sample in result.samples] == ["a"]
    assert reasons(result) == [("2", "empty cell: key 'id'"), ("3", "empty cell: key 'id'")]
