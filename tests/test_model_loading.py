"""Every name for a model leads to that model, and nothing else does."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, adapted_of, backbone_of, embeddings, inputs_of, make_run, samples

import mmtune
from mmtune.adapters import merge_into, save
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import load_tensors, read_json, save_tensors, write_json
from mmtune.merge_proof import encode_samples
from mmtune.model_loading import load_base, load_model, resolve


@pytest.fixture
def run(tiny_clip_folder: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", {"id": str(tiny_clip_folder)}, LORA)


def test_all_names_lead_to_the_adapted_model(tiny_clip_folder: Path, run: Path, tmp_path: Path) -> None:
    checkpoint = next((run / "checkpoints").iterdir())
    inputs = inputs_of(backbone_of(tiny_clip_folder))
    bare = embeddings(backbone_of(tiny_clip_folder), inputs)
    adapted = adapted_of(tiny_clip_folder, LORA)
    wanted = embeddings(adapted.backbone, inputs)
    merge_into(adapted).save_pretrained(tmp_path / "merged")
    for path in tiny_clip_folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, tmp_path / "merged")
    kinds = {run: "run", checkpoint: "checkpoint", checkpoint / "adapter": "adapter", tmp_path / "merged": "model"}
    for name, kind in kinds.items():
        assert resolve(name).kind == kind
        # merged weights round once more than the adapter beside them: 1e-5 on unit embeddings
        assert (embeddings(load_model(name), inputs) - wanted).abs().max() < (1e-5 if kind == "model" else 1e-9), kind
        fresh = embeddings(load_base(resolve(name)), inputs)
        assert torch.equal(fresh, bare) == (kind != "model")
    assert torch.equal(embeddings(load_model(str(tiny_clip_folder)), inputs), bare)
    recipe = resolve(run).recipe
    assert recipe is not None and resolve(recipe).folder == checkpoint


def test_mmtune_load_gives_model_and_processor(run: Path) -> None:
    loaded = mmtune.load(str(run))
    assert type(loaded.model).__name__ == "CLIPModel" and not loaded.model.training
    assert not any(value.requires_grad for value in loaded.model.parameters())
    assert encode_samples(loaded, samples())["input_ids"].shape[0] == len(samples())
    assert loaded.processor.tokenizer("a")["input_ids"]


def test_the_temperature_of_a_run_is_loaded(tiny_siglip_folder: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"id": str(tiny_siglip_folder)}, LORA)
    stored = load_tensors(next(run.glob("checkpoints/*/temperature.safetensors")))
    model: Any = load_model(run).model
    base: Any = load_base(resolve(run)).model
    for name, value in stored.items():
        assert torch.equal(getattr(model, name), value) and not torch.equal(getattr(base, name), value)


def test_a_backbone_that_changed_is_refused(run: Path, tiny_clip_folder: Path) -> None:
    manifest = read_json(run / "manifest.json")
    write_json(run / "manifest.json", {**manifest, "backbone": {**manifest["backbone"], "weight_hash": "0" * 64}})
    with pytest.raises(CheckpointError, match="have changed since"):
        load_model(run)


def test_names_that_lead_nowhere(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is neither a run"):
        resolve(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_model(str(tmp_path / "nowhere"))
    checkpoint = next((run / "checkpoints").iterdir())
    file = checkpoint / "temperature.safetensors"
    save_tensors(file, {name: value + 1 for name, value in load_tensors(file).items()})
    with pytest.raises(CheckpointError, match="temperature.safetensors does not have the hash"):
        resolve(checkpoint)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        resolve(run)
    (checkpoint / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match="names no base_model_name_or_path"):
        resolve(checkpoint / "adapter")


def test_a_saved_adapter_names_its_backbone(tiny_clip_folder: Path, tmp_path: Path) -> None:
    save(adapted_of(tiny_clip_folder, LORA), tmp_path)
    assert resolve(tmp_path / "adapter").backbone.id == str(tiny_clip_folder)
