"""The bytes that `mmtune check` says are those that a loaded model holds, part by part and in every setting."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_examples import backbone_of, inputs_of, section, train_steps

from mmtune.adapters import attach
from mmtune.adapters._targets import in_part
from mmtune.backbones import Backbone, Section, describe, load, tiny_folder
from mmtune.part_sizes import (
    REST,
    chosen_setting,
    empty_model,
    in_words,
    part_sizes,
    state_bytes,
    trained_sizes,
)

TWINS: dict[str, dict[str, Any]] = {
    "clip": {},
    "blip": {"architecture": "BlipForQuestionAnswering"},
    "vilt": {},
    "git": {},
    "instructblip": {},
    "blip2": {"architecture": "Blip2ForConditionalGeneration"},
    "chat": {"model_type": "qwen2_5_vl"},
    "gemma3": {"model_type": "gemma3"},  # its head is its word embeddings
    "florence2": {"model_type": "florence2"},
}
HELD: list[dict[str, Any]] = [
    {},
    {"dtype": "float16"},
    {"quantize": "8bit", "dtype": "bfloat16"},
    {"quantize": "4bit"},
    {"quantize": "4bit", "dtype": "bfloat16", "double_quantization": False},
]
SHARE = 0.01
"""What an estimate may be off by."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    return {
        name: tiny_folder("chat" if "model_type" in more else name, folder / name, **more)
        for name, more in TWINS.items()
    }


def tensors_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Everything that a model's weights are made of: parameters, and what quantized ones need to be read."""
    for name, value in model.named_parameters():
        yield name, value
        state, scale = getattr(value, "quant_state", None), getattr(value, "SCB", None)
        if state is not None:
            outer = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
            yield from ((name, one) for one in (state.absmax, state.code, *outer))
        if scale is not None:
            yield name, scale


def held_bytes(backbone: Backbone) -> dict[str, int]:
    """Bytes that each part of a loaded model holds."""
    traits, found = backbone.traits, {}
    for name, value in tensors_of(backbone.model):
        part = next((part for part in traits.parts if in_part(name, traits, part)), REST)
        found[part] = found.get(part, 0) + value.numel() * value.element_size()
    return found


@pytest.mark.parametrize("name", TWINS)
def test_a_loaded_model_holds_what_was_said(folders: dict[str, Path], name: str) -> None:
    for held in HELD:
        backbone_section = Section(id=str(folders[name]), **held)
        description = describe(backbone_section)
        rows = part_sizes(empty_model(description), description)
        told = {row.part: row.num_bytes[chosen_setting(backbone_section)] for row in rows}
        assert told == pytest.approx(held_bytes(load(backbone_section)), rel=SHARE), held


def test_a_part_in_other_bits_is_not_what_was_said(folders: dict[str, Path]) -> None:
    """The negation: full precision for 8 bit, and the scales of the weights left out, are off by more."""
    description = describe(Section(id=str(folders["clip"]), quantize="4bit", double_quantization=False))
    rows = {row.part: row for row in part_sizes(empty_model(description), description)}
    held = held_bytes(load(description.section))
    for part in ("vision", "text"):
        row = rows[part]
        packed_alone = 4 * (row.num_weights - row.num_quantized) + row.num_quantized // 2
        for wrong in (row.num_bytes["8bit"], row.num_bytes["float32"], packed_alone):
            assert wrong != pytest.approx(held[part], rel=SHARE)


def test_nothing_of_the_weights_is_needed(folders: dict[str, Path], tmp_path: Path) -> None:
    config = (folders["chat"] / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    description = describe(Section(id=str(tmp_path)))
    model = empty_model(description)
    assert all(value.is_meta for value in model.parameters())
    rows = part_sizes(model, description)
    assert {row.part for row in rows} == set(description.traits.parts)
    assert all(set(row.num_bytes) == {"float32", "bfloat16", "float16", "8bit", "4bit"} for row in rows)


def test_what_is_refused_has_no_size(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    description = describe(Section(id=str(folders["clip"])))
    refusing = replace(description.traits, unquantizable={"8bit": "because"})
    monkeypatch.setattr(type(description), "traits", refusing)
    rows = part_sizes(empty_model(description), description)
    assert all("8bit" not in row.num_bytes and "4bit" in row.num_bytes for row in rows)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_adds_what_was_said(folders: dict[str, Path], optimizer: str, kind: str) -> None:
    from mmtune.optimizer_setup import make_optimizer, optimizer_tensors
    from mmtune.recipe_schema import TrainSection

    adapted = attach(backbone_of(folders["clip"]), section(kind=kind, parts=["vision", "text"]))
    recipe = TrainSection(length="1 steps", batch=2, learning_rate=1e-3, optimizer=optimizer)
    made = make_optimizer(adapted, recipe)
    train_steps(adapted, made, inputs_of(adapted.backbone), 1)
    states = {name: one for name, one in optimizer_tensors(made).items() if "qmap" not in name and one.dim()}
    told = trained_sizes(adapted, optimizer)
    for row in told:
        own = {name: value for name, value in adapted.trainable().items() if adapted.part_of[name] == row.part}
        size = sum(value.numel() * value.element_size() for value in own.values())
        assert row.weights == (size if kind == "lora" and row.part != "temperature" else 0)
        assert row.gradients == sum(value.grad.numel() * 4 for value in own.values())
        of_part = [one for name, one in states.items() if name.rsplit("//", 1)[0] in own]
        assert row.states == pytest.approx(sum(one.numel() * one.element_size() for one in of_part), abs=16)
    assert {row.part for row in told} == {"vision", "text", "temperature"}


def test_averages_in_8_bit_are_for_large_tensors_alone() -> None:
    import torch

    large, small = torch.zeros(64, 64), torch.zeros(64, 63)
    assert state_bytes(large, "adamw") == 8 * 4096 and state_bytes(large, "paged_adamw_8bit") == 2 * 4096 + 8 * 16
    assert state_bytes(small, "adamw_8bit") == state_bytes(small, "adamw")


@pytest.mark.parametrize(("size", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4.34e9, "4.3 GB")])
def test_bytes_in_words(size: float, words: str) -> None:
    assert in_words(size) == words
