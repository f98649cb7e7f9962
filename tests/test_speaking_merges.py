"""GIT, BLIP-2 and InstructBLIP, merged and reloaded by transformers alone."""

from pathlib import Path
from typing import Any

import pytest
from adapter_examples import LORA, DrawnImage, make_run, samples

from mmtune.backbones import blip2, git, instructblip
from mmtune.merge_building import Merge, fold, prove_all, write_folder
from mmtune.model_loading import resolve

CAPTIONS = {"kind": "captioning"}
TWINS: dict[str, Any] = {
    "git": git.tiny,
    "blip2 with opt": blip2.tiny_speaking,
    "blip2 with t5": lambda: blip2.tiny_speaking("t5"),
    "instructblip with llama": instructblip.tiny_speaking,
    "instructblip with t5": lambda: instructblip.tiny_speaking("t5"),
}


def folded(folder: Path, name: str, task: dict[str, Any], dtype: str = "float32") -> tuple[Merge, Path]:
    """An adapter in every part, folded and written."""
    for each in TWINS.get(name, blip2.tiny)():
        each.save_pretrained(folder / "model")
    speaks = task is CAPTIONS
    parts = ["vision", *(["connector", "text"] if speaks else []), *([] if name == "git" else ["qformer"])]
    run = make_run(folder / "run", {"id": str(folder / "model")}, {**LORA, "parts": parts}, task)
    merge = fold(resolve(run), samples(), scale=1.0, full=False, dtype=dtype)
    (folder / "merged").mkdir()
    write_folder(merge, folder / "merged")
    return merge, folder / "merged"


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Merge, Path]]:
    folder = tmp_path_factory.mktemp("merges")
    made = {name: folded(folder / name.replace(" ", "_"), name, CAPTIONS) for name in TWINS}
    made["blip2 matching"] = folded(folder / "matching", "blip2 matching", {"kind": "matching"})
    made["bfloat16"] = folded(folder / "bfloat16", "instructblip with llama", CAPTIONS, dtype="bfloat16")
    return made


def test_merged_folders_reload_as_the_adapted_model(merges: dict[str, tuple[Merge, Path]]) -> None:
    for name, report in zip(merges, prove_all(list(merges.values())), strict=True):
        assert report["reload"]["gap_to_written_weights"] <= 1e-5 and report["tensors"]["changed"] > 0
        assert (report["reload"]["gap"] <= 1e-5) is (name != "bfloat16")
        assert report["reload"]["difference_from_base"] > 0.01


def test_a_merged_folder_has_a_processor_of_transformers_own(merges: dict[str, tuple[Merge, Path]]) -> None:
    from transformers import AutoProcessor

    for merge, folder in merges.values():
        own = AutoProcessor.from_pretrained(folder, backend="pil")
        assert type(own) is type(merge.backbone.processor)
        read = own(images=DrawnImage(1).read(), text="a red line", return_tensors="pt")
        assert len(read["input_ids"]) == 1 and "pixel_values" in read
