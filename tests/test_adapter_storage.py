"""Adapters as files, made here or elsewhere with peft, and folded into the weights."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import KINDS, LORA, adapted_of, backbone_of, embeddings, inputs_of, section

from mmtune.adapters import attach, attach_foreign, merge_into, merged_names, restore, save
from mmtune.ground.errors import BackboneError, CheckpointError
from mmtune.ground.safe_files import load_tensors, save_tensors

PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(params=["clip", "siglip"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}_folder")


# --- saving and restoring


@pytest.mark.parametrize("name", KINDS)
def test_restore_is_the_inverse_of_save(tiny: Path, name: str, tmp_path: Path) -> None:
    adapted = adapted_of(tiny, KINDS[name])
    inputs = inputs_of(adapted.backbone)
    bare = embeddings(backbone_of(tiny), inputs)
    save(adapted, tmp_path)
    again = attach(backbone_of(tiny), section(**KINDS[name]), seed=7)
    fresh = {key: value.detach().clone() for key, value in again.trainable().items()}
    restore(again, tmp_path)
    for (key, mine), other in zip(adapted.trainable().items(), again.trainable().values(), strict=True):
        assert torch.equal(mine, other), key
        assert not torch.equal(fresh[key], other), key
    assert torch.equal(embeddings(adapted.backbone, inputs), embeddings(again.backbone, inputs))
    assert (embeddings(again.backbone, inputs) - bare).abs().max() > 1e-3
    kind_files = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    kind_files = kind_files if adapted.peft_model is not None else {"trained.safetensors"}
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == kind_files | {"temperature.safetensors"}


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("name", ["lora", "dora", "lora_per_part", "lora_gaussian"])
def test_peft_alone_loads_the_adapter(tiny: Path, name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    adapted = adapted_of(tiny, KINDS[name])
    inputs = inputs_of(adapted.backbone)
    save(adapted, tmp_path)
    plain = backbone_of(tiny)
    bare = embeddings(plain, inputs)
    PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter"))
    # the same operations on the same weights in the same order: bitwise
    assert torch.equal(embeddings(plain, inputs), embeddings(adapted.backbone, inputs))
    assert not torch.equal(embeddings(plain, inputs), bare)


def test_files_follow_the_umask(tiny_clip_folder: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(adapted_of(tiny_clip_folder, LORA), tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_a_checkpoint_that_does_not_fit(tiny_clip_folder: Path, tmp_path: Path) -> None:
    save(adapted_of(tiny_clip_folder, LORA), tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_tensors(file)
    first, second = sorted(tensors)[:2]
    damaged = {**{name: value for name, value in tensors.items() if name != first}, "extra": torch.zeros(1)}
    damaged[second] = torch.zeros(2, 2)
    save_tensors(file, damaged)
    (tmp_path / "temperature.safetensors").unlink()
    fresh = attach(backbone_of(tiny_clip_folder), section(**LORA))
    before = [value.detach().clone() for value in fresh.trainable().values()]
    with pytest.raises(CheckpointError) as caught:
        restore(fresh, tmp_path)
    expected = (
        f"1 missing: {first}",
        "1 unexpected: extra",
        f"{second} has shape (2, 2)",
        "temperature.safetensors is",
    )
    assert all(said in str(caught.value) for said in expected)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.trainable().values(), strict=True))


def test_the_config_names_every_module_in_full_and_in_order(tiny_clip_folder: Path, tmp_path: Path) -> None:
    adapted = adapted_of(tiny_clip_folder, LORA)
    save(adapted, tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [*adapted.modules["vision"], *adapted.modules["text"]]
    assert config["base_model_name_or_path"] == str(tiny_clip_folder)


def test_the_config_names_the_backbone_as_the_recipe_does(
    tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft needs the name to load it; a relative one stays relative, so that no path of this machine is shared."""
    monkeypatch.chdir(tiny_clip_folder.parent)
    for name in (tiny_clip_folder.name, "builtin:glyph-clip"):
        save(adapted_of(Path(name), LORA), tmp_path)
        text = (tmp_path / "adapter" / "adapter_config.json").read_text()
        assert json.loads(text)["base_model_name_or_path"] == name
        assert str(tiny_clip_folder.parent) not in text


# --- adapters made elsewhere


def foreign(folder: Path, target: Path, **options: Any) -> torch.Tensor:
    """An adapter as somebody else would make it: bare suffixes, plain peft. Gives its embeddings."""
    from peft import LoraConfig, get_peft_model

    backbone = backbone_of(folder)
    peft_model = get_peft_model(backbone.model, LoraConfig(r=3, target_modules=["q_proj", "fc1"], **options))
    with torch.no_grad():
        for name, value in peft_model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    peft_model.save_pretrained(str(target))
    return embeddings(backbone, inputs_of(backbone))


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"init_lora_weights": "olora"}])
def test_foreign_adapters_are_used_and_merged(tiny_clip_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = foreign(tiny_clip_folder, tmp_path, **options)
    backbone = backbone_of(tiny_clip_folder)
    inputs = inputs_of(backbone)
    bare = embeddings(backbone, inputs)
    adapted = attach_foreign(backbone, tmp_path)
    # unit embeddings, two layers of fp32 and a QR for olora: 1e-5 is far above rounding and far below any effect
    assert (embeddings(backbone, inputs) - theirs).abs().max() < 1e-5
    merge_into(adapted)
    assert (embeddings(backbone, inputs) - theirs).abs().max() < 1e-5
    assert (embeddings(backbone, inputs) - bare).abs().max() > 1e-2
    assert not any("lora" in name for name, _ in backbone.model.named_parameters())


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("start", [True, "olora", "pissa"])
def test_foreign_adapters_scale_from_the_untouched_base(tiny_clip_folder: Path, tmp_path: Path, start: Any) -> None:
    foreign(tiny_clip_folder, tmp_path, init_lora_weights=start)
    base = backbone_of(tiny_clip_folder).model.state_dict()
    whole, nothing, half = (
        merge_into(attach_foreign(backbone_of(tiny_clip_folder), tmp_path), scale=scale).state_dict()
        for scale in (1.0, 0.0, 0.5)
    )
    changed = [name for name in base if not torch.equal(whole[name], base[name])]
    assert changed and all(torch.equal(nothing[name], base[name]) for name in base)
    assert all(torch.equal(half[name], base[name] + 0.5 * (whole[name] - base[name])) for name in changed)


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize(
    "options",
    [
        {"bias": "lora_only"},
        {"bias": "all"},
        {"trainable_token_indices": {"token_embedding": [3, 5]}},
        {"modules_to_save": ["visual_projection"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_foreign_adapters_train_besides_is_known(
    tiny_clip_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Merging says which tensors it changes, and begins its line at the untouched ones."""
    from peft import LoraConfig, get_peft_model

    theirs = backbone_of(tiny_clip_folder)
    wrapped = get_peft_model(theirs.model, LoraConfig(r=3, target_modules=["q_proj"], **options))
    with torch.no_grad():
        for value in (value for value in wrapped.parameters() if value.requires_grad):
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    wrapped.save_pretrained(str(tmp_path))
    inputs = inputs_of(theirs)
    wanted = embeddings(theirs, inputs)
    base = backbone_of(tiny_clip_folder).model.state_dict()
    adapted = attach_foreign(backbone_of(tiny_clip_folder), tmp_path)
    assert (embeddings(adapted.backbone, inputs) - wanted).abs().max() < 1e-5
    names = set(merged_names(adapted))
    merged = merge_into(adapted).state_dict()
    assert (embeddings(adapted.backbone, inputs) - wanted).abs().max() < 1e-5  # two fp32 roundings of one sum
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert any("q_proj" not in name or name.endswith(".bias") for name in changed) and changed <= names <= set(base)
    nothing = merge_into(attach_foreign(backbone_of(tiny_clip_folder), tmp_path), scale=0.0).state_dict()
    assert all(torch.equal(nothing[name], base[name]) for name in base)


def test_plain_tensors_beside_an_adapter_belong_to_it(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """As ``push`` lays them: all files in one folder."""
    adapted = adapted_of(tiny_clip_folder, LORA)
    save(adapted, tmp_path)
    (tmp_path / "temperature.safetensors").rename(tmp_path / "adapter" / "temperature.safetensors")
    save_tensors(tmp_path / "adapter" / "trained.safetensors", {"text_projection.weight": torch.ones(16, 32)})
    again = attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "adapter")
    assert torch.equal(again.model.logit_scale, adapted.model.logit_scale)
    assert again.model.text_projection.weight.eq(1).all()
    base = backbone_of(tiny_clip_folder).model.state_dict()
    nothing = merge_into(again, scale=0.0).state_dict()
    assert all(torch.equal(nothing[name], base[name]) for name in base)
    save_tensors(
        tmp_path / "adapter" / "trained.safetensors", {"text_projection.weight": torch.ones(2), "x": torch.ones(1)}
    )
    with pytest.raises(
        CheckpointError, match=r"trained.safetensors does not fit .*:\n1 unexpected: x\ntext_proj.* \(2,\)"
    ):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "adapter")


def test_the_adapter_folder_of_a_checkpoint_brings_what_lies_beside_it(
    tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged without it, the model would embed alike and have lost its temperature."""
    adapted = adapted_of(tiny_clip_folder, LORA)
    save(adapted, tmp_path)
    for name, cwd in ((tmp_path / "adapter", tmp_path), (Path("."), tmp_path / "adapter")):
        monkeypatch.chdir(cwd)
        again = attach_foreign(backbone_of(tiny_clip_folder), name)
        assert torch.equal(merge_into(again).logit_scale, adapted.model.logit_scale)
    (tmp_path / "adapter").rename(tmp_path / "other")
    bare = attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "other")
    assert torch.equal(bare.model.logit_scale, backbone_of(tiny_clip_folder).model.logit_scale)


@PEFT_ASKS_BY_THE_OLD_NAME
def test_foreign_adapters_that_do_not_fit(tiny_clip_folder: Path, tiny_siglip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter_config.json"):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path)
    foreign(tiny_siglip_folder, tmp_path)
    with pytest.raises(CheckpointError, match="unexpected"):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path)
    foreign(tiny_clip_folder, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_tensors(file)
    save_tensors(file, dict(list(tensors.items())[1:]))
    with pytest.warns(UserWarning, match="missing"), pytest.raises(CheckpointError, match="1 missing"):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path)  # peft alone would go on with a random tensor
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa_niter_4"'))
    with pytest.raises(CheckpointError, match="pissa_niter_4"):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path)


@pytest.mark.parametrize(
    ("peft_type", "said"),
    [
        ("WAVELET", "names the method 'WAVELET', which the installed peft does not have"),
        (None, "names the method None"),
        ("PROMPT_TUNING", "PROMPT_TUNING is refused: it puts trained vectors before the tokens"),
    ],
)
def test_foreign_methods_that_are_none_of_layers(
    tiny_clip_folder: Path, tmp_path: Path, peft_type: str | None, said: str
) -> None:
    save(adapted_of(tiny_clip_folder, LORA), tmp_path)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": peft_type}))
    with pytest.raises(CheckpointError, match=said):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "adapter")


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "temperature.safetensors"])
def test_a_damaged_file_of_a_foreign_adapter_is_named(tiny_clip_folder: Path, tmp_path: Path, name: str) -> None:
    save(adapted_of(tiny_clip_folder, LORA), tmp_path)
    (tmp_path / name).write_bytes(b"half a download")
    with pytest.raises(CheckpointError, match=f"{Path(name).name} cannot be read"):
        attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "adapter")


# --- merging


@pytest.mark.parametrize("name", KINDS)
def test_merged_equals_adapted_and_scales(tiny: Path, name: str) -> None:
    inputs = inputs_of(backbone_of(tiny))
    base = {key: value.clone() for key, value in backbone_of(tiny).model.state_dict().items()}
    adapted = adapted_of(tiny, KINDS[name])
    wanted = embeddings(adapted.backbone, inputs)
    merged = dict(merge_into(adapted).state_dict())
    assert (embeddings(adapted.backbone, inputs) - wanted).abs().max() < 1e-5  # two fp32 roundings of one sum
    assert set(merged) == set(base)
    for scale in (0.0, 0.5):
        scaled = dict(merge_into(adapted_of(tiny, KINDS[name]), scale=scale).state_dict())
        for key in base:
            assert torch.equal(scaled[key], base[key] + scale * (merged[key] - base[key])), key
    assert not torch.equal(merged["logit_scale"], base["logit_scale"])


def test_quantized_weights_are_not_merged_in_place(tiny_clip_folder: Path) -> None:
    with pytest.raises(BackboneError, match="dequantize the backbone first"):
        merge_into(adapted_of(tiny_clip_folder, LORA, quantize="4bit"))
