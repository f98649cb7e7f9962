"""Whole runs of what one model stands for: mixed conversations, quantized weights, forgotten activations, batches."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import disturb, section
from lifecycle_cases import World, answers, checkpoint_bytes, losses, stop_and_go_on, without_pictures

from mmtune import train_loop
from mmtune.adapters import set_modes
from mmtune.backbones import Section, load
from mmtune.evaluation_run import score
from mmtune.export_run import merge
from mmtune.ground.errors import RecipeError, RunStopped
from mmtune.merge_building import fold, open_samples, prove_all, write_folder
from mmtune.merge_proof import gap
from mmtune.model_loading import resolve
from mmtune.sources import open_split
from mmtune.sources._made_up import picture
from mmtune.training_run import fit

TALKERS = ("llava", "qwen2_5_vl", "idefics3")

ADDED = 1e-6
"""Of the loss: the same label tokens summed in another order, in float32. Every update carries it on."""

STILL = {"adapter": {"dropout": 0.0}}

FOUR = ("blip captions", "llava", "blip2 opt", "git captions", "instructblip t5", "vilt answers")
QUANTIZED = [*((name, "4bit") for name in FOUR), ("llava", "8bit"), ("blip matches", "8bit")]

EXACT, ROUNDED = 1e-4, 0.2
"""Largest gap of a merge to the model as it was trained, as a share of the range of its logits: 4-bit weights are those
that were trained on; LLM.int8 rounds activations too, of every layer, which plain layers do not."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with without_pictures():
        yield World(tmp_path_factory.mktemp("matrix"))


# --- conversations of every kind in one batch


def mixed_conversations(folder: Path) -> dict[str, Any]:
    """Four conversations for each split: in words alone, with an image, with two, with a system turn and two turns."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(12):
        names = [f"{number}-{place}.png" for place in range(2)]
        for place, name in enumerate(names):
            (folder / "photos" / name).write_bytes(picture(2 * number + place))
        kind, split = number % 4, ("train", "validation", "test")[number // 4]
        rows.append({"split": split, **_conversation(kind, names, number)})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {name: name for name in ("train", "validation", "test")}
    path, images = str(folder / "chats.jsonl"), str(folder / "photos")
    return {"kind": "conversations", "path": path, "images": images, "splits": splits}


def _conversation(kind: int, names: list[str], number: int) -> dict[str, Any]:
    said = {"from": "gpt", "value": f"number {number} and no other"}
    if kind == 0:
        return {"conversations": [{"from": "human", "value": "what is a spot?"}, said]}
    if kind == 1:
        return {"image": names[0], "conversations": [{"from": "human", "value": "<image>\nwhich one?"}, said]}
    asked = {"from": "human", "value": "<image> or <image>?"}
    if kind == 2:
        return {"images": names, "conversations": [asked, {"from": "gpt", "value": "the second"}]}
    turns = [asked, {"from": "gpt", "value": "the first"}, {"from": "human", "value": "why?"}, said]
    return {"images": names, "system": "say little", "conversations": turns}


def without_dropout(folder: Path) -> None:
    """Write 0 wherever config.json names a dropout: micro-batches draw masks of their own."""

    def still(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: 0.0 if "dropout" in key else still(one) for key, one in value.items()}
        return value

    file = folder / "config.json"
    file.write_text(json.dumps(still(json.loads(file.read_text()))))


def mixed_recipe(world: World, name: str, run: str, **train: Any) -> Any:
    twin, data = world.folder / "still" / name, world.folder / "mixed"
    if not twin.is_dir():
        shutil.copytree(world.twin(name), twin)
        without_dropout(twin)
    sections = {"backbone": {"id": str(twin)}, "data": mixed_conversations(data), "train": train, **STILL}
    return world.recipe(name, run, **sections)


def loss_of_each(recipe: Any) -> float:
    """The mean over all label tokens of the training split, from transformers' own loss of every sample alone."""
    backbone = load(recipe.backbone)
    total = num = 0.0
    for sample in open_split(recipe.data, "train", seed=0).samples:
        images = [media.read() for turn in sample.turns for media in turn.media]
        encoded = backbone.family.encode_turns(backbone.processor, sample.turns, images)
        one = backbone.family.pad(backbone.processor, [encoded])
        tokens = int((encoded["labels"] >= 0).sum())
        with torch.no_grad():
            total += float(backbone.model(**one).loss) * tokens
        num += tokens
    return total / num


@pytest.mark.parametrize("name", TALKERS)
def test_conversations_of_every_kind_stand_in_one_batch(world: World, name: str) -> None:
    """Words alone, one image, several, a system turn and two answers: the loss is that of each of them alone."""
    whole = mixed_recipe(world, name, f"mixed {name}")
    expected = loss_of_each(whole)
    run = fit(whole)
    assert losses(run)[1][0] == pytest.approx(expected, rel=1e-5)
    assert losses(run)[4][0] < expected - 0.1
    for micro_batch in (1, 2):
        cut = fit(mixed_recipe(world, name, f"mixed {name} {micro_batch}", micro_batch=micro_batch))
        for step, (loss, norm) in losses(run).items():
            assert losses(cut)[step] == (
                pytest.approx(loss, rel=ADDED * 10 ** (step - 1)),
                pytest.approx(norm, rel=1e-3),
            )
    result = score(run)
    assert result["samples"] == 4 and len(answers(run)) == 4
    assert any(row["base"] != row["tuned"] for row in answers(run))


def test_grouped_by_length_and_cut_a_run_goes_on_bit_for_bit(world: World) -> None:
    train = {"group_by_length": True, "batch": 2, "micro_batch": 1, "evaluate_every": "2 steps"}
    whole = fit(world.recipe("qwen2_5_vl", "grouped whole", train=train))
    resumed = stop_and_go_on(world.recipe("qwen2_5_vl", "grouped", train=train))
    assert checkpoint_bytes(whole) == checkpoint_bytes(resumed) != {} and losses(whole) == losses(resumed)
    notes = [json.loads((run / "manifest.json").read_text()) for run in (whole, resumed)]
    assert notes[0]["best_checkpoint"] == notes[1]["best_checkpoint"] in ("step-000002", "step-000004")
    assert notes[0]["validation"] == notes[1]["validation"] and "rouge_l" in notes[0]["validation"]
    other = fit(world.recipe("qwen2_5_vl", "not grouped", train={**train, "group_by_length": False}))
    assert losses(other) != losses(whole), "other samples stand together"


# --- activations that are computed again


@pytest.mark.parametrize(
    ("name", "bits"), [("llava", None), ("llava", "4bit"), ("qwen2_5_vl", None), ("blip captions", None)]
)
def test_the_vision_part_learns_the_same_from_activations_computed_again(
    world: World, name: str, bits: str | None
) -> None:
    if bits:
        pytest.importorskip("bitsandbytes")
    (plain, once), (again, twice) = (one_step(world, name, bits, on) for on in (False, True))
    assert plain.keys() == again.keys() and plain
    largest = max(float(value.abs().max()) for value in plain.values())
    assert largest > 0 and all(value.abs().max() > 0 for value in plain.values())
    assert max(float((plain[key] - value).abs().max()) for key, value in again.items()) <= 1e-6 * largest
    assert set(once.values()) == {1} and set(twice.values()) == {2} and once.keys() == twice.keys()


def one_step(world: World, name: str, bits: str | None, on: bool) -> tuple[dict[str, torch.Tensor], Counter]:
    """Gradients of a run's first step, the adapter in vision alone, and how often what reads a layer's input ran."""
    from mmtune.ground.run_log import RunLog
    from mmtune.run_setup import start_accelerator
    from mmtune.train_loop import read_steps, take_step
    from mmtune.trainer_building import build_trainer

    train = {"activation_checkpointing": on, "max_grad_norm": None}
    sections: dict[str, Any] = {"backbone": {"quantize": bits}, "train": train, "adapter": {"parts": ["vision"]}}
    recipe = world.recipe(name, f"again {on} {bits} {name}", **sections)
    trainer = build_trainer(recipe, start_accelerator(recipe), RunLog(Path(recipe.output)))
    set_modes(disturb(trainer.adapted))
    ran: Counter = Counter()
    for path, module in trainer.adapted.model.named_modules():
        if path.endswith(("q_proj", "qkv")) and path in trainer.adapted.modules["vision"]:
            module.register_forward_hook(lambda *_, path=path: ran.update([path]))
    take_step(trainer, read_steps(trainer, 0, 1))
    trained = trainer.adapted.trainable().items()
    return {key: value.grad.clone() for key, value in trained if value.grad is not None}, ran


# --- quantized backbones


@pytest.fixture(scope="module")
def quantized(world: World) -> dict[tuple[str, str], dict[str, Any]]:
    """Case and bits -> what the proof of the merge measured; one fresh process for all."""
    pytest.importorskip("bitsandbytes")
    merges = []
    for name, bits in QUANTIZED:
        train = {"length": "3 steps", "batch": 2}
        recipe = world.recipe(name, f"{bits} {name}", backbone={"quantize": bits}, train=train)
        run = fit(recipe)
        samples, _ = open_samples(recipe)
        folded = fold(resolve(run), samples, scale=1.0, full=False, dtype="float32")
        (run / "merged").mkdir()
        write_folder(folded, run / "merged")
        merges.append((folded, run / "merged"))
    return dict(zip(QUANTIZED, prove_all(merges), strict=True))


@pytest.mark.parametrize(("name", "bits"), QUANTIZED)
def test_quantized_runs_are_merged_into_the_dequantized_base(
    quantized: dict[tuple[str, str], dict[str, Any]], name: str, bits: str
) -> None:
    report = quantized[name, bits]
    figures, reload = report["quantized"], report["reload"]
    assert (figures["trained_in"], figures["merged_into"]) == (bits, "dequantized weights")
    assert report["tensors"]["changed"] > 0 and reload["difference_from_base"] > 1e-3
    found = figures["gap_to_the_model_as_trained"]
    assert found <= EXACT if bits == "4bit" else EXACT < found < ROUNDED
    assert reload["reference"] == ("as_trained" if bits == "4bit" else "adapted") and reload["gap"] <= 1e-5


def test_a_quantized_run_that_is_asked_to_stop_goes_on_bit_for_bit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    sections = {"backbone": {"quantize": "4bit"}, "train": {"batch": 2, "optimizer": "adamw_8bit"}}
    whole, recipe = fit(world.recipe("llava", "never asked", **sections)), world.recipe("llava", "asked", **sections)
    take_step = train_loop.take_step

    def asked(trainer: Any, steps: Any) -> dict[str, Any]:
        row = take_step(trainer, steps)
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with monkeypatch.context() as patch, pytest.raises(RunStopped, match="SIGTERM after step 3 of 4"):
        patch.setattr(train_loop, "take_step", asked)
        fit(recipe)
    assert sorted(losses(Path(recipe.output))) == [1, 2, 3]
    resumed = fit(recipe)
    assert checkpoint_bytes(resumed) == checkpoint_bytes(whole) != {} and losses(resumed) == losses(whole)


def test_merge_writes_what_it_measured_and_where_to(world: World) -> None:
    """The command itself: into the original weights, with the gap, proven in a process of its own."""
    pytest.importorskip("bitsandbytes")
    recipe = world.recipe("smolvlm", "merged", backbone={"quantize": "4bit"}, train={"length": "3 steps", "batch": 2})
    run = fit(recipe)
    folder = merge(run, base="full")
    report = json.loads((folder / "merge_report.json").read_text())
    assert report["quantized"]["merged_into"] == "original weights"
    assert report["quantized"]["gap_to_the_model_as_trained"] > EXACT, "rounding to 4 bit is no small thing"
    twin = world.twin("smolvlm")
    assert {name: (twin / name).read_bytes() for name in report["copied"]} == {
        name: (folder / name).read_bytes() for name in report["copied"]
    }
    assert {"chat_template.jinja", "generation_config.json", "preprocessor_config.json"} <= set(report["copied"])
    assert load(Section(id=str(folder))).weight_hash != load(Section(id=str(twin))).weight_hash


# --- weights that a model holds twice


@pytest.mark.parametrize("name", ["blip2 opt", "instructblip t5", "paligemma"])
def test_words_that_a_head_shares_are_trained_in_both_or_refused(world: World, name: str) -> None:
    """peft looks for tied layers in the config of the whole model, where PaliGemma's says so and BLIP-2's does not."""
    adapter = {"kind": "trainable_tokens", "tokens": ["a"]}
    recipe = world.recipe(name, f"words {name}", train={"length": "3 steps", "batch": 2})
    recipe = recipe.model_copy(update={"adapter": section(**adapter)})
    if name != "paligemma":
        with pytest.raises(RecipeError, match=r"one weight with .*language_model\.lm_head, which peft would leave"):
            fit(recipe)
        return
    run = fit(recipe)
    samples, _ = open_samples(recipe)
    folded = fold(resolve(run), samples, scale=1.0, full=False, dtype="float32")
    assert len(folded.trained) == 2 and gap(folded.embedded["merged"], folded.embedded["adapted"]) <= 1e-5
    assert gap(folded.embedded["merged"], folded.embedded["base"]) > 1e-3
