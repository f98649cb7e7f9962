"""What is trained is exactly what was asked for, survives saving, and nothing else moves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import (
    BOTH,
    KINDS,
    LORA,
    backbone_of,
    embeddings,
    inputs_of,
    section,
    train_steps,
)
from pydantic import ValidationError

from mmtune.adapters import attach, optimizer_groups, set_modes
from mmtune.adapters._layer_choice import choose_layers
from mmtune.adapters._targets import find_targets
from mmtune.backbones import Family
from mmtune.ground.errors import RecipeError

ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")


@pytest.fixture(params=["clip", "siglip"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}_folder")


# --- what is trained


def test_lora_trains_exactly_what_was_chosen(tiny_clip_folder: Path) -> None:
    adapted = attach(backbone_of(tiny_clip_folder), section(kind="lora", parts=["vision"], layers="last 1"))
    layer = "vision_model.encoder.layers.1.self_attn"
    factors = {f"{layer}.{name}.lora_{letter}.default.weight" for name in ATTENTION for letter in "AB"}
    assert set(adapted.trainable()) == factors | {"logit_scale"}
    required = {name for name, value in adapted.model.named_parameters() if value.requires_grad}
    assert required == set(adapted.trainable())
    assert [(part.part, part.num_modules) for part in adapted.parts] == [("vision", 4), ("temperature", 1)]
    assert type(adapted.model).__name__ == "CLIPModel"


def test_heads_and_parts_train_exactly_their_weights(tiny_clip_folder: Path, tiny_siglip_folder: Path) -> None:
    heads = attach(backbone_of(tiny_clip_folder), section(kind="head_only", parts=BOTH, temperature=False))
    assert set(heads.trainable()) == {"visual_projection.weight", "text_projection.weight"}
    for folder in (tiny_clip_folder, tiny_siglip_folder):
        backbone = backbone_of(folder)
        names = [name for name, _ in backbone.model.named_parameters()]
        whole = attach(backbone, section(kind="full", parts=["text"], temperature=False))
        assert set(whole.trainable()) == {name for name in names if name.startswith("text_")}
        assert all(part.share < 1 for part in whole.parts)


def test_structure_words_stay_in_their_part_and_their_kind(tiny_siglip_folder: Path) -> None:
    backbone = backbone_of(tiny_siglip_folder)
    find = lambda **values: find_targets(backbone.model, backbone.family.FAMILY, section(kind="lora", **values))  # noqa: E731
    mlp = find(parts=["vision"], targets=["mlp"])["vision"]
    pooling = [name for name in mlp if ".head." in name]
    assert pooling == ["vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"]  # not attention, though inside such
    assert all(name.startswith("vision_model.") for name in mlp) and len(mlp) == 6
    assert find(parts=["vision"], targets=["mlp"], layers="last 1")["vision"] == [
        "vision_model.encoder.layers.1.mlp.fc1",
        "vision_model.encoder.layers.1.mlp.fc2",
    ]
    attention = find(parts=BOTH, targets=["attention"])
    assert not [name for names in attention.values() for name in names if "head" in name]  # torch's own attention
    assert find(parts=["text"], targets=["head", "q_proj"], layers=["0"])["text"] == [
        "text_model.encoder.layers.0.self_attn.q_proj",
        "text_model.head",
    ]


def test_layers_per_part_and_rank_per_part(tiny_clip_folder: Path) -> None:
    values = {**LORA, "targets": ["q_proj"], "layers": {"vision": "first 1", "text": [1]}}
    values |= {"rank": {"vision": 4, "text": 2}, "alpha": {"vision": 8, "text": 6}}
    adapted = attach(backbone_of(tiny_clip_folder), section(**values))
    assert adapted.modules["vision"] == ["vision_model.encoder.layers.0.self_attn.q_proj"]
    assert adapted.modules["text"] == ["text_model.encoder.layers.1.self_attn.q_proj"]
    wrapped = {part: adapted.model.get_submodule(adapted.modules[part][0]) for part in BOTH}
    assert {part: layer.r["default"] for part, layer in wrapped.items()} == {"vision": 4, "text": 2}
    assert {part: layer.scaling["default"] for part, layer in wrapped.items()} == {"vision": 2.0, "text": 3.0}
    values["use_rslora"] = True
    rooted = attach(backbone_of(tiny_clip_folder), section(**values)).model.get_submodule(adapted.modules["vision"][0])
    assert rooted.scaling["default"] == 8 / 4**0.5


def test_alpha_is_twice_the_rank_by_default(tiny_clip_folder: Path) -> None:
    adapted = attach(backbone_of(tiny_clip_folder), section(**{**LORA, "rank": {"vision": 3, "text": 5}}))
    assert {adapted.model.get_submodule(adapted.modules[part][0]).scaling["default"] for part in BOTH} == {2.0}


def test_targets_corrected_by_a_family() -> None:
    tower = torch.nn.ModuleDict({"mix": torch.nn.Linear(2, 2), "mlp": torch.nn.Linear(2, 2)})
    model = torch.nn.ModuleDict({"tower": tower})
    family = family_of({"attention": {"vision": r"tower\.mix"}})
    values = section(kind="lora", parts=["vision"], targets=["attention"])
    assert find_targets(model, family, values) == {"vision": ["tower.mix"]}


def family_of(targets: dict[str, Any]) -> Family:
    return Family(
        name="made",
        model_types=(),
        abilities=frozenset(),
        parts={"vision": "tower"},
        layers={},
        heads={},
        full_precision=(),
        temperature=(),
        processor_classes={},
        targets=targets,
    )


# --- errors


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"parts": ["vision", "txt"], "layers": "last 9"}, ["no part 'txt'; there are vision, text", "the 2 layers"]),
        ({"targets": ["attn", "q_prj"]}, ["'attn' hits no", "did you mean 'attention'?", "did you mean 'q_proj'?"]),
        ({"targets": ["fc1", "fc3"]}, ["'fc3' hits no linear layer of parts vision, text; there are attention, mlp"]),
        ({"layers": "1-2"}, ["part 'vision': '1-2' is beyond the tower: it has 2 layers, 0 to 1", "part 'text'"]),
        ({"layers": {"vision": "all", "text": [7]}}, ["part 'text': 7 is beyond the tower"]),
    ],
)
def test_errors_say_everything_that_is_there(tiny_clip_folder: Path, values: dict[str, Any], said: list[str]) -> None:
    backbone = backbone_of(tiny_clip_folder)
    with pytest.raises(RecipeError) as caught:
        attach(backbone, section(**{**LORA, **values}))
    assert all(text in str(caught.value) for text in said), str(caught.value)
    assert not any("lora" in name for name, _ in backbone.model.named_parameters())


def test_a_tower_without_such_layers() -> None:
    model = torch.nn.ModuleDict({"tower": torch.nn.Conv2d(3, 3, 3)})
    with pytest.raises(RecipeError, match="part 'vision' has no linear layers at all"):
        find_targets(model, family_of({}), section(kind="lora", parts=["vision"]))
    with pytest.raises(RecipeError, match="has no list of layers to choose from"):
        find_targets(model, family_of({}), section(kind="lora", parts=["vision"], layers="last 2"))


def test_what_packed_or_coarse_weights_cannot_carry(tiny_clip_folder: Path) -> None:
    for options, values, said in [
        ({"quantize": "4bit"}, KINDS["full"], "4bit weights cannot be trained"),
        ({"quantize": "8bit"}, KINDS["dora"], "use_dora"),
        ({"dtype": "bfloat16"}, KINDS["full"], "bfloat16 is too coarse"),
        ({"dtype": "float16"}, KINDS["head_only"], "float16 is too coarse"),
    ]:
        with pytest.raises(RecipeError, match=said):
            attach(backbone_of(tiny_clip_folder, **options), section(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"layers": "last"}, {"layers": "last 0"}, {"layers": 4}, {"layers": []}, {"layers": "5-3"}, {"layers": ["all"]},
        {"layers": {"vision": "all"}}, {"rank": {"vision": 3}}, {"alpha": {"txt": 1.0}}, {"rank": 0}, {"dropout": 1.0},
        {"parts": []}, {"parts": ["vision", "vision"]}, {"targets": ["mlp", "mlp"]}, {"init": "pisa"}, {"alpha": 0},
        {"lora_plus_ratio": 0.5},
    ],
)  # fmt: skip
def test_sections_refuse(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section(**{**LORA, **values})


@pytest.mark.parametrize(
    ("choice", "layers"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("last 2", [3, 4]),
        ("first 2", [0, 1]),
        ("1-3", [1, 2, 3]),
        ("3", [3]),
        (["0-1", 4], [0, 1, 4]),
        ([4, 4, "3-4"], [3, 4]),
        ("last 5", [0, 1, 2, 3, 4]),
    ],
)
def test_layer_choices(choice: Any, layers: list[int]) -> None:
    assert choose_layers(choice, 5) == layers


def test_new_weights_are_a_function_of_the_seed_alone(tiny_clip_folder: Path) -> None:
    def start(seed: int) -> torch.Tensor:
        adapted = attach(backbone_of(tiny_clip_folder), section(**LORA), seed=seed)
        return torch.cat([value.detach().flatten() for value in adapted.trainable().values()])

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = start(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, start(0))
    assert not torch.equal(first, start(1))


def test_adapters_are_float32_beside_a_coarse_backbone(tiny_clip_folder: Path) -> None:
    adapted = attach(backbone_of(tiny_clip_folder, dtype="bfloat16"), section(**LORA))
    assert {value.dtype for value in adapted.trainable().values()} == {torch.float32}
    assert adapted.model.vision_model.pre_layrnorm.weight.dtype == torch.bfloat16
    assert embeddings(adapted.backbone, inputs_of(adapted.backbone)).isfinite().all()


# --- frozen means frozen


def with_batch_norm(folder: Path) -> Any:
    """CLIP whose patches pass a batch norm and a dropout below the adapted layers."""
    backbone = backbone_of(folder)
    tower = backbone.model.vision_model
    norm = torch.nn.BatchNorm1d(tower.embeddings.num_positions)
    tower.pre_layrnorm = torch.nn.Sequential(tower.pre_layrnorm, norm, torch.nn.Dropout(0.5))
    return backbone


@pytest.mark.parametrize("careless", [False, True])
def test_nothing_frozen_moves(tiny_clip_folder: Path, careless: bool) -> None:
    backbone = with_batch_norm(tiny_clip_folder)
    adapted = attach(backbone, section(**{**LORA, "layers": "last 1", "dropout": 0.2}))
    inputs = inputs_of(backbone)
    frozen = {k: v.clone() for k, v in backbone.model.state_dict().items() if k not in adapted.part_of}
    start = {k: v.detach().clone() for k, v in adapted.trainable().items()}
    set_modes(adapted)
    if careless:
        backbone.model.train()
    train_steps(adapted, torch.optim.AdamW(optimizer_groups(adapted, 1e-2, 0.1)), inputs, 3)
    moved = {k for k, v in backbone.model.state_dict().items() if k in frozen and not torch.equal(v, frozen[k])}
    running = {"running_mean", "running_var", "num_batches_tracked"}
    assert {name.rpartition(".")[2] for name in moved} == (running if careless else set())
    assert not [k for k, v in adapted.trainable().items() if torch.equal(v, start[k])]


def test_only_what_lies_above_the_lowest_trained_layer_is_in_train_mode(tiny_clip_folder: Path) -> None:
    backbone = with_batch_norm(tiny_clip_folder)
    adapted = attach(backbone, section(**{**LORA, "parts": ["vision"], "layers": "last 1", "dropout": 0.2}))
    set_modes(adapted)
    training = {name for name, module in backbone.model.named_modules() if module.training}
    assert all(n.startswith(("vision_model.encoder.layers.1", "visual_projection")) for n in training)
    assert "vision_model.encoder.layers.1.self_attn" in training  # its attention dropout is a number, not a module
    assert "vision_model.encoder.layers.1.self_attn.q_proj.lora_dropout.default" in training
    assert not [name for name in training if "norm" in name]


def test_trained_norms_are_in_train_mode_and_head_only_leaves_the_towers_alone(tiny_clip_folder: Path) -> None:
    whole = attach(backbone_of(tiny_clip_folder), section(kind="full", parts=["vision"]))
    set_modes(whole)
    assert whole.model.vision_model.pre_layrnorm.training and not whole.model.text_model.final_layer_norm.training
    heads = attach(backbone_of(tiny_clip_folder), section(kind="head_only", parts=["vision"]))
    set_modes(heads)
    assert {name for name, module in heads.model.named_modules() if module.training} == {"visual_projection"}


# --- optimizer groups


def test_optimizer_groups_hold_everything_once(tiny: Path) -> None:
    adapted = attach(backbone_of(tiny), section(**{**LORA, "use_dora": True, "lora_plus_ratio": 16.0}))
    groups = optimizer_groups(adapted, 1e-3, 0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(adapted.trainable()) and len(set(names)) == len(names)
    for group in groups:
        for name, value in zip(group["names"], group["params"], strict=True):
            assert value is adapted.trainable()[name]
            assert group["lr"] == pytest.approx(1.6e-2 if ".lora_B." in name else 1e-3)
            assert group["weight_decay"] == (0.1 if value.dim() > 1 else 0.0)
    same = optimizer_groups(attach(backbone_of(tiny), section(**LORA)), 1e-3, 0.1)
    assert {group["lr"] for group in same} == {1e-3}
