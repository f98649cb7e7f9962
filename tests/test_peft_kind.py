"""``kind: peft`` passes any config of peft through, and refuses by name what would not do here what it says."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BOTH, adapted_of, backbone_of, disturb, embeddings, inputs_of, section
from pydantic import ValidationError

from mmtune.adapters import attach, merge_into, merged_names, optimizer_groups, problems, restore, save
from mmtune.adapters._peft_limits import QUANTIZED, REFUSED_FIELDS, REFUSED_TYPES
from mmtune.adapters.peft import AT_BACKBONE, ONE_PART
from mmtune.backbones import Section as BackboneSection
from mmtune.backbones import describe
from mmtune.ground.errors import RecipeError

PLACE = {"kind": "peft", "parts": BOTH, "targets": ["q_proj", "mlp"], "layers": "last 1"}
ACCEPTED: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 64},
    "FROD": {},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "LORA": {"r": 4, "lora_bias": True},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8},
    "PEANUT": {"r": 4},
    "PVERA": {"r": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"num_vectors": 16, "vector_length": 8},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 64},
}
"""Every method that is not refused, with fields that fit a tiny twin."""


def values_of(name: str, **more: Any) -> dict[str, Any]:
    parts = ["vision"] if name in ONE_PART else BOTH
    return {**PLACE, "parts": parts, "config": {"peft_type": name, **ACCEPTED.get(name, {}), **more}}


def said(folder: Path, quantize: str | None = None, **config: Any) -> str:
    backbone = BackboneSection.model_validate({"id": str(folder), "quantize": quantize})
    return "\n".join(problems(section(**PLACE, config=config), backbone, describe(backbone)))


def test_every_method_of_peft_is_accepted_or_refused(tiny_clip_folder: Path) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for name in PEFT_TYPE_TO_CONFIG_MAPPING:
        found = said(tiny_clip_folder, peft_type=name.value, **ACCEPTED.get(name.value, {}))
        if name.value in ACCEPTED:
            assert not found or name.value in ONE_PART, found
        else:
            assert name.value.lower() in found.lower(), found
    assert not set(ACCEPTED) & set(REFUSED_TYPES)
    assert set(QUANTIZED) <= set(ACCEPTED), "rows of methods that are refused anyway"


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_is_restored_reloaded_and_merged(tiny_clip_folder: Path, tmp_path: Path, name: str) -> None:
    from peft import PeftModel

    values = values_of(name)
    adapted = adapted_of(tiny_clip_folder, values)
    inputs = inputs_of(adapted.backbone)
    mine = embeddings(adapted.backbone, inputs)
    save(adapted, tmp_path)
    again = attach(backbone_of(tiny_clip_folder), section(**values), seed=7)
    restore(again, tmp_path)
    assert torch.equal(embeddings(again.backbone, inputs), mine)
    plain = backbone_of(tiny_clip_folder)
    bare = embeddings(plain, inputs)
    base = {key: value.clone() for key, value in plain.model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter"))
    assert (embeddings(plain, inputs) - mine).abs().max() < 1e-5  # one computation, float32
    assert (mine - bare).abs().max() > 1e-4
    names = set(merged_names(again))
    state = merge_into(again).state_dict()
    assert (embeddings(again.backbone, inputs) - mine).abs().max() < 1e-5  # two float32 roundings of one sum
    assert {key for key in base if not torch.equal(base[key], state[key])} <= names


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_starts_as_the_backbone_unless_asked_otherwise(tiny_clip_folder: Path, name: str) -> None:
    def start(**more: Any) -> torch.Tensor:
        backbone = attach(backbone_of(tiny_clip_folder), section(**values_of(name, **more))).backbone
        return (embeddings(backbone, inputs_of(backbone)) - bare).abs().max()

    backbone = backbone_of(tiny_clip_folder)
    bare = embeddings(backbone, inputs_of(backbone))
    # VB-LoRA and Uni-LoRA have no zero to start from, their published starts are small draws
    assert start() < (1e-3 if name in ("VBLORA", "UNILORA") else 1e-5)
    if name in AT_BACKBONE:
        assert start(init_weights=False) > 1e-2, "the negation: peft's own default"


def test_multipliers_do_not_decay(tiny_clip_folder: Path) -> None:
    """BOFT's lengths start at one, in a matrix of one column: decay would pull the layers to zero."""
    groups = optimizer_groups(attach(backbone_of(tiny_clip_folder), section(**values_of("BOFT"))), 1e-3, 0.1)
    decays = {name.split(".")[-2]: group["weight_decay"] for group in groups for name in group["names"] if "." in name}
    assert decays == {"boft_R": 0.1, "boft_s": 0.0}


@pytest.mark.parametrize("name", sorted(set(ACCEPTED) - {"LOHA", "LOKR", "C3A"}))
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_on_quantized_layers_it_learns_or_is_refused(tiny_clip_folder: Path, name: str, quantize: str) -> None:
    values = values_of(name)
    if quantize in QUANTIZED.get(name, {}):
        assert f"{name.lower()} does not work on {quantize} layers: " in said(
            tiny_clip_folder, quantize, **values["config"]
        )
        return
    adapted = attach(backbone_of(tiny_clip_folder, quantize=quantize), section(**values))
    inputs = inputs_of(adapted.backbone)
    disturb(adapted)
    embeds = adapted.backbone.family.embed_media(adapted.model, inputs)
    embeds[:, 0].sum().backward()
    part = [value for key, value in adapted.trainable().items() if adapted.part_of[key] == "vision"]
    assert any(value.grad is not None and value.grad.abs().max() > 0 for value in part)


# --- refusals


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"peft_type": "WAVELET"}, "peft has no WAVELET; did you mean 'WAVEFT'?; there are BOFT"),
        ({"peft_type": "ADALORA"}, "adalora"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING is refused: it puts trained vectors before the tokens"),
        ({"peft_type": "LN_TUNING"}, "use kind: layernorm"),
        ({"peft_type": "OSF"}, "singular value decomposition"),
        ({"peft_type": "LOHA", "ranc_dropout": 0.1}, "LoHaConfig has no such field; did you mean 'rank_dropout'?"),
        ({"peft_type": "LOHA", "target_modules": ["q_proj"]}, "config.target_modules: parts, targets and layers"),
        ({"peft_type": "VERA", "save_projection": False}, "config.save_projection: it is written here"),
        ({"peft_type": "PVERA", "generator_seed": 1}, "config.generator_seed: a generator of its own"),
        ({"peft_type": "LORA", "bias": "all"}, "config.bias: 'all' trains biases"),
        ({"peft_type": "LORA", "init_lora_weights": "eva"}, "config.init_lora_weights: eva"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa"}, "kind: lora with init: pissa undoes that"),
        ({"peft_type": "LORA", "init_lora_weights": "pisa"}, "'pisa' is no start that is taken here; write true"),
        ({"peft_type": "LORA", "r": "8"}, "config.r: '8' does not fit: Input should be a valid integer"),
        ({"peft_type": "OFT", "module_dropout": 0.5}, "peft reads module_dropout of OFTConfig nowhere"),
        ({"peft_type": "OFT", "r": 2, "oft_block_size": 8}, "OFTConfig: "),
        ({"peft_type": "UNILORA"}, "UNILORA shares its trained weights among all layers: write one part"),
    ],
)
def test_what_is_refused_and_why(tiny_clip_folder: Path, config: dict[str, Any], expected: str) -> None:
    assert expected in said(tiny_clip_folder, **config)
    with pytest.raises(RecipeError):
        attach(backbone_of(tiny_clip_folder), section(**PLACE, config=config))


def test_everything_is_said_at_once(tiny_clip_folder: Path) -> None:
    found = said(tiny_clip_folder, "4bit", peft_type="loha", modules_to_save=["x"], alfa=2)
    assert all(text in found for text in ("4bit layers", "config.modules_to_save", "did you mean 'alpha'"))
    assert "orthogonal" in said(tiny_clip_folder, "4bit", peft_type="LORA", init_lora_weights="orthogonal")
    assert "use_dora" in said(tiny_clip_folder, "8bit", peft_type="LORA", use_dora=True)
    assert not said(tiny_clip_folder, "4bit", peft_type="LORA", use_dora=True)


def test_what_peft_finds_in_the_layers_is_a_recipe_error(tiny_clip_folder: Path) -> None:
    with pytest.raises(RecipeError, match="peft does not take it for these layers"):
        attach(backbone_of(tiny_clip_folder), section(**values_of("C3A", block_size=7)))


def test_refused_fields_are_fields_of_peft() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {name for config in PEFT_TYPE_TO_CONFIG_MAPPING.values() for name in config.__dataclass_fields__}
    assert set(REFUSED_FIELDS) <= fields


@pytest.mark.parametrize("config", [{}, {"peft_type": 3}, {"r": 8}])
def test_a_config_without_a_method(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="write peft_type"):
        section(**PLACE, config=config)
