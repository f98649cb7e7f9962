"""ViLT: one transformer for words and patches, that chooses an answer or says whether a text is true."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, disturb, section
from PIL import Image

from mmtune import fresh_reload, merge_proof
from mmtune.adapters import attach, merge_into, restore, save, set_modes
from mmtune.backbones import Backbone, Section, describe, load, tiny_folder, tiny_section
from mmtune.backbones.vilt import TINY_ANSWERS
from mmtune.ground.errors import BackboneError, DataError
from mmtune.ground.safe_files import read_json

ANSWERING, MATCHING = "ViltForQuestionAnswering", "ViltForImageAndTextRetrieval"
SIZES = ((32, 32), (50, 30), (20, 60), (100, 33))
TEXTS = ("what", "is this a cat", "the over and over", "x")

ROUNDING = 1e-5
"""Logits near 1 computed twice in float32, with patches in other orders."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Class -> folder of its tiny twin; read only."""
    folder = tmp_path_factory.mktemp("vilt")
    return {name: tiny_folder("vilt", folder / name, architecture=name) for name in (ANSWERING, MATCHING)}


@pytest.fixture(params=[ANSWERING, MATCHING])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def drawn(number: int, size: tuple[int, int]) -> Image.Image:
    pixels = torch.randint(0, 256, (size[0] * size[1] * 3,), generator=torch.Generator().manual_seed(number))
    return Image.frombytes("RGB", size, bytes(pixels.tolist()))


def backbone_of(folder: Path, **options: Any) -> Backbone:
    return load(Section(id=str(folder), **options))


def rows_of(backbone: Backbone) -> list[dict[str, torch.Tensor]]:
    family, processor = backbone.family, backbone.processor
    pixels = [family.encode_media(processor, drawn(number, size)) for number, size in enumerate(SIZES)]
    return [{**one, **family.encode_text(processor, text)} for one, text in zip(pixels, TEXTS, strict=True)]


def judged(backbone: Backbone, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the class is for: float[B, C] or float[B]."""
    way = backbone.family.classify if "classify" in backbone.traits.abilities else backbone.family.match
    found: torch.Tensor = way(backbone.model, batch)
    return found


def judge(backbone: Backbone, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    with torch.no_grad():
        return judged(backbone, backbone.family.pad(backbone.processor, rows))


# --- the judgement


def test_it_is_that_of_transformers_and_draws_nothing(folder: Path) -> None:
    backbone = backbone_of(folder)
    batch = backbone.family.pad(backbone.processor, rows_of(backbone))
    state = torch.get_rng_state()
    found = judge(backbone, rows_of(backbone))
    assert torch.get_rng_state().equal(state)
    with torch.no_grad():
        expected = backbone.model(**batch).logits
    assert not torch.get_rng_state().equal(state), "transformers draws the order of the patches"
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=0, atol=ROUNDING)
    assert found.shape == ((4, len(TINY_ANSWERS)) if folder.name == ANSWERING else (4,)) and found.std() > 0.1


def test_inputs_are_those_of_the_processor(folder: Path) -> None:
    from transformers import AutoProcessor

    backbone = backbone_of(folder)
    pictures = [drawn(number, size) for number, size in enumerate(SIZES)]
    own = AutoProcessor.from_pretrained(folder)(images=pictures, text=list(TEXTS), padding=True, return_tensors="pt")
    batch = backbone.family.pad(backbone.processor, rows_of(backbone))
    assert set(batch) == {"pixel_values", "pixel_mask", "input_ids", "attention_mask"}
    assert all(torch.equal(batch[name], own[name]) for name in batch)


def test_a_batch_is_its_samples_one_by_one(folder: Path) -> None:
    backbone = backbone_of(folder)
    rows = rows_of(backbone)
    together, alone = judge(backbone, rows), torch.cat([judge(backbone, [row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=ROUNDING)
    batch = backbone.family.pad(backbone.processor, rows)
    assert (batch["pixel_mask"] == 0).any() and (batch["attention_mask"] == 0).any()
    for name in ("pixel_mask", "attention_mask"):
        with torch.no_grad():
            unmasked = judged(backbone, {**batch, name: torch.ones_like(batch[name])})
        assert (unmasked - alone).abs().max() > 1e-3


def test_image_and_text_both_count(folder: Path) -> None:
    backbone = backbone_of(folder)
    rows = rows_of(backbone)
    for name in ("pixel_", "input_ids"):
        turned = [
            {key: (other if key.startswith(name) else one)[key] for key in one}
            for one, other in zip(rows[:2], rows[1::-1], strict=True)
        ]
        if name == "input_ids":
            turned = [{**one, "attention_mask": torch.ones_like(one["input_ids"])} for one in turned]
        assert (judge(backbone, turned) - judge(backbone, rows[:2])).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_logits_have_float32_at_least(folder: Path, dtype: str) -> None:
    plain, other = backbone_of(folder), load(Section(id=str(folder)), dtype=dtype)
    found = judge(other, rows_of(other))
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    expected = judge(plain, rows_of(plain))
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=ROUNDING if dtype == "float64" else 0.1)


def test_the_loss_of_a_class_per_answer_is_transformers_own(folders: dict[str, Path]) -> None:
    backbone = backbone_of(folders[ANSWERING])
    rows, scores = rows_of(backbone), torch.rand(4, len(TINY_ANSWERS), generator=torch.Generator().manual_seed(0))
    batch = backbone.family.pad(backbone.processor, rows)
    with torch.no_grad():
        expected = backbone.model(**batch, labels=scores).loss
    total = torch.nn.functional.binary_cross_entropy_with_logits(judge(backbone, rows), scores, reduction="sum")
    torch.testing.assert_close(total / len(rows), expected, rtol=1e-5, atol=0)


# --- what is trained


WHOLE = {"kind": "full", "parts": ["encoder"]}
ENCODER_LORA = {**LORA, "parts": ["encoder"]}


@pytest.mark.parametrize("values", [WHOLE, ENCODER_LORA, {"kind": "head_only", "parts": ["encoder"]}])
def test_trained_sets_are_exact_and_live(folder: Path, values: dict[str, Any]) -> None:
    adapted = disturb(attach(backbone_of(folder), section(**values)))
    head = "classifier" if folder.name == ANSWERING else "rank_output"
    every = {name for name, _ in adapted.model.named_parameters()}
    wanted = {
        "full": every,
        "head_only": {name for name in every if name.startswith(head)},
        "lora": {name for name in every if "lora_" in name},
    }
    assert set(adapted.trainable()) == wanted[values["kind"]] != set()
    if values["kind"] == "lora":
        assert len(adapted.modules["encoder"]) == 2 * 6
    set_modes(adapted)
    judged(
        adapted.backbone, adapted.backbone.family.pad(adapted.backbone.processor, rows_of(adapted.backbone))
    ).sum().backward()
    assert not [name for name, value in adapted.trainable().items() if value.grad is None or not value.grad.any()]


def test_there_is_one_part(folder: Path) -> None:
    description = describe(Section(id=str(folder)))
    assert description.num_layers == {"encoder": 2} and set(description.traits.parts) == {"encoder"}
    ability = "classify" if folder.name == ANSWERING else "match"
    assert description.traits.abilities == {ability}


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized(folder: Path, quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    quantized, plain = (
        backbone_of(folder, quantize=quantize),
        load(Section(id=str(folder), quantize=quantize), dequantize=True),
    )
    gap = (judge(quantized, rows_of(plain)) - judge(plain, rows_of(plain))).abs().max()
    assert gap < (ROUNDING if quantize == "4bit" else 0.2)  # LLM.int8 rounds activations
    adapted = disturb(attach(quantized, section(**ENCODER_LORA)))
    set_modes(adapted)
    judged(quantized, quantized.family.pad(quantized.processor, rows_of(quantized))).sum().backward()
    assert not [name for name, value in adapted.trainable().items() if value.grad is None or not value.grad.any()]


def test_an_adapter_is_restored_merged_and_reloaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fresh process's own code, run here."""
    monkeypatch.setattr(merge_proof, "_run_alone", lambda job: list(map(fresh_reload.embed_case, read_json(job))))
    backbone = backbone_of(folder)
    inputs = backbone.family.pad(backbone.processor, rows_of(backbone))
    adapted = disturb(attach(backbone, section(**ENCODER_LORA)))
    adapted.model.eval()
    tuned = merge_proof.embed(backbone, inputs)
    save(adapted, tmp_path / "saved")
    again = attach(backbone_of(folder), section(**ENCODER_LORA), seed=7)
    restore(again, tmp_path / "saved")
    assert merge_proof.gap(merge_proof.embed(again.backbone, inputs), tuned) == 0
    merge_into(again)
    again.model.save_pretrained(tmp_path / "model")
    cases = [merge_proof.case_of(backbone, path, inputs) for path in (tmp_path / "model", folder)]
    merged, base = merge_proof.reload_elsewhere(cases, tmp_path)
    assert list(merged) == (["answers"] if folder.name == ANSWERING else ["log_odds"])
    assert merge_proof.gap(merged, tuned) <= merge_proof.TOLERANCE < merge_proof.gap(base, tuned)


# --- answers, and what is refused


def test_answers_stand_in_the_order_of_the_logits(folders: dict[str, Path]) -> None:
    backbone = backbone_of(folders[ANSWERING])
    shuffled = {"id2label": {"10": "k", "2": "c", "0": "a", "1": "b", **{str(n): str(n) for n in range(3, 10)}}}
    answers_of = backbone.family.answers_of
    assert answers_of(shuffled) == ["a", "b", "c", *map(str, range(3, 10)), "k"]
    assert answers_of(backbone.model.config) == answers_of(backbone.description.config) == list(TINY_ANSWERS)
    for wrong in ({}, {"id2label": {"1": "b", "2": "c"}}):
        with pytest.raises(BackboneError, match="number the answers from 0 on"):
            answers_of(wrong)


@pytest.mark.parametrize("size", [(640, 20), (20, 2000)])
def test_a_sliver_is_bad_data(folders: dict[str, Path], size: tuple[int, int]) -> None:
    backbone = backbone_of(folders[ANSWERING])
    with pytest.raises(DataError, match=f"image of {size[0]} x {size[1]} pixels is too long and thin"):
        backbone.family.encode_media(backbone.processor, drawn(0, size))
    pixels = backbone.family.encode_media(backbone.processor, drawn(0, (120, 20)))["pixel_values"]
    assert pixels.shape == (3, 8, 48)


def test_what_cannot_be_trained_is_refused_before_weights_are_loaded(
    folders: dict[str, Path], changed_copy: Any
) -> None:
    other = changed_copy(folders[ANSWERING], architectures=["ViltForMaskedLM"])
    with pytest.raises(BackboneError, match="ViltForMaskedLM, and the ViLT models that can be trained are"):
        describe(Section(id=str(other)))
    sampled = changed_copy(folders[ANSWERING], name="sampled", max_image_length=40)
    with pytest.raises(BackboneError, match="max_image_length is 40: .* random choice"):
        describe(Section(id=str(sampled)))


def test_patches_that_do_not_fit_are_refused(folders: dict[str, Path], changed_copy: Any) -> None:
    folder = changed_copy(folders[ANSWERING])
    file = next(path for path in folder.iterdir() if "processor" in path.name and "size_divisor" in path.read_text())
    file.unlink() if file.is_symlink() else None
    source = json.loads((folders[ANSWERING] / file.name).read_text(encoding="utf-8"))
    (source.get("image_processor") or source)["size_divisor"] = 12
    file.write_text(json.dumps(source), encoding="utf-8")
    with pytest.raises(BackboneError, match="multiples of 12, and patches are 8 wide"):
        backbone_of(folder)


def test_the_twin_is_of_the_class_that_is_made_for_the_task(tmp_path: Path) -> None:
    far = Section(id="dandelin/vilt-b32-finetuned-vqa", family="vilt")
    for task, name in (("vqa", ANSWERING), ("matching", MATCHING), ("", ANSWERING)):
        made = tiny_section(far, tmp_path / (task or "none"), task=task)
        assert describe(made).traits.auto_class == name
