"""Models that say, match or classify: adapted = merged = reloaded by transformers alone, and not equal to the base."""

from pathlib import Path
from typing import Any

import pytest
from adapter_examples import LORA, make_run, samples

from mmtune.backbones import tiny_folder
from mmtune.merge_building import Merge, fold, prove_all, write_folder
from mmtune.model_loading import resolve

SAYS, ANSWERS = ("blip", "BlipForConditionalGeneration"), ("blip", "BlipForQuestionAnswering")
MATCHES, ONE = ("blip", "BlipForImageTextRetrieval"), ("vilt", "ViltForImageAndTextRetrieval")
CAPTIONING, MATCHING = {"kind": "captioning"}, {"kind": "matching"}
FOUR, EIGHT = {"quantize": "4bit"}, {"quantize": "8bit"}

ASKED: dict[str, tuple[tuple[str, str], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "captions, lora": (SAYS, CAPTIONING, LORA, {}),
    "captions, full": (SAYS, CAPTIONING, {"kind": "full", "parts": ["text"]}, {}),
    "captions, 4bit": (SAYS, CAPTIONING, {**LORA, "parts": ["text"]}, FOUR),
    "captions, 8bit": (SAYS, CAPTIONING, {**LORA, "parts": ["text"]}, EIGHT),
    "answers, lora": (ANSWERS, CAPTIONING, {**LORA, "parts": ["text", "decoder"]}, {}),
    "answers, full": (ANSWERS, CAPTIONING, {"kind": "full", "parts": ["decoder"]}, {}),
    "matches, lora": (MATCHES, MATCHING, {**LORA, "parts": ["text"]}, {}),
    "matches, 4bit": (MATCHES, MATCHING, {**LORA, "parts": ["text"]}, FOUR),
    "matches, head": (MATCHES, MATCHING, {"kind": "head_only", "parts": ["text"]}, {}),
    "one, lora": (ONE, MATCHING, {**LORA, "parts": ["encoder"]}, {}),
}
"""Name -> family and class, task, adapter, and how the backbone is held."""


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Merge, dict[str, Any]]]:
    """Every merge, all proven by one fresh process."""
    pytest.importorskip("bitsandbytes")
    scratch = tmp_path_factory.mktemp("merges")
    twins = {
        each: tiny_folder(each[0], scratch / each[1], architecture=each[1]) for each in (SAYS, ANSWERS, MATCHES, ONE)
    }
    merges: list[tuple[Merge, Path]] = []
    for number, (which, task, adapter, options) in enumerate(ASKED.values()):
        run = make_run(scratch / f"run{number}", {"id": str(twins[which]), **options}, adapter, task)
        folded = fold(resolve(run), samples(), scale=1.0, full=False, dtype="float32")
        (scratch / f"merged{number}").mkdir()
        write_folder(folded, scratch / f"merged{number}")
        merges.append((folded, scratch / f"merged{number}"))
    reports = prove_all(merges)
    return {name: (merge, report) for name, (merge, _), report in zip(ASKED, merges, reports, strict=True)}


@pytest.mark.parametrize("name", ASKED)
def test_reloaded_equals_adapted_and_differs_from_the_base(
    proven: dict[str, tuple[Merge, dict[str, Any]]], name: str
) -> None:
    merge, report = proven[name]
    assert report["reload"]["gap"] <= 1e-5 and report["tensors"]["changed"] > 0
    assert report["reload"]["difference_from_base"] > 1e-3
    wanted = {"captions": "logits", "answers": "logits", "matches": "log_odds", "one": "log_odds"}
    assert set(merge.embedded["merged"]) == {wanted[name.split(",")[0]]}


def test_a_quantized_run_is_scored_by_its_own_task(proven: dict[str, tuple[Merge, dict[str, Any]]]) -> None:
    for name, score in (("captions, 4bit", "cider_d"), ("matches, 4bit", "accuracy")):
        figures = proven[name][1]["quantized"]
        assert figures["gap_to_the_model_as_trained"] < 1e-5
        assert score in figures["scores_merged"] and figures["scores_merged"] == figures["scores_as_trained"]
    assert proven["captions, 8bit"][1]["quantized"]["gap_to_the_model_as_trained"] > 1e-5
    assert "quantized" not in proven["captions, lora"][1]
