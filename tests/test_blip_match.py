"""BLIP's matching head: the other half of the class that embeds, and what of it a task may train."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, DrawnImage, disturb, inputs_of, section

from mmtune import fresh_reload, merge_proof
from mmtune.adapters import Adapted, attach, merge_into, restore, save, set_modes
from mmtune.backbones import Backbone, Section, describe, load, tiny_folder
from mmtune.ground.errors import RecipeError
from mmtune.ground.safe_files import read_json

MATCHING = ("match", "generate")
"""What the task asks for, the best first."""

ROUNDING = 1e-5
"""Log odds near 1 computed twice in float32, in other orders of summation."""

TEXTS = ("a cat", "the lion on the line, over and over", "一只猫", "x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("blip", tmp_path_factory.mktemp("match") / "blip")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load(Section(id=str(folder)), ability=MATCHING)


def rows_of(backbone: Backbone, texts: tuple[str, ...] = TEXTS) -> list[dict[str, torch.Tensor]]:
    family, processor = backbone.family, backbone.processor
    pixels = [family.encode_media(processor, DrawnImage(number).read()) for number in range(len(texts))]
    return [{**one, **family.encode_text(processor, text)} for one, text in zip(pixels, texts, strict=True)]


def log_odds(backbone: Backbone, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = backbone.family.match(backbone.model, backbone.family.pad(backbone.processor, rows))
    return found


# --- the score


def test_match_is_the_score_of_transformers(backbone: Backbone) -> None:
    batch = backbone.family.pad(backbone.processor, rows_of(backbone))
    with torch.no_grad():
        scores = backbone.model(**batch).itm_score
    found = log_odds(backbone, rows_of(backbone))
    torch.testing.assert_close(found, scores[:, 1] - scores[:, 0], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(found.sigmoid(), scores.softmax(-1)[:, 1], rtol=0, atol=ROUNDING)
    assert found.std() > 0.05


def test_image_and_text_both_count(backbone: Backbone) -> None:
    rows = rows_of(backbone)
    turned = [
        {**one, "pixel_values": other["pixel_values"]} for one, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    assert (log_odds(backbone, turned) - log_odds(backbone, rows)).abs().min() > 1e-3
    texts = rows_of(backbone, TEXTS[::-1])
    assert (log_odds(backbone, texts) - log_odds(backbone, rows)).abs().min() > 1e-3


def test_a_batch_is_its_samples_one_by_one(backbone: Backbone) -> None:
    rows = rows_of(backbone)
    alone = torch.cat([log_odds(backbone, [row]) for row in rows])
    torch.testing.assert_close(log_odds(backbone, rows), alone, rtol=0, atol=ROUNDING)
    batch = backbone.family.pad(backbone.processor, rows)
    with torch.no_grad():
        unmasked = backbone.family.match(
            backbone.model, {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
        )
    assert (unmasked - alone).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_log_odds_have_float32_at_least(folder: Path, backbone: Backbone, dtype: str) -> None:
    other = load(Section(id=str(folder)), dtype=dtype, ability="match")
    found = log_odds(other, rows_of(other))
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    torch.testing.assert_close(
        found.float(), log_odds(backbone, rows_of(backbone)), rtol=0, atol=ROUNDING if dtype == "float64" else 0.1
    )


# --- what a task may train depends on what it runs


def learn(adapted: Adapted) -> list[str]:
    """One backward pass of the matching loss; names of what is trained and got no gradient."""
    set_modes(adapted)
    backbone = adapted.backbone
    batch = backbone.family.pad(backbone.processor, rows_of(backbone))
    truth = torch.tensor([1.0, 0.0, 1.0, 0.0])
    torch.nn.functional.binary_cross_entropy_with_logits(backbone.family.match(backbone.model, batch), truth).backward()
    return [name for name, value in adapted.trainable().items() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize(
    "values", [{"kind": "full", "parts": ["vision", "text"]}, LORA, {"kind": "layernorm", "parts": ["text"]}]
)
def test_trainable_sets_are_live_for_either_task(folder: Path, values: dict[str, Any]) -> None:
    matching = attach(load(Section(id=str(folder)), ability=MATCHING), section(**values))
    assert any("crossattention" in name for name in matching.trainable())
    if values["kind"] == "full":
        assert {name for name in matching.trainable() if name.startswith("itm_head")} == {
            "itm_head.weight",
            "itm_head.bias",
        }
    assert not [name for name in matching.trainable() if name.startswith(("vision_proj", "text_proj"))]
    assert "logit_scale" not in matching.trainable()
    disturb(matching)
    assert learn(matching) == []
    embedding = attach(load(Section(id=str(folder)), ability=("embed",)), section(**values))
    assert not [name for name in embedding.trainable() if "crossattention" in name or "itm_head" in name]
    assert "logit_scale" in embedding.trainable()


def test_heads_follow_the_task(folder: Path) -> None:
    matching = load(Section(id=str(folder)), ability=MATCHING)
    trained = attach(matching, section(kind="head_only", parts=["text"])).trainable()
    assert set(trained) == {"itm_head.weight", "itm_head.bias"}
    with pytest.raises(RecipeError, match="part 'vision' of blip has no head to train; parts with one: text"):
        attach(load(Section(id=str(folder)), ability="match"), section(kind="head_only", parts=["vision"]))


def test_without_a_task_the_record_is_the_one_that_embeds(folder: Path) -> None:
    plain, embeds = describe(Section(id=str(folder))), describe(Section(id=str(folder)), ability=["embed"])
    assert plain.traits == embeds.traits != describe(Section(id=str(folder)), ability="match").traits
    assert (plain.ability, embeds.ability) == ("", "embed")
    assert describe(Section(id=str(folder)), ability=("generate", "match")).ability == "match"
    assert describe(Section(id=str(folder)), ability="generate").ability == ""


# --- saved and merged


def test_an_adapter_is_restored_and_merged_into_the_same_scores(folder: Path, tmp_path: Path) -> None:
    base = load(Section(id=str(folder)), ability="match")
    rows = rows_of(base)
    before = log_odds(base, rows)
    adapted = disturb(attach(base, section(**LORA)))
    adapted.model.eval()
    tuned = log_odds(base, rows)
    assert (tuned - before).abs().max() > 0.01
    save(adapted, tmp_path / "saved")
    again = attach(load(Section(id=str(folder)), ability="match"), section(**LORA), seed=7)
    restore(again, tmp_path / "saved")
    assert log_odds(again.backbone, rows).equal(tuned)
    merge_into(again)
    torch.testing.assert_close(log_odds(again.backbone, rows), tuned, rtol=0, atol=10 * ROUNDING)


def test_a_reloaded_folder_is_held_against_the_scores(
    backbone: Backbone, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fresh process's own code, run here."""
    monkeypatch.setattr(merge_proof, "_run_alone", lambda job: list(map(fresh_reload.embed_case, read_json(job))))
    disturb(attach(backbone, section(kind="full", parts=["text"])))
    backbone.model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    inputs = inputs_of(backbone)
    here = merge_proof.embed(backbone, inputs)
    assert list(here) == ["log_odds"] and here["log_odds"].shape == (6,)
    cases = [merge_proof.case_of(backbone, path, inputs) for path in (tmp_path / "model", folder)]
    tuned, base = merge_proof.reload_elsewhere(cases, tmp_path)
    assert merge_proof.gap(tuned, here) <= merge_proof.TOLERANCE < merge_proof.gap(base, here)
