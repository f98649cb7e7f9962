"""What no checkpoint of a backbone holds (new projections) is trained whole, whatever the adapter."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import KINDS, LORA, backbone_of, disturb, embeddings, inputs_of, loss_of, section

from mmtune.adapter_liveness import JUDGED_AFTER, Liveness
from mmtune.adapters import (
    Adapted,
    attach,
    attach_foreign,
    merge_into,
    merged_names,
    optimizer_groups,
    restore,
    save,
    set_modes,
)
from mmtune.backbones import Backbone
from mmtune.ground.errors import CheckpointError, RecipeError, TrainingError
from mmtune.ground.safe_files import load_tensors

PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
VISION_LORA = {**LORA, "parts": ["vision"], "layers": "last 1"}
CASES: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "lora_in_one_tower": VISION_LORA,
    "full_of_one_tower": KINDS["full"],
    "head_only_of_one_tower": {"kind": "head_only", "parts": ["vision"]},
}


def fresh_backbone(folder: Path, **options: Any) -> Backbone:
    """A tiny CLIP whose projections count as freshly drawn, as a dual encoder's do; the scale too."""
    return dataclasses.replace(backbone_of(folder, **options), fresh=(*PROJECTIONS, "logit_scale"))


def fresh_adapted(folder: Path, values: dict[str, Any]) -> Adapted:
    return disturb(attach(fresh_backbone(folder), section(**values)))


@pytest.mark.parametrize("name", CASES)
def test_they_are_trained_counted_and_in_the_optimizer(tiny_clip_folder: Path, name: str) -> None:
    adapted = attach(fresh_backbone(tiny_clip_folder), section(**CASES[name]))
    plain = attach(backbone_of(tiny_clip_folder), section(**CASES[name]))
    added = set(adapted.trainable()) - set(plain.trainable())
    assert added == set(PROJECTIONS) - set(plain.trainable())
    assert added, "each of the cases leaves one out without this"
    assert {value.requires_grad for value in adapted.trainable().values()} == {True}
    row = next(report for report in adapted.parts if report.part == "projection")
    assert row.num_modules == len(added)
    assert row.num_trainable == sum(adapted.trainable()[name].numel() for name in added)
    grouped = [name for group in optimizer_groups(adapted, 1e-3, 0.1) for name in group["names"]]
    assert sorted(grouped) == sorted(adapted.trainable())
    set_modes(adapted)
    assert all(adapted.model.get_submodule(name.rpartition(".")[0]).training for name in PROJECTIONS)


def test_the_temperature_is_still_the_recipes_to_free(tiny_clip_folder: Path) -> None:
    adapted = attach(fresh_backbone(tiny_clip_folder), section(**{**VISION_LORA, "temperature": False}))
    assert "logit_scale" not in adapted.trainable()


@pytest.mark.parametrize("name", CASES)
def test_they_are_restored_and_merged(tiny_clip_folder: Path, name: str, tmp_path: Path) -> None:
    adapted = fresh_adapted(tiny_clip_folder, CASES[name])
    inputs = inputs_of(adapted.backbone)
    wanted = embeddings(adapted.backbone, inputs)
    base = {key: value.clone() for key, value in fresh_backbone(tiny_clip_folder).model.state_dict().items()}
    save(adapted, tmp_path)
    assert set(PROJECTIONS) <= set(load_tensors(tmp_path / "trained.safetensors"))
    again = attach(fresh_backbone(tiny_clip_folder), section(**CASES[name]))
    restore(again, tmp_path)
    assert torch.equal(embeddings(again.backbone, inputs), wanted)
    assert set(PROJECTIONS) <= set(merged_names(adapted))
    merged = dict(merge_into(adapted).state_dict())
    assert (embeddings(adapted.backbone, inputs) - wanted).abs().max() < 1e-5  # two fp32 roundings of one sum
    half = merge_into(again, scale=0.5).state_dict()
    for key in PROJECTIONS:
        assert not torch.equal(merged[key], base[key])
        assert torch.equal(half[key], base[key] + 0.5 * (merged[key] - base[key]))


def test_a_checkpoint_without_them_does_not_fit(tiny_clip_folder: Path, tmp_path: Path) -> None:
    save(disturb(attach(backbone_of(tiny_clip_folder), section(**LORA))), tmp_path)
    with pytest.raises(CheckpointError, match="trained.safetensors is missing"):
        restore(fresh_adapted(tiny_clip_folder, LORA), tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_made_elsewhere_must_bring_them(tiny_clip_folder: Path, tmp_path: Path) -> None:
    save(disturb(attach(backbone_of(tiny_clip_folder), section(**LORA))), tmp_path)
    attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="holds no visual_projection.weight, text_projection.weight: no checkp"):
        attach_foreign(fresh_backbone(tiny_clip_folder), tmp_path / "adapter")
    from peft import LoraConfig, get_peft_model

    theirs = backbone_of(tiny_clip_folder)
    saved = ["visual_projection", "text_projection"]
    wrapped = get_peft_model(theirs.model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "modules_to_save" in name:
                value.mul_(2)
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    mine = fresh_backbone(tiny_clip_folder)
    before = mine.model.visual_projection.weight.detach().clone()
    adapted = attach_foreign(mine, tmp_path / "theirs")
    assert torch.equal(merge_into(adapted).visual_projection.weight, 2 * before)


def test_what_they_cannot_be_is_said(tiny_clip_folder: Path) -> None:
    with pytest.raises(RecipeError, match="visual_projection.weight, text_projection.weight are new .* bfloat16 is"):
        attach(fresh_backbone(tiny_clip_folder, dtype="bfloat16"), section(**LORA))
    backbone = fresh_backbone(tiny_clip_folder)
    with pytest.raises(RecipeError, match="adapter.targets: visual_projection is new in this backbone"):
        attach(backbone, section(**{**LORA, "targets": ["attention", "visual_projection"]}))
    assert not any("lora" in name for name, _ in backbone.model.named_parameters())


def test_they_live_or_stop_the_run(tiny_clip_folder: Path) -> None:
    for loss, dead in [(loss_of, ""), (lambda b, inputs: loss_of(b, inputs).detach() + layer_sum(b), "projection")]:
        adapted = attach(fresh_backbone(tiny_clip_folder), section(**VISION_LORA))
        inputs, liveness = inputs_of(adapted.backbone), Liveness(adapted)
        optimizer = torch.optim.AdamW(optimizer_groups(adapted, 1e-3, 0.0))
        for step in range(1, JUDGED_AFTER + 1):
            optimizer.zero_grad()
            loss(adapted.backbone, inputs).backward()
            liveness.after_backward()
            optimizer.step()
            if step < JUDGED_AFTER or not dead:
                liveness.after_step(step, lambda line: None)
        if dead:
            with pytest.raises(TrainingError, match=f"part '{dead}': no gradient reaches it"):
                liveness.after_step(JUDGED_AFTER, lambda line: None)
        else:
            assert liveness.lives["projection"].num_moved == 2


def layer_sum(backbone: Backbone) -> torch.Tensor:
    """A loss that knows the trained layer and not the projections."""
    layer = backbone.model.vision_model.encoder.layers[1].self_attn.q_proj
    return (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).sum()
