"""LoRA that starts in the weights: the base is never touched, and what is saved is a plain LoRA of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BOTH, backbone_of, disturb, embeddings, inputs_of, make_run, samples, section, train_steps
from pydantic import ValidationError
from small_runs import small_recipe

from mmtune.adapters import Adapted, attach, attach_foreign, merge_into, optimizer_groups, restore, save, set_modes
from mmtune.adapters._lora_start import INITIAL
from mmtune.adapters._refusals import METHODS, STARTS, refusal
from mmtune.backbones import Backbone
from mmtune.ground.errors import RecipeError
from mmtune.ground.safe_files import load_tensors, save_tensors
from mmtune.model_loading import load_model, resolve
from mmtune.training_run import fit

ROUNDING = 1e-5
"""Two float32 computations of one model, unit embeddings; every effect here is above 1e-3."""

PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

START: dict[str, Any] = {"kind": "lora", "parts": BOTH, "targets": ["attention", "mlp"], "rank": 4, "init": "pissa"}
PER_PART = {"rank": {"vision": 4, "text": 3}, "alpha": {"vision": 8, "text": 5}}
CASES: dict[str, dict[str, Any]] = {
    "pissa": START,
    "olora": {**START, "init": "olora", "dropout": 0.1},
    "pissa_niter": {**START, "init": "pissa_niter_4", "targets": ["q_proj"]},
    "pissa_per_part": {**START, **PER_PART},
    "olora_rslora_per_part": {**START, **PER_PART, "init": "olora", "use_rslora": True},
    "pissa_one_alpha": {**START, "rank": PER_PART["rank"], "alpha": 6},
}


def trained(folder: Path, values: dict[str, Any], **options: Any) -> Adapted:
    return disturb(attach(backbone_of(folder, **options), section(**values)))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def peft_alone(folder: Path, adapter: Path) -> Backbone:
    """The untouched backbone with the adapter, through peft and nothing else."""
    from peft import PeftModel

    backbone = backbone_of(folder)
    PeftModel.from_pretrained(backbone.model, str(adapter))
    return backbone


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("name", CASES)
def test_saved_is_a_plain_lora_of_the_untouched_backbone(tiny_clip_folder: Path, name: str, tmp_path: Path) -> None:
    adapted = trained(tiny_clip_folder, CASES[name])
    inputs = inputs_of(adapted.backbone)
    wanted = embeddings(adapted.backbone, inputs)
    base = embeddings(backbone_of(tiny_clip_folder), inputs)
    save(adapted, tmp_path)
    plain = peft_alone(tiny_clip_folder, tmp_path / "adapter")
    assert apart(embeddings(plain, inputs), wanted) < ROUNDING
    assert apart(wanted, base) > 1e-3
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    ranks = CASES[name]["rank"] if isinstance(CASES[name]["rank"], dict) else {"vision": CASES[name]["rank"]}
    assert (config["r"], config["init_lora_weights"]) == (2 * ranks["vision"], True)
    assert set(config["rank_pattern"].values()) == ({2 * ranks["text"]} if "text" in ranks else set())
    again = attach(backbone_of(tiny_clip_folder), section(**CASES[name]), seed=7)
    foreign = attach_foreign(backbone_of(tiny_clip_folder), tmp_path / "adapter")
    restore(again, tmp_path)
    assert torch.equal(embeddings(again.backbone, inputs), wanted), "bit for bit"
    for made in (again, foreign):
        merge_into(made)
        assert apart(embeddings(made.backbone, inputs), wanted) < ROUNDING


@PEFT_ASKS_BY_THE_OLD_NAME
def test_saved_unconverted_it_would_be_another_model(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """The negation: the trained factors alone, as peft would save them, on the untouched backbone."""
    adapted = trained(tiny_clip_folder, START)
    inputs = inputs_of(adapted.backbone)
    save(adapted, tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    half = {name: value.chunk(2, dim=int("lora_B" in name))[0] for name, value in load_tensors(file).items()}
    save_tensors(file, {name: value.contiguous() for name, value in half.items()})
    config = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "r": 4, "lora_alpha": 8}))
    raw = peft_alone(tiny_clip_folder, tmp_path / "adapter")
    assert apart(embeddings(raw, inputs), embeddings(adapted.backbone, inputs)) > 0.1


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_the_start_is_the_backbone_and_points_where_the_method_says(tiny_clip_folder: Path, init: str) -> None:
    backbone = backbone_of(tiny_clip_folder)
    inputs = inputs_of(backbone)
    base = embeddings(backbone, inputs)
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    adapted = attach(backbone, section(**{**START, "init": init}))
    assert apart(embeddings(backbone, inputs), base) < ROUNDING, "what is added is taken out again"
    held = {name.replace(".base_layer.", "."): value for name, value in backbone.model.state_dict().items()}
    assert all(torch.equal(held[name], value) for name, value in state.items())
    layer: Any = backbone.model.get_submodule(adapted.modules["text"][0])
    part = layer.get_delta_weight("default").detach().double()
    weight = layer.base_layer.weight.detach().double()
    u, s, v = torch.linalg.svd(weight)
    best = (u[:, :4] * s[:4]) @ v[:4]
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        best = layer.scaling["default"] * q[:, :4] @ r[:4]
    if init == "pissa_niter_4":  # near by design: as much of the weight, in neighbouring directions
        assert 0.8 * best.norm() < part.norm() <= best.norm()
    else:
        assert (part - best).norm() < 1e-5 * best.norm()
    assert best.norm() > 0.1 * weight.norm()
    adapted.peft_model.disable_adapter_layers()
    assert torch.equal(embeddings(backbone, inputs), base)


def test_only_the_trained_half_trains(tiny_clip_folder: Path) -> None:
    adapted = attach(backbone_of(tiny_clip_folder), section(**{**START, "targets": ["q_proj"], "lora_plus_ratio": 4.0}))
    plain = attach(backbone_of(tiny_clip_folder), section(**{**START, "targets": ["q_proj"], "init": "default"}))
    assert set(adapted.trainable()) == set(plain.trainable())
    frozen = {name: value.detach().clone() for name, value in adapted.model.named_parameters() if INITIAL in name}
    assert frozen
    start = {name: value.detach().clone() for name, value in adapted.trainable().items()}
    set_modes(adapted)
    inputs = inputs_of(adapted.backbone)
    train_steps(adapted, torch.optim.AdamW(optimizer_groups(adapted, 1e-3, 0.1)), inputs, 2)
    now = dict(adapted.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert not any(torch.equal(now[name], value) for name, value in start.items())


def test_training_goes_on_bit_for_bit(tiny_clip_folder: Path, tmp_path: Path) -> None:
    values = {**START, "dropout": 0.1}
    adapted = attach(backbone_of(tiny_clip_folder), section(**values))
    inputs = inputs_of(adapted.backbone)

    def one_step(one: Adapted) -> list[torch.Tensor]:
        set_modes(one)
        torch.manual_seed(5)
        train_steps(one, torch.optim.SGD(optimizer_groups(one, 0.1, 0.0)), inputs, 1)
        return [value.detach().clone() for value in one.trainable().values()]

    one_step(adapted)
    save(adapted, tmp_path)
    wanted = one_step(adapted)
    again = attach(backbone_of(tiny_clip_folder), section(**values))
    restore(again, tmp_path)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one_step(again), wanted, strict=True))


def test_a_run_goes_on_bit_for_bit(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """Its last checkpoint is lost; trained again from the one before, it is the same to the bit."""
    values = {"targets": ["attention"], "init": "pissa", "dropout": 0.1}
    run = fit(small_recipe(tmp_path, tiny_clip_folder, "train.evaluate_every=null", adapter=values))
    last = run / "checkpoints" / "step-000004"
    first = {path.name: path.read_bytes() for path in last.rglob("*.safetensors")}
    shutil.rmtree(last)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    fit(small_recipe(tmp_path, tiny_clip_folder, "train.evaluate_every=null", adapter=values))
    again = {path.name: path.read_bytes() for path in last.rglob("*.safetensors")}
    assert again == first and "adapter_model.safetensors" in again
    assert "going on from step-000002" in (run / "run.log").read_text()


def test_a_model_is_loaded_without_decomposing_anything(
    tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", {"id": str(tiny_clip_folder)}, START)
    adapted = attach(backbone_of(tiny_clip_folder), section(**START))
    restore(adapted, run / "checkpoints" / "step-000001")
    inputs = inputs_of(adapted.backbone)
    monkeypatch.setattr("mmtune.adapters._lora_start._decompose", None)
    assert torch.equal(embeddings(load_model(run), inputs), embeddings(adapted.backbone, inputs))
    with pytest.raises(TypeError):
        attach(backbone_of(tiny_clip_folder), section(**START))


def test_merging_starts_from_the_untouched_weights(tiny_clip_folder: Path) -> None:
    base = {name: value.clone() for name, value in backbone_of(tiny_clip_folder).model.state_dict().items()}
    nothing = merge_into(trained(tiny_clip_folder, START), scale=0.0).state_dict()
    assert all(torch.equal(nothing[name], base[name]) for name in base)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_weights_stay_as_they_are(tiny_clip_folder: Path, quantize: str, tmp_path: Path) -> None:
    """The start comes from the dequantized weights and nothing is quantized again: plain LoRA's arithmetic."""
    pytest.importorskip("bitsandbytes")
    backbone = backbone_of(tiny_clip_folder, quantize=quantize)
    inputs = inputs_of(backbone)
    base = embeddings(backbone, inputs)
    # LLM.int8 rounds activations, so rounding in one layer may become a step of 1/127 of a row in the next
    rounding = ROUNDING if quantize == "4bit" else 2e-2
    adapted = attach(backbone, section(**START))
    assert apart(embeddings(backbone, inputs), base) < rounding
    disturb(adapted)
    wanted = embeddings(backbone, inputs)
    assert apart(wanted, base) > 10 * rounding
    save(adapted, tmp_path)
    foreign = attach_foreign(backbone_of(tiny_clip_folder, quantize=quantize), tmp_path / "adapter")
    assert apart(embeddings(foreign.backbone, inputs), wanted) < rounding


def test_a_quantized_run_is_merged_as_it_was_trained(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """What the start takes out is that of the dequantized weights, which it is merged into; of others it is not."""
    from mmtune.merge_building import fold

    pytest.importorskip("bitsandbytes")
    run = make_run(tmp_path / "run", {"id": str(tiny_clip_folder), "quantize": "4bit"}, START)
    found = {
        full: fold(resolve(run), samples(), scale=1.0, full=full, dtype="float32").embedded for full in (False, True)
    }
    for name in ("image", "text"):
        trained, base = found[False]["as_trained"][name], found[False]["base"][name]
        assert apart(found[False]["merged"][name], trained) < ROUNDING
        assert apart(trained, base) > 1e-2
        assert apart(found[True]["merged"][name], trained) > 1e-3, "the negation: the original weights"


def test_a_run_is_merged_and_says_its_rank(tiny_clip_folder: Path, tmp_path: Path) -> None:
    from mmtune.merge_building import _check_tensors, fold, write_folder

    run = make_run(tmp_path / "run", {"id": str(tiny_clip_folder)}, START)
    folded = fold(resolve(run), samples(), scale=1.0, full=False, dtype="float32")
    assert apart(folded.embedded["merged"]["text"], folded.embedded["adapted"]["text"]) < ROUNDING
    (tmp_path / "merged").mkdir()
    write_folder(folded, tmp_path / "merged")
    assert _check_tensors(folded, tmp_path / "merged")["trained_but_equal_to_base"] == []


# --- orthogonal


@PEFT_ASKS_BY_THE_OLD_NAME
def test_orthogonal_starts_at_the_backbone_with_both_factors_in_use(tiny_clip_folder: Path, tmp_path: Path) -> None:
    backbone = backbone_of(tiny_clip_folder)
    inputs = inputs_of(backbone)
    base = embeddings(backbone, inputs)
    adapted = attach(backbone, section(**{**START, "init": "orthogonal"}))
    assert apart(embeddings(backbone, inputs), base) < ROUNDING, "B A is zero but for rounding"
    assert all(value.any() for name, value in adapted.trainable().items() if ".lora_" in name)
    disturb(adapted)
    save(adapted, tmp_path)
    plain = peft_alone(tiny_clip_folder, tmp_path / "adapter")
    assert torch.equal(embeddings(plain, inputs), embeddings(backbone, inputs))


# --- what is refused


def test_a_rank_that_no_layer_has(tiny_clip_folder: Path) -> None:
    backbone = backbone_of(tiny_clip_folder)
    with pytest.raises(RecipeError, match="adapter.rank: 33 is more than the 32 directions that vision_model.*q_proj"):
        attach(backbone, section(**{**START, "targets": ["q_proj"], "rank": 33}))
    assert not any("lora" in name for name, _ in backbone.model.named_parameters())
    attach(backbone, section(**{**START, "targets": ["q_proj"], "rank": 32}))


@pytest.mark.parametrize("word", [*METHODS, *STARTS])
def test_refusals_give_their_reason_and_a_way_out(word: str) -> None:
    reason = refusal(word.upper().replace("_", "-"))
    assert reason is not None and reason.startswith(f"{word} ") and "; write " in reason
    assert all(refusal(other) is None for other in ("lora", "pissa", True, None))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"init": "eva"}, "eva is computed from the layers' inputs"),
        ({"init": "loftq"}, "replaces the base weights"),
        ({"use_dora": True}, "DoRA's lengths are those of a weight with one update"),
        ({"init": "orthogonal", "rank": {"vision": 4, "text": 3}}, "write an even rank"),
    ],
)
def test_sections_say_why(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        section(**{**START, **values})
