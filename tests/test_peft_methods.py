"""The kinds that go through peft beside lora: each is the method it says, starts as the backbone, and refuses misfits.

What every kind must do besides (train exactly its weights, restore, merge, reload) is in test_method_table.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BOTH, adapted_of, backbone_of, disturb, embeddings, inputs_of, loss_of, section
from pydantic import ValidationError

from mmtune.adapters import attach, merge_into, restore, save, set_modes
from mmtune.adapters._effective_change import effective_change
from mmtune.ground.errors import RecipeError
from mmtune.recipe_schema import load_recipe

MLP = {"parts": BOTH, "targets": ["q_proj", "mlp"], "layers": "last 1"}
KINDS: dict[str, dict[str, Any]] = {
    "ia3": {"kind": "ia3", **MLP},
    "loha": {"kind": "loha", **MLP, "rank": 4},
    "lokr": {"kind": "lokr", **MLP, "rank": 4},
    "vera": {"kind": "vera", **MLP, "rank": 16},
    "oft": {"kind": "oft", **MLP, "oft_block_size": 8},
    "hira": {"kind": "hira", **MLP, "rank": 4},
    "randlora": {"kind": "randlora", **MLP, "rank": 4},
    "fourierft": {"kind": "fourierft", **MLP, "n_frequency": 64},
    "miss": {"kind": "miss", **MLP, "rank": 4},
    "miss_bat": {"kind": "miss", **MLP, "rank": 4, "init_weights": "bat"},
    "miss_mini": {"kind": "miss", **MLP, "rank": 4, "init_weights": "mini", "mini_r": 8},
    "miss_uneven": {"kind": "miss", **MLP, "rank": 6},
}
FC2 = "vision_model.encoder.layers.1.mlp.fc2"
Q = "vision_model.encoder.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("name", KINDS)
def test_it_starts_as_the_backbone(tiny_clip_folder: Path, name: str) -> None:
    backbone = backbone_of(tiny_clip_folder)
    inputs = inputs_of(backbone)
    bare = embeddings(backbone, inputs)
    adapted = attach(backbone, section(**KINDS[name]))
    assert (embeddings(backbone, inputs) - bare).abs().max() < 1e-6  # a rotation by nothing is not bitwise nothing
    disturb(adapted)
    assert (embeddings(backbone, inputs) - bare).abs().max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_in_float32_beside_a_coarse_backbone(tiny_clip_folder: Path, name: str) -> None:
    adapted = adapted_of(tiny_clip_folder, KINDS[name] | {"temperature": False}, dtype="bfloat16")
    assert {value.dtype for value in adapted.trainable().values()} == {torch.float32}
    loss = loss_of(adapted.backbone, inputs_of(adapted.backbone))
    loss.backward()
    assert loss.isfinite() and all(value.grad.abs().max() > 0 for value in adapted.trainable().values())


# --- formulas: the merged weight is what the docstring says


def merged(folder: Path, name: str, layer: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, Any]:
    """The layer's own tensors, its weight before and after merging, and the wrapped layer."""
    adapted = adapted_of(folder, KINDS[name])
    wrapped = adapted.model.get_submodule(layer)
    own = {key.removeprefix(f"{layer}."): value.detach().clone() for key, value in adapted.trainable().items()}
    own = {key: value for key, value in own.items() if not key.startswith(("vision", "text"))}
    before = wrapped.get_base_layer().weight.detach().clone()
    return own, before, merge_into(adapted).get_submodule(layer).weight.detach(), wrapped


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert torch.allclose(one, other, atol=1e-6, rtol=1e-5)  # float32 sums in another order


def test_ia3_scales_outputs_and_of_the_last_layer_inputs(tiny_clip_folder: Path) -> None:
    own, before, after, _ = merged(tiny_clip_folder, "ia3", Q)
    close(after, own["ia3_l.default"].view(-1, 1) * before)
    own, before, after, _ = merged(tiny_clip_folder, "ia3", FC2)
    assert own["ia3_l.default"].numel() == before.shape[1] != before.shape[0]
    close(after, before * own["ia3_l.default"].view(1, -1))


def test_ia3_scales_the_bias_too(tiny_clip_folder: Path) -> None:
    backbone = backbone_of(tiny_clip_folder)
    with torch.no_grad():
        backbone.model.get_submodule(Q).bias.fill_(1.0)
    adapted = disturb(attach(backbone, section(**KINDS["ia3"])))
    factors = adapted.trainable()[f"{Q}.ia3_l.default"].detach().clone()
    close(merge_into(adapted, scale=0.5).get_submodule(Q).bias, 1 + 0.5 * (factors.view(-1) - 1))


def test_loha_is_a_product_of_two_updates(tiny_clip_folder: Path) -> None:
    own, before, after, _ = merged(tiny_clip_folder, "loha", FC2)
    one, two = (own[f"hada_w{n}_a.default"] @ own[f"hada_w{n}_b.default"] for n in (1, 2))
    close(after, before + one * two)


def test_lokr_is_a_kronecker_product(tiny_clip_folder: Path) -> None:
    own, before, after, _ = merged(tiny_clip_folder, "lokr", FC2)
    right = own["lokr_w2.default"] if "lokr_w2.default" in own else own["lokr_w2_a.default"] @ own["lokr_w2_b.default"]
    close(after, before + torch.kron(own["lokr_w1.default"], right))


def test_vera_shares_its_matrices_between_layers_of_all_shapes(tiny_clip_folder: Path) -> None:
    for layer in (Q, FC2):
        own, before, after, wrapped = merged(tiny_clip_folder, "vera", layer)
        down = wrapped.vera_A["default"][:, : before.shape[1]]
        up = wrapped.vera_B["default"][: before.shape[0]]
        update = own["vera_lambda_b.default"].view(-1, 1) * (up @ (own["vera_lambda_d.default"].view(-1, 1) * down))
        close(after, before + update)


def test_oft_rotates(tiny_clip_folder: Path) -> None:
    values = {**KINDS["oft"], "use_cayley_neumann": False}
    adapted = adapted_of(tiny_clip_folder, values)
    before = adapted.model.get_submodule(FC2).get_base_layer().weight.detach().clone()
    after = merge_into(adapted).get_submodule(FC2).weight
    close(after @ after.T, before @ before.T)
    assert not torch.allclose(after, before, atol=1e-3)
    near = adapted_of(tiny_clip_folder, KINDS["oft"])
    after = merge_into(near).get_submodule(FC2).weight
    assert (after @ after.T - before @ before.T).abs().max() > 1e-6, "the series is nearly orthogonal, not quite"


def test_hira_multiplies_the_weights(tiny_clip_folder: Path) -> None:
    own, before, after, _ = merged(tiny_clip_folder, "hira", FC2)
    close(after, before + before * (own["hira_B.default"] @ own["hira_A.default"]))


def test_randlora_sums_random_updates(tiny_clip_folder: Path) -> None:
    own, before, after, wrapped = merged(tiny_clip_folder, "randlora", Q)
    scales, factors = own["randlora_lambda.default"], own["randlora_gamma.default"]
    small = wrapped.randlora_A["default"][:, 0, : before.shape[1]]
    large = wrapped.randlora_B["default"][: before.shape[0], : scales.shape[1]].reshape(before.shape[0], *scales.shape)
    update = torch.einsum("okn,kn,ki,ni->oi", large, scales, small, factors)
    assert scales.shape[1] == before.shape[0] // 4  # as many as full rank takes
    close(after, before + 20 * update)


def test_fourierft_trains_a_spectrum(tiny_clip_folder: Path) -> None:
    own, before, after, wrapped = merged(tiny_clip_folder, "fourierft", FC2)
    spectrum = torch.zeros_like(before)
    rows, columns = wrapped.indices["default"]
    spectrum[rows, columns] = own["fourierft_spectrum.default"]
    close(after, before + 150 * torch.fft.ifft2(spectrum).real)


def test_miss_repeats_a_matrix(tiny_clip_folder: Path) -> None:
    own, before, after, _ = merged(tiny_clip_folder, "miss", FC2)
    block = own["miss_block.default"].T
    close(after, before + block.repeat(1, before.shape[1] // block.shape[1]))
    own, before, after, _ = merged(tiny_clip_folder, "miss_mini", FC2)
    block = own["miss_block.default"].T.repeat(before.shape[0] // 8, before.shape[1] // 4)
    close(after, before + block)


# --- what is drawn


@pytest.mark.parametrize("name", ["loha", "lokr", "vera", "hira", "randlora"])
def test_what_is_drawn_comes_from_the_seed_alone(tiny_clip_folder: Path, name: str) -> None:
    def start(seed: int) -> torch.Tensor:
        adapted = attach(backbone_of(tiny_clip_folder), section(**KINDS[name]), seed=seed)
        state = [value for key, value in adapted.model.state_dict().items() if ".default" in key]
        return torch.cat([value.flatten() for value in state])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = start(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, start(0))
    assert not torch.equal(first, start(1))


@pytest.mark.parametrize("name", ["vera", "randlora"])
def test_random_matrices_are_saved(tiny_clip_folder: Path, tmp_path: Path, name: str) -> None:
    """Another torch may draw others from the same key: what was saved counts."""
    adapted = adapted_of(tiny_clip_folder, KINDS[name])
    save(adapted, tmp_path)
    other = attach(backbone_of(tiny_clip_folder), section(**KINDS[name], projection_prng_key=5))
    before = embeddings(other.backbone, inputs_of(other.backbone))
    restore(other, tmp_path)
    inputs = inputs_of(other.backbone)
    assert torch.equal(embeddings(other.backbone, inputs), embeddings(adapted.backbone, inputs))
    assert not torch.equal(embeddings(other.backbone, inputs), before)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loha", {"rank_dropout": 0.5}),
        ("loha", {"module_dropout": 0.5}),
        ("lokr", {"rank_dropout": 0.5}),
        ("lokr", {"module_dropout": 0.5}),
        ("vera", {"dropout": 0.5}),
        ("hira", {"dropout": 0.5}),
        ("randlora", {"dropout": 0.5}),
        ("miss", {"dropout": 0.5}),
    ],
)
def test_dropout_works_in_training_alone(tiny_clip_folder: Path, name: str, values: dict[str, Any]) -> None:
    adapted = adapted_of(tiny_clip_folder, {**KINDS[name], **values})
    inputs = inputs_of(adapted.backbone)
    adapted.model.eval()
    still = embeddings(adapted.backbone, inputs)
    assert torch.equal(embeddings(adapted.backbone, inputs), still)
    set_modes(adapted)
    torch.manual_seed(0)
    assert any(not torch.equal(embeddings(adapted.backbone, inputs), still) for _ in range(4))


# --- files


def test_the_config_names_feedforward_modules_in_order(tiny_clip_folder: Path, tmp_path: Path) -> None:
    save(adapted_of(tiny_clip_folder, KINDS["ia3"]), tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["feedforward_modules"] == [FC2, FC2.replace("vision", "text")]
    own = adapted_of(tiny_clip_folder, {**KINDS["ia3"], "feedforward_modules": ["q_proj", "fc1"]})
    wrapped = {name: own.model.get_submodule(name).is_feedforward for name in own.modules["vision"]}
    assert {name.rpartition(".")[2]: inner for name, inner in wrapped.items()} == {
        "q_proj": True,
        "fc1": True,
        "fc2": False,
    }


# --- refusals


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "oft", "oft_block_size": 24}, "24 does not divide 32 inputs; these do: 2, 4, 8, 16, 32"),
        ({"kind": "fourierft", "n_frequency": 5000}, "5000 is more than the 1024 weights of a layer"),
        ({"kind": "miss", "rank": 33}, "33 is more than the 32 inputs"),
        ({"kind": "miss", "rank": 5, "init_weights": "bat"}, "bat needs a rank that divides"),
        ({"kind": "miss", "rank": 4, "init_weights": "mini", "mini_r": 5}, "5 does not divide the 32 outputs"),
        ({"kind": "ia3", "feedforward_modules": ["fc3"]}, "fc3 is not among the chosen layers.*fc1, fc2, q_proj"),
        ({"kind": "vera", "d_initial": 0}, "at 0 neither vector ever gets a gradient"),
    ],
)
def test_layers_that_do_not_fit(tiny_clip_folder: Path, values: dict[str, Any], said: str) -> None:
    backbone = backbone_of(tiny_clip_folder)
    names = [name for name, _ in backbone.model.named_parameters()]
    with pytest.raises(RecipeError, match=said):
        attach(backbone, section(**MLP, **values))
    assert [name for name, _ in backbone.model.named_parameters()] == names


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "lokr", "decompose_factor": 0},
        {"kind": "randlora", "sparse": True, "very_sparse": True},
        {"kind": "miss", "mini_r": 4},
        {"kind": "loha", "layers": {"vision": "all"}},
        {"kind": "loha", "targets": ["mlp", "mlp"]},
        {"kind": "loha", "rank": 0},
        {"kind": "vera", "dropout": 1.0},
        {"kind": "oft", "oft_block_size": 1},
    ],
)
def test_sections_refuse(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section(**{**MLP, **values})


def test_quantized_layers_are_refused_with_the_recipe_alone(tmp_path: Path) -> None:
    recipe = {
        "backbone": {"id": "nowhere/nothing", "quantize": "4bit"},
        "adapter": {"kind": "loha", "parts": BOTH},
        "data": {"kind": "glyphs"},
        "task": {"kind": "retrieval", "loss": {"kind": "infonce"}},
        "train": {"length": "4 steps", "batch": 8, "learning_rate": 1e-3},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(
        RecipeError, match="loha does not work on 4bit layers: .*; write backbone.quantize: null or 8bit"
    ):
        load_recipe(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml", ["backbone.quantize=8bit"]).adapter.kind == "loha"


# --- how far a layer has moved


@pytest.mark.parametrize("quantize", [None, "8bit"])
@pytest.mark.parametrize("name", KINDS)
def test_change_is_that_of_the_merged_weight(tiny_clip_folder: Path, name: str, quantize: str | None) -> None:
    options = {} if quantize is None else {"quantize": quantize}
    adapted = attach(backbone_of(tiny_clip_folder, **options), section(**KINDS[name]))
    start = {key: value.detach().clone() for key, value in adapted.trainable().items()}
    layer = adapted.model.get_submodule(FC2)
    assert effective_change(layer, FC2, start)[0] == 0.0
    disturb(adapted)
    found, weight = effective_change(layer, FC2, start)
    inputs = inputs_of(adapted.backbone)
    outputs = embeddings(adapted.backbone, inputs)
    assert torch.equal(embeddings(adapted.backbone, inputs), outputs), "looking at it changed it"
    assert found > 0
    if quantize is None:
        before = layer.get_base_layer().weight.detach().clone()
        difference = merge_into(adapted).get_submodule(FC2).weight - before
        assert found == pytest.approx(float(difference.norm()), rel=1e-4)
        assert weight == pytest.approx(float(before.norm()), rel=1e-5)


def test_the_change_of_a_wide_layer_is_estimated() -> None:
    import peft

    model = torch.nn.ModuleDict({"wide": torch.nn.Linear(512, 96)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft.get_peft_model(model, peft.LoHaConfig(r=4, target_modules=["wide"]))
    layer: Any = model["wide"]
    start = {f"wide.{key}": value.detach().clone() for key, value in layer.named_parameters() if value.requires_grad}
    assert effective_change(layer, "wide", start)[0] == 0.0
    with torch.no_grad():
        layer.hada_w2_a["default"].fill_(1e-6)
    expected = float(layer.get_delta_weight("default").norm())
    assert effective_change(layer, "wide", start)[0] == pytest.approx(expected, rel=0.3)  # 64 directions of 512
