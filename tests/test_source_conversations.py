"""Conversations: the three usual formats give the same turns, with every image at its place."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from conversation_rows import messages, opened, section, shown, spoken
from pair_tables import make_images, write_lines
from pydantic import ValidationError

from mmtune.ground.errors import DataError
from mmtune.ground.records import NoMedia
from mmtune.sources import open_split, split_names, write_tiny

EXPECTED = [("user", "<0.png>", "how many?"), ("assistant", "two")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images ``images/0.png`` ... ``9.png`` and nothing else."""
    return make_images(tmp_path)


def one(folder: Path, row: dict[str, Any], **settings: Any) -> list[tuple[str, ...]]:
    write_lines(folder, row, name="chats.jsonl")
    result = opened(folder, **settings)
    assert result.bad == () and len(result.samples) == 1
    return shown(result.samples[0])


ASKED = {"type": "text", "text": "how many?"}


@pytest.mark.parametrize(
    "row",
    [
        messages(("user", [{"type": "image", "image": "0.png"}, ASKED]), ("assistant", "two")),
        messages(
            ("user", [{"type": "image"}, ASKED]), ("assistant", [{"type": "text", "text": "two"}]), images=["0.png"]
        ),
        messages(("user", [{"type": "image_url", "image_url": {"url": "0.png"}}, ASKED]), ("assistant", "two")),
        messages(("user", [{"type": "image_url", "image_url": "0.png"}, "how many?"]), ("assistant", "two")),
        messages(("user", "<image>how many?"), ("assistant", "two"), image="0.png"),
        messages(("user", "<image>\nhow many?\n"), ("assistant", " two\n"), images=[{"path": "0.png"}]),
        messages(("user", "<image>\r\nhow many?"), ("assistant", "two"), images="0.png"),
        spoken(("human", "<image>\nhow many?"), ("gpt", "two"), image="0.png"),
        spoken(("user", "<image>  \nhow many?"), ("assistant", "two"), image=["0.png"]),
        {"conversations": messages(("user", "<image>how many?"), ("assistant", "two"))["messages"], "image": "0.png"},
        spoken(("Human", "<image>\nhow many?"), ("GPT", "two"), image="./sub/../0.png", system=""),
    ],
)
def test_formats_say_the_same(folder: Path, row: dict[str, Any]) -> None:
    assert one(folder, row) == EXPECTED


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (spoken(("human", "how many?\n<image>"), ("gpt", "2"), image="1.png"), ("user", "how many?", "<1.png>")),
        (spoken(("human", "the <image> here"), ("gpt", "2"), image="1.png"), ("user", "the ", "<1.png>", " here")),
        (
            messages(("user", "<image>\n<image>\nsame?"), ("assistant", "no"), images=["2.png", "1.png"]),
            ("user", "<2.png>", "<1.png>", "same?"),
        ),
        (
            messages(
                ("user", [{"type": "image", "path": "3.png"}, {"type": "text", "text": "or <image>"}]),
                ("assistant", "no"),
                images=["1.png"],
            ),
            ("user", "<3.png>", "or ", "<1.png>"),
        ),
        (spoken(("human", "line\n\n  two "), ("gpt", "2")), ("user", "line\n\n  two")),
    ],
)
def test_images_stand_at_their_places(folder: Path, row: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert one(folder, row)[0] == expected


def test_several_turns_system_and_images_over_turns(folder: Path) -> None:
    row = messages(
        ("system", "be brief"),
        ("user", "<image> what?"),
        ("assistant", "a dot"),
        ("user", "and <image>?"),
        ("assistant", "none"),
        images=["0.png", "1.png"],
    )
    turns = [("system", "be brief"), ("user", "<0.png>", " what?"), ("assistant", "a dot")]
    turns += [("user", "and ", "<1.png>", "?"), ("assistant", "none")]
    assert one(folder, row) == turns
    beside = spoken(*((m["role"], m["content"]) for m in row["messages"][1:]), images=row["images"], system="be brief")
    assert one(folder, beside) == turns


def test_words_alone(folder: Path) -> None:
    write_lines(folder, spoken(("human", "hello"), ("gpt", "hi")), name="chats.jsonl")
    sample = opened(folder).samples[0]
    assert sample.media == NoMedia("row-1", f"{folder}/chats.jsonl:1") and shown(sample)[0] == ("user", "hello")
    assert (sample.captions, sample.question, sample.answers, sample.label) == ((), "", (), None)
    with pytest.raises(DataError, match="chats.jsonl:1: there is no image"):
        sample.media.read()


def test_turns_of_one_side_in_a_row_are_one(folder: Path) -> None:
    row = messages(
        ("system", "be brief"),
        ("system", "be kind"),
        ("user", "<image>"),
        ("user", "how many?"),
        ("user", "really?"),
        ("assistant", "two"),
        ("assistant", "or three"),
        image="0.png",
    )
    assert one(folder, row) == [
        ("system", "be brief\nbe kind"),
        ("user", "<0.png>", "how many?\nreally?"),
        ("assistant", "two\nor three"),
    ]
    note = "1 conversations have turns of one side in a row; they were joined by a line break"
    assert opened(folder).notes == (note,)
    write_lines(folder, spoken(("human", "hello"), ("gpt", "hi")), name="chats.jsonl")
    assert opened(folder).notes == ()


def test_a_json_list_is_read_and_its_rows_know_their_lines(folder: Path) -> None:
    rows: list[Any] = [spoken(("human", f"<image>\n{n}?"), ("gpt", "two"), image=f"{n}.png") for n in range(3)]
    rows[1:1] = ["no row", spoken(("human", "hi"))]
    plain = json.dumps(rows)
    for text in (plain, json.dumps(rows, indent=1), "\ufeff" + json.dumps(rows, indent="\t") + "\n", "[\n]"):
        (folder / "chats.json").write_text(text, encoding="utf-8")
        if text == "[\n]":
            with pytest.raises(DataError, match="chats.json has no usable|has no readable rows"):
                opened(folder, name="chats.json")
            continue
        result = opened(folder, name="chats.json")
        assert [sample.id for sample in result.samples] == ["row-1", "row-4", "row-5"] and result.num_seen == 5
        assert [sample.turns[0].text for sample in result.samples] == ["0?", "1?", "2?"]
        first, second = sorted(result.bad, key=lambda item: item.where)
        line = 1 + text[: text.index('"no row"')].count("\n")
        assert (first.where, first.reason) == (f"{folder}/chats.json:{line} (entry 2)", "not a JSON object: a str")
        assert second.where.endswith("(entry 3)") and second.reason.startswith("no answer to learn")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"b": }]', r"chats.json:2 is not JSON: Expecting value at column 7"),
        ('[{"a": 1}\n{"b": 2}]', r"chats.json:2 is not JSON: a comma or \] is missing at column 1"),
        ('[{"a": 1}', r"chats.json:1 is not JSON: a comma or \] is missing at column 10"),
        ('[{"a": 1}]\n[{"a": 2}]', "chats.json:2 comes after the list's end"),
        ("[" * 100_000, "is not JSON"),
        ('{\n"messages": []}', "is one JSON object; write a list of objects, or one object per line"),
        ("", "chats.json has no usable|has no readable rows"),
    ],
)
def test_files_that_are_no_conversations(folder: Path, text: str, message: str) -> None:
    (folder / "chats.json").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(folder, name="chats.json")
    with pytest.raises(DataError, match="no such file: .*chat.json; did you mean 'chats.json'"):
        opened(folder, name="chat.json")


def test_ids_columns_and_groups(folder: Path) -> None:
    rows = [spoken(("human", "<image> a?"), ("gpt", "b"), image=f"{n}.png", sku=f"s{n % 3}", shop=n) for n in range(4)]
    write_lines(folder, *rows, name="chats.jsonl")
    samples = opened(folder).samples
    assert [(each.id, each.group) for each in samples] == [(f"row-{n + 1}", f"{n}.png") for n in range(4)]
    assert samples[3].columns == {"sku": "s0", "shop": "3"} and pickle.loads(pickle.dumps(samples)) == samples
    named = opened(folder, id="sku")
    assert [each.id for each in named.samples] == ["s0", "s1", "s2"] and "sku" not in named.samples[0].columns
    assert named.bad[0].where.endswith(":4") and "id occurs twice: 's0' is that of" in named.bad[0].reason
    with pytest.raises(DataError, match="data.id: .* has no column 'skU'; did you mean 'sku'"):
        opened(folder, id="skU")


NAMES = ("train", "validation", "test")


def test_images_and_words_are_never_in_two_splits(folder: Path) -> None:
    rows = [
        spoken(("human", "<image> <image> a?"), ("gpt", str(n)), images=[f"{n % 5}.png", f"{n % 5 + 5}.png"])
        for n in range(30)
    ]
    rows += [spoken(("human", f"hello {n % 9}"), ("gpt", "hi")) for n in range(30)]
    write_lines(folder, *rows, name="chats.jsonl")
    split = {"validation": "30%", "test": "30%"}
    found = {name: opened(folder, name, split=split).samples for name in NAMES}
    assert sum(map(len, found.values())) == 60 and all(found.values())
    images = [
        {image.key for each in samples for turn in each.turns for image in turn.media} for samples in found.values()
    ]
    assert sum(map(len, images)) == len(set.union(*images)) == 10
    words = [{each.turns[0].text for each in samples if not each.turns[0].media} for samples in found.values()]
    assert sum(map(len, words)) == len(set.union(*words)) == 9
    chain = [spoken(("human", "<image><image>?"), ("gpt", "x"), images=[f"{n}.png", f"{n + 1}.png"]) for n in range(9)]
    write_lines(folder, *chain, name="chats.jsonl")
    held = [name for name in NAMES if any(True for _ in _samples(folder, name, split))]
    assert len(held) == 1, "images that meet in one conversation stay together"


def _samples(folder: Path, name: str, split: dict[str, Any]) -> Any:
    try:
        return opened(folder, name, split=split).samples
    except DataError as error:
        assert "has no usable conversation" in str(error)
        return ()


def test_splits_by_file_by_key_and_by_id(folder: Path) -> None:
    rows = [spoken(("human", "<image> a?"), ("gpt", "b"), image=f"{n}.png", part="ab"[n % 2], id=n) for n in range(8)]
    write_lines(folder, *rows[:5], rows[6], name="a.jsonl")
    write_lines(folder, *rows[5:], name="b.jsonl")
    files = {"train": str(folder / "a.jsonl"), "test": str(folder / "b.jsonl")}
    train, test = (opened(folder, name, path=files) for name in ("train", "test"))
    assert [each.id for each in train.samples] == [f"train-{n}" for n in range(1, 6)] and len(test.samples) == 3
    assert train.bad[0].where.endswith("a.jsonl:6") and test.bad == ()
    assert f"image is in another split too: {folder}/b.jsonl:2 puts it into test" in train.bad[0].reason
    write_lines(folder, *rows, name="chats.jsonl")
    by_key = {
        name: opened(folder, name, splits={"train": "a", "test": "b", "column": "part"}) for name in ("train", "test")
    }
    assert [[each.media.where[-5] for each in by_key[name].samples] for name in by_key] == [list("0246"), list("1357")]
    by_id = [opened(folder, name, split={"test": "40%", "by": "id"}, id="id").samples for name in ("train", "test")]
    assert sorted(each.group for samples in by_id for each in samples) == [str(n) for n in range(8)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": None}, "how is the table split"),
        ({"split": {}, "splits": {"train": "a"}}, "delete one of them"),
        ({"path": {"train": "a"}, "split": {}}, "delete split"),
        ({"captions": "all"}, "Extra inputs are not permitted"),
        ({"downloads": {"max_bytes": 0}}, "greater than or equal to 1"),
        ({"downloads": {"seconds": 0}}, "greater than 0"),
    ],
)
def test_settings_that_contradict(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(folder, **settings)


def test_what_it_holds(folder: Path) -> None:
    chosen = section(folder)
    assert (chosen.fields, chosen.captions, chosen.modality) == ({"turns"}, "one", "image")
    assert type(chosen).model_validate_json(json.dumps(chosen.model_dump(mode="json"))) == chosen
    with pytest.raises(DataError, match="data.images: no such folder: .*/none"):
        write_lines(folder, spoken(("human", "hello"), ("gpt", "hi")), name="chats.jsonl")
        opened(folder, images=str(folder / "none"))


HASH = {"validation": "10%", "test": "5%"}


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "/none/a.jsonl", "images": "/none", "split": HASH},
        {"path": "/none/a.json", "images": None, "split": HASH},
        {"path": "/none/a.json", "images": None, "split": {**HASH, "by": "id"}, "id": "id"},
        {"path": {"train": "/none/a.json", "test": "/none/b.jsonl"}, "images": "/none", "downloads": {}},
        {"path": "/none/a.jsonl", "splits": {"train": ["a", "b"], "test": "c"}, "id": "name"},
    ],
)
def test_tiny_data(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    tiny = write_tiny(section(folder, **settings), tmp_path / "new")
    found = {name: open_split(tiny, name, seed=0) for name in split_names(tiny)}
    assert not any(each.bad for each in found.values()) and sum(len(each.samples) for each in found.values()) == 24
    samples = [each for split in found.values() for each in split.samples]
    assert {len(each.turns) for each in samples} == {2, 4}
    assert all(each.media.read().size[0] >= 32 and each.turns[0].media == (each.media,) for each in samples)
    assert all(each.turns[-1].role == "assistant" and each.turns[-1].text for each in samples)
    text = (tmp_path / "new").rglob("*.json*")
    assert all("messages" in file.read_text() and "conversations" in file.read_text() for file in text)
