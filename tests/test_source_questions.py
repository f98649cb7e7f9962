"""Tables that ask: a sample per row with its question and answers, or with whether its caption is true."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pair_tables import make_images, opened, reasons, section, write_lines
from pydantic import TypeAdapter, ValidationError

from mmtune.ground.errors import DataError
from mmtune.ground.kind_folder import section_union
from mmtune.sources import OpenedSplit, open_split, split_names, write_tiny
from mmtune.sources._answers import FALSE, TRUE

SOURCE = TypeAdapter(section_union("sources"))
ASKED = {"question": "q", "answers": "a"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images ``images/0.png`` ... ``9.png`` and nothing else."""
    return make_images(tmp_path)


def row(image: int, question: object = "how many?", answers: object = "two", **more: Any) -> dict[str, Any]:
    return {"image": f"{image}.png", "q": question, "a": answers, **more}


def answers(result: OpenedSplit) -> dict[str, tuple[str, ...]]:
    return {sample.id: sample.answers for sample in result.samples}


# --- questions


def test_every_row_is_a_sample_of_its_own(folder: Path) -> None:
    write_lines(folder, row(0, " how many? ", " two "), row(0, "which colour?", "red"), row(1), row(0, answers="2"))
    result = opened(folder, **ASKED)
    found = [(one.id, one.question, one.answers, one.group) for one in result.samples]
    assert found == [
        ("0.png#1", "how many?", ("two",), "0.png"),
        ("0.png#2", "which colour?", ("red",), "0.png"),
        ("1.png#1", "how many?", ("two",), "1.png"),
        ("0.png#3", "how many?", ("2",), "0.png"),
    ]
    assert result.bad == () and result.num_seen == 4
    one = result.samples[0]
    assert (one.captions, one.label, one.turns, one.columns) == ((), None, (), {})
    assert one.media.key == result.samples[3].media.key and pickle.loads(pickle.dumps(one)) == one


def test_without_question_rows_of_an_image_are_one_sample_as_ever(folder: Path) -> None:
    write_lines(folder, *({**row(0), "caption": text} for text in ("a", "b")))
    only = opened(folder).samples
    assert [(one.id, one.captions, one.question, one.answers) for one in only] == [("0.png", ("a", "b"), "", ())]
    assert dict(only[0].columns) == {"q": "how many?", "a": "two"}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("red", ("red",)),
        (3, ("3",)),
        (0.5, ("0.5",)),
        (["red"] * 9 + ["dark red"], ("red",) * 9 + ("dark red",)),
        ([{"answer": "red", "answer_confidence": "yes", "answer_id": 1}, {"answer": "blue"}], ("red", "blue")),
        ({"answer": "red"}, ("red",)),
        ({"text": ["red", "dark red"], "start": [1, 2]}, ("red", "dark red")),
        ([1, "one"], ("1", "one")),
        ("no", ("no",)),
    ],
)
def test_answers_as_data_sets_write_them(folder: Path, cell: object, expected: tuple[str, ...]) -> None:
    write_lines(folder, row(0, answers=cell))
    assert answers(opened(folder, **ASKED)) == {"0.png#1": expected}


def test_bad_rows_say_their_line_and_nothing_is_lost(folder: Path) -> None:
    bad = [
        (row(1, question=""), "empty question: column 'q'"),
        (row(1, question=5), "question is not text: column 'q' holds an int"),
        (row(1, answers=""), "empty answer: column 'a'"),
        (row(1, answers=[]), "no answer: column 'a' is an empty list"),
        (row(1, answers=["", None]), "empty answer: column 'a', item 1 of its list; empty answer: column 'a', item 2"),
        (row(1, answers=True), "answer is not text: column 'a' holds true; write yes or no"),
        (row(1, answers=[["a"]]), "answer is not text: column 'a', item 1 of its list holds a list; write a text"),
        (row(1, answers={"x": 1}), "answer is not text: column 'a' holds a dict"),
        (row(1, answers='["red", "blue"]'), "answers are a list written as text: column 'a'; lists need JSON lines"),
        (row(1, question=None, answers=None), "empty question: column 'q'; empty answer: column 'a'"),
        ({"image": "", "q": "x", "a": "y"}, "no image: column 'image' is empty"),
        ({**row(1), "image": "https://x.org/a.png"}, "image is an address: 'https://x.org/a.png'; fetch the files"),
        ("not json", "not JSON"),
    ]
    write_lines(folder, row(0), *(one for one, _ in bad), row(2))
    result = opened(folder, **ASKED)
    assert list(answers(result)) == ["0.png#1", "2.png#1"]
    assert len(result.samples) + len(result.bad) == result.num_seen == 2 + len(bad)
    found = {int(line): reason for line, reason in reasons(result)}
    for line, (_, reason) in enumerate(bad, start=2):
        assert found[line].startswith(reason), line


def test_one_empty_answer_of_several_costs_that_answer(folder: Path) -> None:
    write_lines(folder, row(0, answers=["red", "", "red"]))
    result = opened(folder, **ASKED)
    assert answers(result) == {"0.png#1": ("red", "red")}
    assert reasons(result) == [
        ("1", "empty answer: column 'a', item 2 of its list; the row stays with its other answers")
    ]


def test_a_broken_image_costs_every_question_about_it(folder: Path) -> None:
    write_lines(folder, row(0), {**row(0), "image": "none.png"}, {**row(0), "image": "none.png"})
    result = opened(folder, **ASKED)
    assert list(answers(result)) == ["0.png#1"] and result.num_seen == 3
    assert [item.reason for item in result.bad] == ["no such file"] * 2


def test_ids_of_rows(folder: Path) -> None:
    write_lines(folder, row(0, id="q1"), row(0, id="q2"), row(1, id="q1"))
    result = opened(folder, **ASKED, id="id")
    assert list(answers(result)) == ["q1", "q2"]
    assert reasons(result)[0][1].startswith("id occurs twice: 'q1' is that of another row (not of an image) too, in")


def test_questions_about_an_image_are_never_torn_apart(folder: Path) -> None:
    write_lines(folder, *(row(number % 10, f"question {number}") for number in range(60)))
    split = {"validation": "30%", "test": "30%"}
    names = ("train", "validation", "test")
    found = {name: opened(folder, name, **ASKED, split=split).samples for name in names}
    assert sum(map(len, found.values())) == 60
    images = [{sample.media.key for sample in samples} for samples in found.values()]
    assert sum(map(len, images)) == len(set.union(*images)) == 10 and all(images)
    files = {"train": str(folder / "a.jsonl"), "test": str(folder / "b.jsonl")}
    write_lines(folder, row(0), row(1), name="a.jsonl")
    write_lines(folder, row(1, "another?"), name="b.jsonl")
    train = opened(folder, **ASKED, path=files)
    assert list(answers(train)) == ["0.png#1"]
    assert "image is in another split too" in train.bad[0].reason and "b.jsonl:1 puts '1.png' into test" in str(train)


def test_questions_without_answers_can_be_read(folder: Path) -> None:
    write_lines(folder, row(0))
    assert answers(opened(folder, question="q")) == {"0.png#1": ()}
    assert section(folder, question="q").fields == {"question"} and section(folder, **ASKED).fields == set(
        ("question", "answers")
    )
    assert section(folder).fields == {"captions"} and section(folder, label="l").fields == {"captions", "label"}


def test_csv_and_missing_columns(folder: Path) -> None:
    (folder / "p.csv").write_text('image,q,a\n0.png,"how many, really?",2\n')
    assert answers(opened(folder, name="p.csv", **ASKED)) == {"0.png#1": ("2",)}
    with pytest.raises(DataError, match=r"data.question: .* has no column 'quest'.*\n?.*"):
        opened(folder, name="p.csv", question="quest", answers="answer")
    with pytest.raises(DataError, match="data.answers: .* has no column 'answer'"):
        opened(folder, name="p.csv", question="quest", answers="answer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": "a"}, "answers needs the question"),
        ({"question": "q", "label": "l"}, "keep one of them"),
        ({"question": "q", "caption": "text"}, "with question no caption is read"),
        ({"question": "q", "captions": "all"}, "an epoch is every row once: delete captions"),
        ({"label": "l", "captions": "all"}, "an epoch is every row once: delete captions"),
    ],
)
def test_settings_that_contradict(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(folder, **settings)


# --- labels


def test_labels(folder: Path) -> None:
    cells = [(True, True), (False, False), (1, True), (0, False), ("1", True), ("0", False), (1.0, True), (0.0, False)]
    cells += [(word, True) for word in TRUE] + [(word.upper(), False) for word in FALSE] + [(" Yes ", True)]
    write_lines(folder, *({"image": "0.png", "caption": f"text {n}", "l": cell} for n, (cell, _) in enumerate(cells)))
    result = opened(folder, label="l")
    assert [one.label for one in result.samples] == [label for _, label in cells] and result.bad == ()
    assert [one.captions for one in result.samples] == [(f"text {n}",) for n in range(len(cells))]
    assert [one.id for one in result.samples[:2]] == ["0.png#1", "0.png#2"]
    assert {one.group for one in result.samples} == {"0.png"}


def test_bad_labels_say_what_is_allowed(folder: Path) -> None:
    rows = [("x", "maybe"), ("x", None), ("x", 2), ("", True), (["x", "y"], True), ("", "maybe"), ("x", [1])]
    write_lines(folder, *({"image": "0.png", "caption": text, "l": label} for text, label in [("x", True), *rows]))
    result = opened(folder, label="l")
    assert len(result.samples) == 1 and result.num_seen == len(rows) + 1
    allowed = "write one of true, 1, yes, match, or one of false, 0, no, no match"
    assert [reason for _, reason in reasons(result)] == [
        f"label is neither true nor false: column 'l' holds 'maybe'; {allowed}",
        "empty label: column 'l'",
        f"label is neither true nor false: column 'l' holds '2'; {allowed}",
        "empty caption: column 'caption'",
        "one label for 2 captions: write a row for each caption, with its own label",
        f"empty caption: column 'caption'; label is neither true nor false: column 'l' holds 'maybe'; {allowed}",
        f"label is neither true nor false: column 'l' holds '[1]'; {allowed}",
    ]


# --- the other tables


def cells(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    return [{**one, "image": {"bytes": (folder / "images" / one["image"]).read_bytes(), "path": None}} for one in rows]


def test_parquet_and_hub_ask_too(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    saved = folder / "saved"
    saved.mkdir()
    votes = [{"answer": "two", "answer_id": 1}, {"answer": "2", "answer_id": 2}]
    rows = [row(0, answers=votes), row(0, "which?", votes[:1]), row(1, "", votes)]
    pq.write_table(pa.Table.from_pylist(cells(rows, folder)), saved / "a.parquet")
    for source in (
        {"kind": "parquet", "path": str(saved / "a.parquet"), "split": {}},
        {"kind": "hub", "id": str(saved), "split": {}},
    ):
        section = SOURCE.validate_json(json.dumps({**source, **ASKED, "max_bad_fraction": 0.5}))
        result = open_split(section, "train", seed=0)
        assert [one.answers for one in result.samples] == [("two", "2"), ("two",)]
        assert len({one.media.key for one in result.samples}) == 1 and len({one.id for one in result.samples}) == 2
        assert [(item.where.rsplit(": ")[-1], item.reason) for item in result.bad] == [
            ("row 3", "empty question: column 'q'")
        ]
        with pytest.raises(DataError, match="data.question: .* no column 'ask'"):
            open_split(section.model_copy(update={"question": "ask"}), "train", seed=0)
    labelled = [{"image": "0.png", "caption": "x", "l": True}, {"image": "0.png", "caption": "y", "l": False}]
    pq.write_table(pa.Table.from_pylist(cells(labelled, folder)), saved / "a.parquet")
    section = SOURCE.validate_json(
        json.dumps({"kind": "parquet", "path": str(saved / "a.parquet"), "split": {}, "label": "l"})
    )
    samples = open_split(section, "train", seed=0).samples
    assert [(one.captions, one.label) for one in samples] == [(("x",), True), (("y",), False)]


# --- made-up rows


HASH = {"validation": "5%", "test": "3%"}
MADE_UP: dict[str, dict[str, Any]] = {
    "jsonl": {"kind": "jsonl", "path": "/none/a.jsonl", "images": "/none", "split": HASH},
    "csv": {"kind": "jsonl", "path": "/none/a.csv", "split": {**HASH, "by": "sku"}, "id": "number"},
    "sounds": {"kind": "jsonl", "path": "/none/a.jsonl", "sounds": "/none", "split": HASH},
    "parquet": {"kind": "parquet", "path": {"train": "/none/a", "test": "/none/b"}, "image": "photo"},
    "hub": {"kind": "hub", "id": "owner/name", "splits": {"train": "train", "test": "validation"}},
}


@pytest.mark.parametrize("name", MADE_UP)
@pytest.mark.parametrize("asked", ["question", "label"])
def test_tiny_data(name: str, asked: str, tmp_path: Path) -> None:
    more = {"question": "ask", "answers": "replies"} if asked == "question" else {"label": "fits", "caption": "text"}
    section = SOURCE.validate_json(json.dumps({**MADE_UP[name], **more}))
    tiny = write_tiny(section, tmp_path / "new")
    found = {split: open_split(tiny, split, seed=0) for split in split_names(section)}
    assert not any(one.bad for one in found.values()) and sum(len(one.samples) for one in found.values()) == 48
    samples = [one for split in found.values() for one in split.samples]
    assert len({one.id for one in samples}) == 48 and len({one.media.key for one in samples}) == 24
    if asked == "question":
        assert all(one.question and not one.captions for one in samples)
        assert {len(one.answers) for one in samples} == {1 if name == "csv" else 3}
    else:
        assert sum(one.label is True for one in samples) == sum(one.label is False for one in samples) == 24
        true = {one.media.key: one.captions[0] for one in samples if one.label}
        assert all(one.captions[0] not in true[one.media.key] for one in samples if not one.label)
