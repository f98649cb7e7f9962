"""The trial on real data: made-up archives become tables, outcomes become a table of figures."""

import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scripts import try_real_data  # noqa: E402
from scripts.trials.real_data import (  # noqa: E402
    convert_easy_vqa,
    convert_emoji,
    convert_nlvr,
    find_archive,
    make_blip,
    make_vilt,
    read_rows,
    stack_boxes,
)
from scripts.trials.real_data_table import Outcome, interval_of, table_lines  # noqa: E402

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_easy_vqa(folder: Path) -> Path:
    for split in ("train", "test"):
        save(folder / split / "images" / "0.png", RED)
        asked = [["is it red?", "yes", 0], ["what is it?", "circle", 0]]
        (folder / split / "questions.json").write_text(json.dumps(asked))
    (folder / "answers.txt").write_text("yes\nno\ncircle\n")
    return folder


def write_nlvr(folder: Path) -> Path:
    for split, names in (("dev", ["10-0", "7-0", "7-3"]), ("test", ["8-1"])):
        lines = []
        for name in names:
            for order in range(6):
                path = save(folder / split / "images" / "2" / f"{split}-{name}-{order}.png", GREY, (400, 100))
                with Image.open(path) as image:
                    for left, colour in ((0, RED), (150, GREEN), (300, BLUE)):
                        image.paste(colour, (left, 0, left + 100, 100))
                    image.save(path)
            lines.append(json.dumps({"sentence": f"of {name}", "label": "true", "identifier": name, "directory": "2"}))
        (folder / split / f"{split}.json").write_text("\n".join(lines) + "\n")
    return folder


def test_an_archive_is_unpacked_once_and_found_unpacked(tmp_path: Path) -> None:
    assert find_archive("easy_vqa", tmp_path, tmp_path / "cache") is None
    source = write_easy_vqa(tmp_path / "made" / "easy_vqa")
    with tarfile.open(tmp_path / "easy_vqa.tar", "w") as archive:
        archive.add(source, "easy_vqa")
    found = find_archive("easy_vqa", tmp_path, tmp_path / "cache")
    assert found == tmp_path / "cache" / "archives" / "easy_vqa" and (found / "test" / "questions.json").is_file()
    assert not (tmp_path / "easy_vqa").exists()
    assert find_archive("easy_vqa", tmp_path / "made", tmp_path / "other") == source
    assert find_archive("easy_vqa", tmp_path / "made" / "easy_vqa", tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_questions_stay_in_their_split(tmp_path: Path) -> None:
    tables = convert_easy_vqa(write_easy_vqa(tmp_path / "easy_vqa"), tmp_path / "cache")
    rows = {split: read_rows(path) for split, path in tables.items()}
    assert [row["answer"] for row in rows["test"]] == ["yes", "circle"]
    assert {row["image"] for row in rows["train"]} == {"train/images/0.png"}
    assert {row["image"] for row in rows["test"]} == {"test/images/0.png"}
    assert len({row["id"] for split in rows.values() for row in split}) == 4
    assert len({row["id"].partition("/")[0] for row in rows["test"]}) == 1  # one image


def test_sentences_are_split_by_their_number(tmp_path: Path) -> None:
    tables = convert_nlvr(write_nlvr(tmp_path / "nlvr"), tmp_path / "cache", 20)
    rows = {split: read_rows(path) for split, path in tables.items()}
    assert {split: len(each) for split, each in rows.items()} == {"train": 12, "validation": 1, "test": 1}
    groups = {split: {row["id"].partition("/")[0] for row in each} for split, each in rows.items()}
    assert groups == {"train": {"7"}, "validation": {"10"}, "test": {"8"}}
    assert all((tmp_path / "cache" / "images-20" / row["image"]).is_file() for each in rows.values() for row in each)


def test_boxes_are_stacked(tmp_path: Path) -> None:
    write_nlvr(tmp_path)
    square = stack_boxes(tmp_path / "test" / "images" / "2" / "test-8-1-0.png", 20)
    assert square.size == (20, 20)
    assert [square.getpixel(place) for place in ((4, 4), (15, 4), (4, 15), (15, 15))] == [RED, GREEN, BLUE, GREY]


def test_emoji_without_a_picture_of_the_style_are_left_out(tmp_path: Path) -> None:
    lines = [{"id": name, "caption": f"a {name}", "split": split} for name, split in (("1f", "train"), ("2f", "test"))]
    lines.append({"id": "3f", "caption": "none", "split": "test"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save(tmp_path / "images" / "3d" / "1f.jpg", RED)
    save(tmp_path / "images" / "3d" / "2f.png", RED)
    tables = convert_emoji(tmp_path, tmp_path / "cache", "3d")
    rows = {split: read_rows(path) for split, path in tables.items()}
    assert [row["image"] for row in rows["train"]] == ["images/3d/1f.jpg"]
    assert [row["caption"] for row in rows["test"]] == ["a 2f"]


def test_networks_are_ordinary_folders_that_know_the_words(tmp_path: Path) -> None:
    from mmtune.backbones import Section, load

    size = {"side": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2, "length": 8}
    folder = make_vilt(tmp_path / "a", "ViltForQuestionAnswering", ["is it red?"], ["yes", "no"], size)
    backbone = load(Section(id=str(folder)))
    assert backbone.family.answers_of(backbone.model.config) == ["yes", "no"]
    tokenizer = backbone.processor.tokenizer
    assert len(tokenizer("is it red?")["input_ids"]) == 6 < len(tokenizer("is it rad?")["input_ids"])
    again = make_vilt(tmp_path / "b", "ViltForQuestionAnswering", ["is it red?"], ["yes", "no"], size)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    captioner = load(Section(id=str(make_blip(tmp_path / "c", ["keycap: #", "heart-eyes"]))))
    tokenizer = captioner.processor.tokenizer
    assert tokenizer.decode(tokenizer("keycap: #", add_special_tokens=False)["input_ids"]) == "keycap: #"


# --- the table


def answered(values: list[float], groups: list[int]) -> list[dict[str, Any]]:
    return [
        {"id": f"{group}/{n}", "base": {"scores": {"accuracy": 0.0}}, "tuned": {"scores": {"accuracy": value}}}
        for n, (value, group) in enumerate(zip(values, groups, strict=True))
    ]


@pytest.fixture
def outcome() -> Outcome:
    scores = {"base": {"accuracy": 0.0}, "tuned": {"accuracy": 0.75}, "delta": {"accuracy": 0.75}, "samples": 1004}
    return Outcome(
        about="is it true",
        network="a network",
        recipe={"train": {"batch": 64, "precision": "fp32"}},
        manifest={"steps": 1200, "seconds": 61.7, "trainable": {"count": 1234567, "share": 0.25}},
        scores={**scores, "interval95": {"accuracy": [0.25, 1.0]}, "majority": {"answer": "yes", "share": 0.5}},
        answers=answered([1, 1, 1, 0], [0, 1, 2, 3]),
        merge={"reload": {"gap": 2.5e-7}},
        merged={"accuracy": 0.75},
    )


def test_the_table_holds_what_the_run_tells(outcome: Outcome) -> None:
    text = "\n".join(table_lines({"nlvr": outcome}, {"emoji": "it is not there"}))
    assert (
        "| nlvr: is it true | a network | 1,004 | 1,200 x 64, fp32 | 62 | accuracy | 0.000 (0.000 to 0.000) |" in text
    )
    assert "| 0.750 (0.250 to 1.000) | +0.750 (+0.250 to +1.000) | 0.500 |" in text
    assert "| nlvr | 1,234,567 (25.0%) | 2.5e-07 | accuracy 0.7500 | 0.7500 |" in text
    assert "Left out: emoji, because it is not there." in text
    assert " cores, " in text or " core, " in text
    one_group = replace(outcome, scores={**outcome.scores, "interval95": {"accuracy": None}})
    assert "| - | 0.500 |" in "\n".join(table_lines({"nlvr": one_group}, {}))


def test_intervals_draw_groups_and_not_samples() -> None:
    apart = interval_of(answered([1, 0] * 50, list(range(100))), "tuned", "accuracy")
    together = interval_of(answered([1] * 50 + [0] * 50, [0] * 50 + [1] * 50), "tuned", "accuracy")
    assert 0.35 < apart[0] < 0.5 < apart[1] < 0.65
    assert together == (0.0, 1.0)


def test_data_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["try_real_data.py", str(tmp_path), "--cache", str(tmp_path / "cache")])
    monkeypatch.setattr(try_real_data, "TABLE", tmp_path / "table.md")
    assert try_real_data.main() == 0
    said = capsys.readouterr().out
    assert f"left out: nlvr, because {tmp_path} holds neither nlvr.tar nor the unpacked nlvr" in said
    assert "nothing to try" in said and not (tmp_path / "table.md").exists()
