"""Learning rates per part and per layer, and their product with LoRA+."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe

from mmtune.adapters import attach, describe_rates, optimizer_groups
from mmtune.adapters._groups import layer_depths
from mmtune.adapters.full import Section as FullSection
from mmtune.adapters.ia3 import Section as Ia3Section
from mmtune.adapters.lora import Section as LoraSection
from mmtune.backbones import Section, load
from mmtune.backbones._tiny_encoders import tiny_pair
from mmtune.ground.errors import RecipeError
from mmtune.training_run import fit


def rates_of(adapted: Any, *arguments: Any) -> dict[str, float]:
    groups = optimizer_groups(adapted, *arguments)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert set(rates) == set(adapted.trainable()) and sum(len(group["params"]) for group in groups) == len(rates)
    return rates


@pytest.fixture(scope="module")
def full(tiny_clip_folder: Path) -> Any:
    return attach(load(Section(id=str(tiny_clip_folder))), FullSection(kind="full", parts=["vision", "text"]))


def test_depth_is_counted_from_the_top_of_each_tower(full: Any) -> None:
    """Worked by hand on CLIP: embeddings and the norm below the layers are deepest, what is above them has depth 0."""
    num_layers = len(full.model.vision_model.encoder.layers)
    depths = layer_depths(full)
    assert depths["vision_model.embeddings.patch_embedding.weight"] == num_layers + 1
    assert depths["vision_model.pre_layrnorm.weight"] == num_layers + 1
    assert depths["vision_model.encoder.layers.0.mlp.fc1.weight"] == num_layers
    assert depths[f"vision_model.encoder.layers.{num_layers - 1}.mlp.fc1.weight"] == 1
    assert depths["vision_model.post_layernorm.weight"] == 0
    assert depths["visual_projection.weight"] == depths["text_projection.weight"] == depths["logit_scale"] == 0
    assert depths["text_model.embeddings.token_embedding.weight"] == len(full.model.text_model.encoder.layers) + 1
    assert depths["text_model.final_layer_norm.weight"] == 0


def test_layer_decay_multiplies_once_per_layer(full: Any) -> None:
    rates, depths = rates_of(full, 1e-3, 0.1, 0.5), layer_depths(full)
    assert rates == pytest.approx({name: 1e-3 * 0.5**depth for name, depth in depths.items()})
    assert len(set(rates.values())) > 2
    assert set(rates_of(full, 1e-3, 0.1).values()) == set(rates_of(full, 1e-3, 0.1, 1.0).values()) == {1e-3}


def test_rates_per_part(full: Any) -> None:
    rates = rates_of(full, {"vision": 1e-5, "default": 1e-4, "temperature": 1e-3}, 0.1)
    assert {full.part_of[name]: rate for name, rate in rates.items()} == {
        "vision": 1e-5,
        "text": 1e-4,
        "temperature": 1e-3,
    }
    with pytest.raises(RecipeError, match="train.learning_rate: text is trained too"):
        optimizer_groups(full, {"vision": 1e-5, "temperature": 1e-3}, 0.1)
    with pytest.raises(RecipeError, match="train.learning_rate: projection is not trained here"):
        optimizer_groups(full, {"projection": 1e-5, "default": 1e-3}, 0.1)


def test_a_tower_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    """Its layers would all have depth 0, and the recipe's decay would do nothing."""
    backbone = load(Section(**tiny_pair("swin", "bert", tmp_path)))
    adapted = attach(backbone, FullSection(kind="full", parts=["vision", "text"]))
    assert rates_of(adapted, 1e-3, 0.1)
    with pytest.raises(RecipeError, match="train.layer_decay: vision has no list of layers"):
        optimizer_groups(adapted, 1e-3, 0.1, 0.5)
    text = attach(load(Section(**tiny_pair("swin", "bert", tmp_path))), FullSection(kind="full", parts=["text"]))
    assert len(set(rates_of(text, 1e-3, 0.1, 0.5).values())) > 2, "what is not trained does not matter"


def test_multipliers_do_not_decay(tiny_clip_folder: Path) -> None:
    """IA3's and DoRA's begin away from 0; decayed they would fade the layer out."""
    parts = ["vision", "text"]
    ia3 = attach(load(Section(id=str(tiny_clip_folder))), Ia3Section(kind="ia3", parts=parts))
    decays = {name: group["weight_decay"] for group in optimizer_groups(ia3, 1e-3, 0.1) for name in group["names"]}
    assert any(".ia3_l." in name for name in decays) and set(decays.values()) == {0.0}
    lora = attach(load(Section(id=str(tiny_clip_folder))), LoraSection(kind="lora", parts=parts, rank=2, use_dora=True))
    decays = {name: group["weight_decay"] for group in optimizer_groups(lora, 1e-3, 0.1) for name in group["names"]}
    for name, decay in decays.items():
        assert decay == (0.1 if ".lora_A." in name or ".lora_B." in name else 0.0), name
    assert any(".lora_magnitude_vector." in name for name in decays)


def test_lora_plus_multiplies_what_part_and_layer_give(tiny_clip_folder: Path) -> None:
    section = LoraSection(kind="lora", parts=["vision", "text"], rank=2, lora_plus_ratio=8.0)
    adapted = attach(load(Section(id=str(tiny_clip_folder))), section)
    rates, depths = rates_of(adapted, {"vision": 1e-3, "default": 1e-2}, 0.0, 0.5), layer_depths(adapted)
    for name, rate in rates.items():
        base = 1e-3 if adapted.part_of[name] == "vision" else 1e-2
        assert rate == pytest.approx(base * (8 if ".lora_B." in name else 1) * 0.5 ** depths[name]), name
    assert max(depths.values()) == len(adapted.model.vision_model.encoder.layers), "a layer's LoRA goes with its layer"
    lines = list(describe_rates(adapted, optimizer_groups(adapted, 1e-3, 0.0, 0.5)))
    assert lines[0].startswith("learning rate of vision: 0.004 down to ") and lines[-1].endswith("temperature: 0.001")


def test_a_run_takes_them_and_says_them(tmp_path: Path, tiny_clip_folder: Path) -> None:
    train = {"learning_rate": {"vision": 0.001, "default": 0.01}, "schedule": "constant", "warmup": "0 steps"}
    run = fit(small_recipe(tmp_path, tiny_clip_folder, train=train))
    log = (run / "run.log").read_text()
    for line in ("learning rate of vision: 0.001", "learning rate of text: 0.01", "learning rate of temperature: 0.01"):
        assert line in log
    assert '"learning_rate": 0.01,' in (run / "metrics.jsonl").read_text(), "the highest is logged"


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"vision": 1e-3, "text": 1e-3}, "temperature is trained too and has no rate"),
        ({"vison": 1e-3, "default": 1e-3}, "trains no part 'vison'; did you mean vision"),
        ({"default": 0}, "must be above 0"),
    ],
)
def test_wrong_rates_are_found_in_the_recipe(
    tmp_path: Path, tiny_clip_folder: Path, rates: dict[str, float], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        small_recipe(tmp_path, tiny_clip_folder, train={"learning_rate": rates})
    small_recipe(tmp_path, tiny_clip_folder, "adapter.temperature=false", train={"learning_rate": {"default": 1e-3}})
