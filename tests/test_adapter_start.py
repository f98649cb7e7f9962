"""A run that begins with an earlier adapter's values: the same model at step 0, and everything that does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BOTH, KINDS, LORA, backbone_of, disturb, embeddings, inputs_of, make_run, section
from small_runs import small_recipe

from mmtune.adapter_start import start_adapter
from mmtune.adapters import Adapted, attach, merge_into, save
from mmtune.ground.errors import CheckpointError, MmtuneError, RecipeError
from mmtune.ground.safe_files import file_hash, load_tensors, read_json
from mmtune.model_loading import load_model, resolve
from mmtune.recipe_schema import Recipe, recipe_from_json
from mmtune.training_run import fit

PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def recipe_of(folder: Path, backbone: Path, adapter: dict[str, Any], **options: Any) -> Recipe:
    return recipe_from_json(
        {
            "backbone": {"id": str(backbone), **options},
            "adapter": adapter,
            "data": {"kind": "glyphs", "characters": 60},
            "task": {"kind": "retrieval", "loss": {"kind": "infonce"}},
            "train": {"length": "4 steps", "batch": 8, "learning_rate": 1e-3},
            "output": str(folder / "new"),
        }
    )


def started(recipe: Recipe) -> tuple[Adapted, list[str]]:
    from mmtune.backbones import load

    adapted = attach(load(recipe.backbone), recipe.adapter, seed=9)
    return adapted, start_adapter(adapted, recipe)


@pytest.fixture
def run(tiny_clip_folder: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "old", {"id": str(tiny_clip_folder)}, LORA)


@pytest.mark.parametrize("name", ["lora", "lora_pissa", "head_only", "layernorm", "trainable_tokens"])
def test_step_zero_is_the_earlier_model_and_the_base_is_not(tiny_clip_folder: Path, name: str, tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", {"id": str(tiny_clip_folder)}, KINDS[name])
    theirs = load_model(old)
    inputs = inputs_of(theirs)
    wanted = embeddings(theirs, inputs)
    values = {**KINDS[name], "start_from": str(old)}
    adapted, lines = started(recipe_of(tmp_path, tiny_clip_folder, values))
    assert torch.equal(embeddings(adapted.backbone, inputs), wanted)
    base = backbone_of(tiny_clip_folder)
    assert not torch.equal(embeddings(base, inputs), wanted)
    state = base.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in adapted.start.items()), "the base is the backbone"
    assert lines == [f"starting from {old}/checkpoints/step-000001"]
    nothing = merge_into(adapted, scale=0.0).state_dict()
    assert all(torch.equal(nothing[key], value) for key, value in state.items())


def test_a_checkpoint_or_a_peft_folder_will_do(tiny_clip_folder: Path, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "step-000001"
    saved = load_tensors(checkpoint / "adapter" / "adapter_model.safetensors")
    for folder, kind in ((checkpoint, "checkpoint"), (checkpoint / "adapter", "adapter")):
        adapted, lines = started(recipe_of(tmp_path, tiny_clip_folder, {**LORA, "start_from": str(folder)}))
        record = adapted.started_from
        assert record is not None and (record["kind"], record["name"]) == (kind, str(folder))
        live = {name: value for name, value in adapted.peft_model.state_dict().items() if "lora_A" in name}
        assert all(torch.equal(saved[name.replace(".default", "")], value) for name, value in live.items())
        moved = not torch.equal(adapted.model.logit_scale, backbone_of(tiny_clip_folder).model.logit_scale)
        assert moved == (kind == "checkpoint")
        said = "start_from: logit_scale: not in it, begins at the backbone's value"
        assert lines[1:] == ([] if kind == "checkpoint" else [said])


@PEFT_ASKS_BY_THE_OLD_NAME
def test_an_adapter_made_elsewhere(tiny_clip_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = backbone_of(tiny_clip_folder)
    wrapped = get_peft_model(theirs.model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    values = {**LORA, "targets": ["q_proj"], "start_from": str(tmp_path / "theirs")}
    adapted, lines = started(recipe_of(tmp_path, tiny_clip_folder, values))
    inputs = inputs_of(theirs)
    assert torch.equal(embeddings(adapted.backbone, inputs), embeddings(theirs, inputs))
    assert lines[1:] == ["start_from: logit_scale: not in it, begins at the backbone's value"]
    config = tmp_path / "theirs" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "some/model"}))
    _, lines = started(recipe_of(tmp_path, tiny_clip_folder, values))
    assert lines[1].startswith("start_from: made for some/model, whose weights it does not note; names and shapes fit")
    raw = config.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"')
    config.write_text(raw)
    with pytest.raises(CheckpointError, match="init_lora_weights 'pissa' changed the base weights there"):
        started(recipe_of(tmp_path, tiny_clip_folder, values))
    config.write_text(raw.replace('"pissa"', "true"))
    with pytest.raises(CheckpointError, match=r"lora_alpha is 8 there, 16.0 here"):
        started(recipe_of(tmp_path, tiny_clip_folder, {**values, "alpha": 16.0}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 2}, ["r is 4 there, 2 here", "has shape (4, 32), not (2, 32)", "more"]),
        ({"alpha": 3.0}, ["adapter_config.json: lora_alpha is 8 there, 3.0 here (as saved, for vision_model."]),
        ({"use_rslora": True}, ["use_rslora is False there, True here"]),
        ({"layers": "last 1"}, ["unexpected", "layers.0"]),
        ({"parts": ["text"]}, ["unexpected", "vision_model"]),
        ({"use_dora": True}, ["use_dora is False there, True here", "missing"]),
        ({"init": "pissa", "rank": 2}, ["plain LoRA (init: default)", "init: pissa would fix half of its ranks"]),
        ({"temperature": False}, ["temperature.safetensors was trained there; write adapter.temperature: true"]),
    ],
)
def test_another_adapter_is_refused_whole(
    tiny_clip_folder: Path, run: Path, tmp_path: Path, values: dict[str, Any], said: list[str]
) -> None:
    recipe = recipe_of(tmp_path, tiny_clip_folder, {**LORA, **values, "start_from": str(run)})
    from mmtune.backbones import load

    adapted = attach(load(recipe.backbone), recipe.adapter)
    before = {name: value.detach().clone() for name, value in adapted.trainable().items()}
    with pytest.raises(CheckpointError, match="does not fit this recipe's adapter") as caught:
        start_adapter(adapted, recipe)
    assert all(text in str(caught.value) for text in said), str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in adapted.trainable().items())


def test_tokens_that_are_others_are_refused(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """Names and shapes fit; only the config knows."""
    tokens = KINDS["trainable_tokens"]
    old = make_run(tmp_path / "old", {"id": str(tiny_clip_folder)}, tokens)
    with pytest.raises(CheckpointError, match="token_indices is .* there, "):
        started(recipe_of(tmp_path, tiny_clip_folder, {**tokens, "tokens": ["e", 9, "n"], "start_from": str(old)}))


def test_other_weights_kinds_and_folders_are_refused(
    tiny_clip_folder: Path, tiny_siglip_folder: Path, run: Path, tmp_path: Path
) -> None:
    def refused(match: str, backbone: Path = tiny_clip_folder, error: type = CheckpointError, **values: Any) -> None:
        with pytest.raises(error, match=match):
            started(recipe_of(tmp_path, backbone, {**LORA, "start_from": str(run), **values}))

    refused("was trained on .*tiny_clip .* are others", backbone=tiny_siglip_folder)
    refused(
        "adapter.start_from: there is no folder .*/nowhere", error=RecipeError, start_from=str(tmp_path / "nowhere")
    )
    refused("is a whole model; name it as backbone.id", start_from=str(tiny_clip_folder))
    refused("adapter.start_from: .* is neither a run", start_from=str(tmp_path))
    refused("is in this run's own folder", error=RecipeError, start_from=str(tmp_path / "new" / "checkpoints"))
    with pytest.raises(CheckpointError, match="trained with adapter.kind lora, this recipe says head_only"):
        started(recipe_of(tmp_path, tiny_clip_folder, {**KINDS["head_only"], "start_from": str(run)}))
    with pytest.raises(CheckpointError, match="has no trained.safetensors"):
        peft_folder = run / "checkpoints" / "step-000001" / "adapter"
        started(recipe_of(tmp_path, tiny_clip_folder, {**KINDS["head_only"], "start_from": str(peft_folder)}))
    manifest = read_json(run / "manifest.json")
    manifest["backbone"]["weight_hash"] = None
    (run / "manifest.json").write_text(json.dumps(manifest))
    refused("its manifest.json notes no hash")


def test_a_start_that_is_not_there_is_refused_before_anything_slow(
    tiny_clip_folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.run_setup.start_accelerator", lambda *_: pytest.fail("too late"))
    checkpoint = run / "checkpoints" / "step-000001"
    for start, said in {
        tmp_path / "odl": rf"there is no folder .*/odl; did you mean {run}\?",
        checkpoint.parent: f"holds checkpoints and is none: name one, such as {checkpoint}, or the run {run}",
        checkpoint / "adapter" / "adapter_config.json": "is a file; name a run",
        tmp_path / "new" / "checkpoints": "is in this run's own folder",
    }.items():
        with pytest.raises(RecipeError, match=f"^adapter.start_from: .*{said}"):
            fit(recipe_of(tmp_path, tiny_clip_folder, {**LORA, "start_from": str(start)}))
    with pytest.raises(pytest.fail.Exception, match="too late"):
        fit(recipe_of(tmp_path, tiny_clip_folder, {**LORA, "start_from": str(run)}))


def test_a_start_in_the_weights_is_named_in_one_line(tiny_clip_folder: Path, tmp_path: Path) -> None:
    pissa = {**LORA, "rank": 3, "init": "pissa"}
    old = make_run(tmp_path / "old", {"id": str(tiny_clip_folder)}, pissa)
    with pytest.raises(CheckpointError) as caught:
        started(recipe_of(tmp_path, tiny_clip_folder, {**LORA, "rank": 4, "start_from": str(old)}))
    assert str(caught.value).endswith(
        "adapter: that run had init: pissa: write adapter.init: pissa, and adapter.rank: 3"
    )
    with pytest.raises(CheckpointError, match="more of another shape") as caught:
        started(recipe_of(tmp_path, tiny_clip_folder, {**pissa, "rank": 2, "start_from": str(old)}))
    assert len(str(caught.value).splitlines()) < 8


def test_weights_in_another_format_are_noted(tiny_clip_folder: Path, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    _, lines = started(recipe_of(tmp_path, tiny_clip_folder, {**LORA, "start_from": str(run)}, quantize="4bit"))
    assert lines[1:] == ["start_from: trained beside weights in full precision, goes on beside 4bit"]


def test_a_plain_lora_starts_from_what_pissa_saved(tiny_clip_folder: Path, tmp_path: Path) -> None:
    """It is a plain LoRA of twice the rank."""
    pissa = {"kind": "lora", "parts": BOTH, "targets": ["q_proj"], "rank": 3, "init": "pissa"}
    adapted = disturb(attach(backbone_of(tiny_clip_folder), section(**pissa)))
    save(adapted, tmp_path)
    plain = {**pissa, "init": "default", "rank": 6, "start_from": str(tmp_path / "adapter")}
    again, _ = started(recipe_of(tmp_path, tiny_clip_folder, plain))
    inputs = inputs_of(again.backbone)
    difference = embeddings(again.backbone, inputs) - embeddings(adapted.backbone, inputs)
    assert difference.abs().max() < 1e-5  # two fp32 computations of one model


# --- whole runs


def test_a_run_starts_from_another_and_goes_on_without_it(tiny_clip_folder: Path, tmp_path: Path) -> None:
    first = fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", f"output={tmp_path}/first"))
    start = f"adapter.start_from={first}"
    overrides = (start, f"output={tmp_path}/second", "train.evaluate_every=null")
    second = fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", *overrides))
    note = read_json(second / "manifest.json")["start_from"]
    file = "adapter/adapter_model.safetensors"
    assert (note["name"], note["checkpoint"]) == (str(first), "step-000002")
    assert note["sha256"][file] == file_hash(first / "checkpoints" / "step-000002" / file)
    assert "starting from" in (second / "run.log").read_text()
    assert "start_from" not in read_json(first / "manifest.json")
    unlike = fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", f"output={tmp_path}/unlike"))
    losses = [json.loads((each / "metrics.jsonl").read_text().splitlines()[0])["loss"] for each in (second, unlike)]
    assert losses[0] != losses[1], "the negation: from the backbone the first loss is another"
    shutil.move(first, tmp_path / "gone")
    again = fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=3 steps", *overrides))
    assert read_json(again / "manifest.json")["start_from"] == note
    assert resolve(again).folder == again / "checkpoints" / "step-000003"
    load_model(again)
    with pytest.raises(MmtuneError, match="there is no folder"):
        fit(small_recipe(tmp_path, tiny_clip_folder, start, f"output={tmp_path}/third"))


def test_a_start_that_wrote_no_checkpoint_leaves_no_note(tiny_clip_folder: Path, tmp_path: Path, run: Path) -> None:
    """What begins anew in its folder, with other keys, is not said to have started from there."""
    here = f"output={tmp_path}/second"
    adapter = {**LORA, "start_from": str(run)}
    second = fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", here, adapter=adapter))
    manifest = read_json(second / "manifest.json")
    assert manifest["start_from"]["name"] == str(run)
    shutil.rmtree(second / "checkpoints")
    (second / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    fit(small_recipe(tmp_path, tiny_clip_folder, "train.length=2 steps", here))
    assert "start_from" not in read_json(second / "manifest.json")
