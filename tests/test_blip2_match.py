"""BLIP-2's matching half: the queries read image and text together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, DrawnImage, backbone_of, disturb, section

from mmtune import merge_proof
from mmtune.adapters import attach, set_modes
from mmtune.backbones import Backbone, Section, load, tiny_folder
from mmtune.ground.records import Sample

ROUNDING = 1e-5
"""Log odds near 1 computed twice in float32, in other orders of summation."""

TEXTS = ("a cat", "the lion on the line, over and over", "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("blip2", tmp_path_factory.mktemp("blip2") / "blip2")


def matching(folder: Path) -> Backbone:
    return load(Section(id=str(folder)), ability="match")


def inputs_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    samples = [Sample(text, DrawnImage(number), (text,)) for number, text in enumerate(TEXTS)]
    return merge_proof.encode_samples(backbone, samples)


def test_log_odds_are_those_of_transformers_alone(folder: Path, tmp_path: Path) -> None:
    backbone = matching(folder)
    inputs = inputs_of(backbone)
    with torch.no_grad():
        found = backbone.family.match(backbone.model, inputs)
        others = backbone.family.match(backbone.model, {**inputs, "input_ids": inputs["input_ids"].flip(0)})
    expected = merge_proof.reload_elsewhere([merge_proof.case_of(backbone, folder, inputs)], tmp_path)[0]["log_odds"]
    assert found.shape == (len(TEXTS),) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    assert (found - others).abs().max() > 0.01


def test_padding_changes_nothing_and_without_its_mask_it_would(folder: Path) -> None:
    backbone = matching(folder)
    inputs = inputs_of(backbone)
    family = backbone.family
    with torch.no_grad():
        together = family.match(backbone.model, inputs)
        seen = family.match(backbone.model, {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])})
        for number, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            row = {key: value[number : number + 1] for key, value in inputs.items()}
            row |= {key: row[key][:, :length] for key in ("input_ids", "attention_mask")}
            torch.testing.assert_close(together[number], family.match(backbone.model, row)[0], rtol=0, atol=ROUNDING)
    assert (seen - together).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "full", "head_only"])
def test_what_matching_never_runs_is_never_trained(folder: Path, kind: str) -> None:
    """The last layer's rows of the text are thrown away; embedding does use them."""
    values: dict[str, Any] = {
        "lora": {**LORA, "parts": ["vision", "qformer"]},
        "full": {"kind": "full", "parts": ["qformer"]},
        "head_only": {"kind": "head_only", "parts": ["qformer"]},
    }[kind]
    adapted = disturb(attach(matching(folder), section(**values)))
    set_modes(adapted)
    adapted.backbone.family.match(adapted.model, inputs_of(adapted.backbone)).square().sum().backward()
    trained = adapted.trainable()
    assert trained and not [n for n, v in trained.items() if v.grad is None or not v.grad.abs().max() > 0]
    assert any("itm_head" in name for name in trained) is (kind != "lora")
    assert not [name for name in trained if "layer.1.output.dense" in name or "_projection" in name]
    embedding = attach(backbone_of(folder), section(**values)).trainable()
    assert kind == "head_only" or any("layer.1.output.dense" in name for name in embedding)
    assert not [name for name in embedding if "itm_head" in name]
