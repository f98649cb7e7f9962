"""Weights as published repositories hold them: under names of older releases, tied ones twice, in several files."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, make_run, samples

from mmtune import merge_building
from mmtune.backbones import Section, load, tiny_folder
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import load_tensors, save_tensors
from mmtune.merge_building import fold, write_folder
from mmtune.merge_proof import check_weight_names
from mmtune.model_loading import resolve

Loaded = Callable[[str], Any]
Tensors = dict[str, torch.Tensor]


def first_llava_names(tensors: Tensors) -> Tensors:
    """The image tower was one level deeper: ``vision_tower.vision_model.encoder``."""
    return {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in tensors.items()}


def head_twice(tensors: Tensors) -> Tensors:
    embeddings = tensors["language_model.model.embed_tokens.weight"]
    return {**first_llava_names(tensors), "language_model.lm_head.weight": embeddings.clone()}


def embeddings_everywhere(tensors: Tensors) -> Tensors:
    shared = tensors["model.language_model.shared.weight"]
    names = ("lm_head", "model.language_model.encoder.embed_tokens", "model.language_model.decoder.embed_tokens")
    return {**tensors, **{f"{name}.weight": shared.clone() for name in names}}


def today_s_names(tensors: Tensors) -> Tensors:
    """What a fine-tune of the last releases before 5 holds."""
    new = {re.sub(r"^model\.", "model.language_model.", name): value for name, value in tensors.items()}
    return {re.sub(r"^visual\.", "model.visual.", name): value for name, value in new.items()}


def bias_by_its_other_name(tensors: Tensors) -> Tensors:
    """BLIP's decoder: the bias is there under the name that is not saved any more, the embeddings twice."""
    head, words = "text_decoder.cls.predictions", "text_decoder.bert.embeddings.word_embeddings.weight"
    tensors = {**tensors, f"{head}.decoder.weight": tensors[words].clone()}
    return {f"{head}.decoder.bias" if name == f"{head}.bias" else name: value for name, value in tensors.items()}


FORMS: dict[str, tuple[str, Callable[[Tensors], Tensors], int]] = {
    "llava, first names": ("llava", first_llava_names, 0),
    "qwen2_5_vl, today's names": ("qwen2_5_vl", today_s_names, 0),
    "paligemma, head twice": ("paligemma", head_twice, 1),
    "florence2, embeddings four times": ("florence2", embeddings_everywhere, 3),
    "blip, bias by its other name": ("blip", bias_by_its_other_name, 2),
}
"""Name -> twin, how its tensors are named, how many are there a second time."""


def published(folder: Path, source: Path, change: Callable[[Tensors], Tensors], *, shards: bool = False) -> Path:
    shutil.copytree(source, folder)
    tensors = change(load_tensors(source / "model.safetensors"))
    if not shards:
        save_tensors(folder / "model.safetensors", tensors)
        return folder
    (folder / "model.safetensors").unlink()
    index = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(sorted(tensors))}
    for file in set(index.values()):
        save_tensors(folder / file, {name: tensors[name] for name, own in index.items() if own == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def blip_that_says(folder: Path) -> Any:
    return load(Section(id=str(tiny_folder("blip", folder, architecture="BlipForConditionalGeneration"))))


@pytest.mark.parametrize("form", FORMS)
def test_they_load_and_merge_as_the_same_model(form: str, chat_backbone: Loaded, tmp_path: Path) -> None:
    kind, change, num_twice = FORMS[form]
    own = chat_backbone(kind) if kind != "blip" else blip_that_says(tmp_path / "twin")
    folder = published(tmp_path / "model", own.description.folder, change, shards=num_twice == 0)
    backbone = load(Section(id=str(folder)))
    state = own.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())
    run = make_run(tmp_path / "run", {"id": str(folder)}, {**LORA, "parts": ["text"]}, {"kind": "captioning"})
    merge = fold(resolve(run), samples(), scale=1.0, full=False, dtype="float32")
    (tmp_path / "merged").mkdir()
    write_folder(merge, tmp_path / "merged")
    found = merge_building._check_tensors(merge, tmp_path / "merged")
    assert found["changed"] == found["trained"] > 0 and len(found.get("dropped_ties", [])) == num_twice


def test_only_tied_weights_may_be_there_once(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", {"a.weight": torch.ones(1)})
    original = {"a.weight", "language_model.lm_head.weight"}
    assert check_weight_names(tmp_path, original, (), ("lm_head.weight",))["dropped_ties"] == [
        "language_model.lm_head.weight"
    ]
    for tied in ((), ("head.weight",)):
        with pytest.raises(CheckpointError, match=r"lost \['language_model\.lm_head\.weight'\]"):
            check_weight_names(tmp_path, original, (), tied)
    with pytest.raises(CheckpointError, match=r"added \['a\.weight'\]"):
        check_weight_names(tmp_path, set(), (), ("a.weight",))
