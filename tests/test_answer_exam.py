"""One evaluation of answers: what is computed, how often, and that it is what the metrics say."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmtune.answer_exam import AnswerExam, answer_table
from mmtune.answer_picture import draw_answers
from mmtune.answer_scoring import Answers
from mmtune.backbones import load, tiny_folder
from mmtune.ground.errors import DataError, RecipeError
from mmtune.ground.image_reading import ImageFile
from mmtune.ground.kind_folder import kinds
from mmtune.ground.records import NoMedia, Sample, Turn
from mmtune.metrics import AnswerScore, answer_score
from mmtune.recipe_schema import Recipe, load_recipe
from mmtune.retrieval_exam import RetrievalExam
from mmtune.tasks import vqa
from mmtune.train_data import open_checked
from mmtune.trainer_building import _say_unknown

SCORES = ["vqa_accuracy", "exact_match", "cider_d", "coco_bleu@2"]
NUM = 6


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Questions about six pictures for a tiny classifier."""
    folder = tmp_path_factory.mktemp("exam")
    rows = []
    for number in range(NUM):
        Image.new("RGB", (32, 32), (40 * number, 200 - 30 * number, 90)).save(folder / f"{number}.png")
        right = ["yes", "no", "red"][number % 3]
        rows.append({"image": f"{number}.png", "question": f"is it {number}?", "answers": [right, right, "blue"]})
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "backbone": {"id": str(tiny_folder("vilt", folder / "tiny"))},
        "adapter": {"kind": "full", "parts": ["encoder"]},
        "data": {"kind": "jsonl", "path": {"test": str(folder / "asked.jsonl"), "train": str(folder / "asked.jsonl")}},
        "task": {"kind": "vqa", "scores": SCORES},
        "train": {"length": "1 steps", "batch": 2, "learning_rate": 1e-3},
        "output": str(folder / "run"),
    }
    values["data"] |= {"question": "question", "answers": "answers"}
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return load_recipe(folder / "recipe.yaml")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Score -> how often its statistics were computed."""
    counts = Counter[str]()
    statistics = AnswerScore.statistics
    value = AnswerScore.value

    def count_statistics(score: AnswerScore, *texts: Any) -> Any:
        counts[score.name] += 1
        return statistics(score, *texts)

    def count_value(score: AnswerScore, *texts: Any) -> float:
        counts[score.name] += 1
        return value(score, *texts)

    monkeypatch.setattr(AnswerScore, "statistics", count_statistics)
    monkeypatch.setattr(AnswerScore, "value", count_value)
    return counts


def test_metrics_are_computed_once_per_model(recipe: Recipe, counted: Counter[str], tmp_path: Path) -> None:
    exam = AnswerExam(recipe, open_checked(recipe, "test"), "test")
    backbone = load(recipe.backbone)
    base = exam.take(backbone)
    for parameter in backbone.model.classifier.parameters():  # type: ignore[union-attr]
        parameter.data.neg_()
    tuned = exam.take(backbone)
    assert base.predictions != tuned.predictions
    result = exam.compare(base, tuned)
    taken = {"base": base, "tuned": tuned}
    described = exam.describe(SimpleNamespace(run=None, folder=None), backbone, base)  # type: ignore[arg-type]
    exam.write_files(tmp_path, "", described | result, taken)
    assert dict(counted) == dict.fromkeys(SCORES, 2)

    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    for model, one in taken.items():
        for name in SCORES:
            score = answer_score(name)
            assert result[model][name] == score.value(one.predictions, one.references)
            told = [row[model]["scores"][name] for row in rows]
            assert told == score.per_sample(one.predictions, one.references).tolist()


ODD = [r"it costs $\frac{5 and $7", "[/b] [red]x", "a" * 300, "汉字" * 60, "سلام " * 40, "two\nlines\x00", ""]


def odd_answers(folder: Path) -> Answers:
    """Answers that drawing and tables could take for orders."""
    Image.new("RGB", (32, 20), (200, 30, 90)).save(folder / "one.png")
    shown = tuple(Sample(str(n), ImageFile(str(folder / "one.png"))) for n in range(len(ODD)))
    texts = tuple(ODD)
    right = tuple((text,) for text in ODD)
    sums = {"exact_match": np.ones((len(ODD), 2))}
    return Answers(shown, texts, texts, (None,) * len(ODD), right, np.arange(len(ODD)), sums)


def test_any_words_can_be_drawn_and_shown(tmp_path: Path) -> None:
    odd = odd_answers(tmp_path)
    with Image.open(draw_answers(tmp_path / "answers.png", {"base": odd, "tuned": odd}, seed=0)) as picture:
        assert picture.width > 500
    result = {"split": "[/x]", "samples": 1, "images": 1, "task": "vqa", "scores": {"exact_match": 1.0}}
    stream = io.StringIO()
    Console(file=stream, width=200).print(answer_table({**result, "majority": {"answer": ODD[1], "share": 0.5}}))
    assert repr(ODD[1]) in stream.getvalue() and "[/x] split" in stream.getvalue()


def test_words_alone_are_no_images(recipe: Recipe, tmp_path: Path) -> None:
    exam = AnswerExam(recipe, open_checked(recipe, "test"), "test")
    odd = odd_answers(tmp_path)
    exam.asking = SimpleNamespace(ability="generate")
    backbone = SimpleNamespace(record=dict)
    target = SimpleNamespace(run=None, folder=None)
    words = Sample("w", NoMedia("w", "chats.jsonl:1"), turns=(Turn("user", ("hi",)), Turn("assistant", ("ho",))))
    second = ImageFile(str(tmp_path / "two.png"))
    two = Sample("t", odd.samples[0].media, turns=(Turn("user", (odd.samples[0].media, second)),))
    mixed = replace(odd, samples=(odd.samples[0], words, two))
    assert exam.describe(target, backbone, mixed)["images"] == 2  # type: ignore[arg-type]


def test_a_model_that_does_not_embed_is_refused_for_retrieval(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="retrieval needs the ability embed, and family vilt can classify"):
        RetrievalExam(wanting(recipe, "retrieval"), open_checked(recipe, "test"), "test").take(load(recipe.backbone))


def test_a_list_that_a_classifier_would_not_use_is_refused(recipe: Recipe) -> None:
    section = recipe.task.model_copy(update={"answers": ["yes", "no"]})
    exam = AnswerExam(recipe.model_copy(update={"task": section}), open_checked(recipe, "test"), "test")
    with pytest.raises(RecipeError, match="task.answers: family vilt chooses from its own list"):
        exam.take(load(recipe.backbone))


def wanting(recipe: Recipe, task: str) -> Recipe:
    return recipe.model_copy(update={"task": kinds("tasks")[task].Section(kind=task)})


def test_a_list_without_the_right_answers_is_said_and_one_without_any_is_refused(recipe: Recipe) -> None:
    samples = open_checked(recipe, "test").samples
    said: list[str] = []

    def tell(*answers: str) -> None:
        asking = SimpleNamespace(task=vqa, section=None, answers=answers)
        items = SimpleNamespace(encode_item=SimpleNamespace(asking=asking), samples=samples)
        _say_unknown(items, SimpleNamespace(line=said.append))  # type: ignore[arg-type]

    tell("blue", "yes")
    assert said == []
    tell("yes", "no")
    assert said == [
        "data: 2 of 6 samples have no answer among the 2 that the model chooses from ('yes', 'no' ...): "
        "nothing it can say to them is right"
    ]
    with pytest.raises(DataError, match="no sample has an answer among the 2 that"):
        tell("Yes", "No")
