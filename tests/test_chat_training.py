"""Every chat model type: exactly the part that is asked for is trained, and merged folders are what was trained."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import disturb, section
from chat_examples import EXCHANGES, ROUNDING, encode, logits, pad

from mmtune.activation_checkpointing import checkpoint_activations
from mmtune.adapters import attach, merge_into, set_modes
from mmtune.backbones import Section, load
from mmtune.backbones._chat_twins import TWINS
from mmtune.ground.errors import RecipeError

Loaded = Callable[[str], Any]

CLIP = r"model\.vision_tower\.encoder\.layers\.[01]\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
LLAMA = r"\.layers\.[01]\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
QWEN = r"model\.visual\.blocks\.[01]\.(attn\.(qkv|proj)|mlp\..*)"
TWO = r"model\.multi_modal_projector\.linear_[12]"
LANGUAGE, IDEFICS = r"model\.language_model" + LLAMA, r"model\.text_model" + LLAMA
IDEFICS_VISION = CLIP.replace("vision_tower", "vision_model")

LINEAR = {
    "llava": (CLIP, TWO, LANGUAGE),
    "llava_next": (CLIP, TWO, LANGUAGE),
    "llava_onevision": (CLIP, TWO, LANGUAGE),
    "qwen2_vl": (QWEN, r"model\.visual\.merger\.mlp\.[02]", LANGUAGE),
    "qwen2_5_vl": (QWEN, r"model\.visual\.merger\.mlp\.[02]", LANGUAGE),
    "qwen3_vl": (QWEN, r"model\.visual\.merger\.linear_fc[12]", LANGUAGE),
    "idefics3": (IDEFICS_VISION, r"model\.connector\.modality_projection\.proj", IDEFICS),
    "smolvlm": (IDEFICS_VISION, r"model\.connector\.modality_projection\.proj", IDEFICS),
    "paligemma": (CLIP, r"model\.multi_modal_projector\.linear", LANGUAGE),
    "gemma3": (CLIP, None, LANGUAGE),
    "internvl": (
        r"model\.vision_tower\.encoder\.layer\.[01]\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])",
        TWO,
        LANGUAGE,
    ),
    "florence2": (
        r"model\.vision_tower\.blocks\.\d\.0\.(spatial|channel)_block\.(\w+_attn\.(qkv|proj)|ffn\.fn\.fc[12]|ffn\.fc[12])",
        r"model\.multi_modal_projector\.image_projection",
        r"model\.language_model\.(en|de)coder\.layers\.[01]\.((self_attn|encoder_attn)\.(q|k|v|out)_proj|fc[12])",
    ),
}
"""Model type -> linear layers of attention and mlp of vision, connector and text, as patterns; None: it has none.

The third layer of the CLIP of LLaVA-1.5 and LLaVA-NeXT is not read, so it is not among them."""

PARTS = ("vision", "connector", "text")


@pytest.fixture(params=TWINS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- what is trained, and merging


def folder_of(chat_backbone: Loaded, kind: str) -> Path:
    return chat_backbone(kind).description.folder


def adapted_of(folder: Path, part: str, **options: Any) -> Any:
    values = {"kind": "lora", "parts": [part], "targets": ["attention", "mlp"], "rank": 2, "alpha": 4}
    if part == "connector":
        values["targets"] = ["mlp"]
    return disturb(attach(load(Section(id=str(folder))), section(**{**values, **options})))


def backward(adapted: Any) -> dict[str, torch.Tensor]:
    """Gradients of the loss of both exchanges, the trained weights alone."""
    backbone = adapted.backbone
    batch = pad(backbone, *(encode(backbone, turns) for turns in EXCHANGES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted.model(**batch).loss.backward()
    return {name: value.grad for name, value in adapted.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("part", PARTS)
def test_exactly_the_part_is_trained(kind: str, part: str, chat_backbone: Loaded) -> None:
    pattern = LINEAR[kind][PARTS.index(part)]
    if pattern is None:
        with pytest.raises(RecipeError, match="connector"):
            adapted_of(folder_of(chat_backbone, kind), part)
        return
    linear = {name for name, layer in chat_backbone(kind).model.named_modules() if isinstance(layer, torch.nn.Linear)}
    wanted = {name for name in linear if re.fullmatch(pattern, name)}
    assert wanted
    adapted = adapted_of(folder_of(chat_backbone, kind), part)
    assert set(adapted.modules[part]) == wanted
    assert {part for part, names in adapted.modules.items() if names} == {part}
    expected = {f"{name}.lora_{side}.default.weight" for name in wanted for side in "AB"}
    assert set(adapted.trainable()) == expected
    set_modes(adapted)
    gradients = backward(adapted)
    assert set(gradients) == expected
    assert not [name for name, value in gradients.items() if not value.abs().max() > 0]


@pytest.mark.parametrize("part", PARTS)
def test_all_of_a_whole_part_has_gradients(kind: str, part: str, chat_backbone: Loaded) -> None:
    backbone = load(Section(id=str(folder_of(chat_backbone, kind))))
    adapted = attach(backbone, section(kind="full", parts=[part]))
    paths = dict(backbone.traits.parts)
    inside = [path for path in paths.values() if path.startswith(f"{paths[part]}.")]
    below = {name for name, _ in backbone.model.named_parameters() if under(name, [paths[part]])}
    below = {name for name in below if not under(name, inside)}
    trained = set(adapted.trainable())
    unread = below - trained
    assert trained - below <= {"lm_head.weight"}
    assert bool(unread) is ("llava" in kind and part == "vision"), "LLaVA reads states before the last norm or layer"
    assert not [name for name in unread if not re.search(r"layers\.2\.|post_layernorm", name)]
    set_modes(adapted)
    gradients = backward(adapted)
    assert set(gradients) == trained
    assert not [name for name, value in gradients.items() if not value.abs().max() > 0]


def under(name: str, paths: list[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def test_vision_has_the_same_gradients_where_activations_are_computed_again(kind: str, chat_backbone: Loaded) -> None:
    found, calls = [], []
    for again in (False, True):
        adapted = adapted_of(folder_of(chat_backbone, kind), "vision")
        if again and kind == "florence2":
            with pytest.raises(RecipeError, match="the layers of vision of .* do not support it"):
                checkpoint_activations(adapted.backbone, ["vision"])
            return
        if again:
            checkpoint_activations(adapted.backbone, ["vision"])
        set_modes(adapted)
        ran: Counter[str] = Counter()
        for name in adapted.modules["vision"]:
            adapted.model.get_submodule(name).register_forward_hook(lambda *_, name=name, ran=ran: ran.update([name]))
        found.append(backward(adapted))
        calls.append(ran)
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys() and plain
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-4, atol=1e-6)
    first = {name for name in calls[0] if re.search(r"(qkv|q_proj)$", name)}  # what is last in a layer is not needed
    assert first and all(calls[1][name] == 2 * calls[0][name] for name in first)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_merged_model_reloads_by_plain_transformers(
    kind: str, adapter: str, chat_backbone: Loaded, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    values: dict[str, Any] = {"kind": "full", "parts": ["text"]}  # tied heads too
    if adapter == "lora":
        values = {"kind": "lora", "parts": ["vision", "text"], "targets": ["attention", "mlp"], "rank": 2, "alpha": 4}
    folder = folder_of(chat_backbone, kind)
    adapted = disturb(attach(load(Section(id=str(folder))), section(**values)))
    backbone = adapted.backbone
    batch = pad(backbone, *(encode(backbone, turns) for turns in EXCHANGES))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    tuned = logits(backbone, batch)
    merge_into(adapted).save_pretrained(tmp_path)
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        found, before = again(**inputs).logits, AutoModelForImageTextToText.from_pretrained(folder)(**inputs).logits
    torch.testing.assert_close(found, tuned, rtol=0, atol=ROUNDING)
    assert (before - tuned).abs().max() > 100 * ROUNDING


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_parts_are_trained(kind: str, quantize: str, chat_backbone: Loaded) -> None:
    pytest.importorskip("bitsandbytes")
    parts = [part for part, pattern in zip(PARTS, LINEAR[kind], strict=True) if pattern is not None]
    values = {"kind": "lora", "parts": parts, "targets": ["attention", "mlp"], "rank": 2, "alpha": 4}
    section_of = Section(id=str(folder_of(chat_backbone, kind)), quantize=quantize)  # type: ignore[arg-type]
    adapted = disturb(attach(load(section_of), section(**values)))
    small = {
        name for name, layer in adapted.model.named_modules() if type(layer).__name__ in ("Linear4bit", "Linear8bitLt")
    }
    assert len(small) > 20
    set_modes(adapted)
    gradients = backward(adapted)
    assert set(gradients) == set(adapted.trainable())
    assert not [name for name, value in gradients.items() if not value.abs().max() > 0]
