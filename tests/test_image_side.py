"""What images become before the language model reads them: computed once and given, it is as if they were shown."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapter_examples import LORA, disturb, section
from chat_examples import EXCHANGES, ONE_EXCHANGE, SEEN, SEVERAL, WITHOUT_IMAGE, Shown, images_of
from generating_checks import loss_of_states

from mmtune.adapters import attach, set_modes
from mmtune.backbones import Section, blip2, chat, instructblip, load
from mmtune.backbones._dual_encoder import encode_media
from mmtune.backbones._image_side import SIDES, dropped_inputs, given_image_side, image_side_states, num_states
from mmtune.backbones._remembered_images import noting, remembering, stand_ins, without_pixels
from mmtune.ground.records import Turn

ROUNDING = 1e-6
"""Of the range: gradients in float32 whose sums ran in another order, where they did."""

ALONE = 5e-5
"""States of spread near 1, of an image in a batch and alone: matrix products of another height."""

HALF = 2e-2
"""Of the range: states rounded to 11 bits of mantissa, two layers of random weights above them."""

KINDS = (*chat.FAMILY.model_types, "blip-2 opt", "blip-2 t5")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def loaded(language: str) -> Any:
        if language not in made:
            folder = tmp_path_factory.mktemp("blip2") / language
            for each in blip2.tiny_speaking(language):
                each.save_pretrained(folder)
            made[language] = load(Section(id=str(folder)))
        return made[language]

    return loaded


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest, chat_backbone: Callable[[str], Any], speaking: Any) -> Any:
    name, _, language = request.param.partition(" ")
    return speaking(language) if language else chat_backbone(name)


def told_of(backbone: Any) -> list[tuple[Turn, ...]]:
    """Conversations about one image each, and where the model can, about two and about none."""
    name = backbone.description.config["model_type"]
    other = (Turn("user", (Shown(2, 90, 30), "What is it?")), Turn("assistant", ("no",)))
    if name == "blip-2":
        return [*EXCHANGES, other]
    return [EXCHANGES[0], WITHOUT_IMAGE, EXCHANGES[1], other, *([] if name in ONE_EXCHANGE else [SEVERAL])]


def side_of(backbone: Any) -> str:
    return "left" if backbone.traits.shifted_labels else "right"


def encoded_of(backbone: Any, *, answered: bool = True) -> list[dict[str, torch.Tensor]]:
    encode = backbone.family.encode_turns if answered else backbone.family.encode_prompt
    told = [turns if answered else turns[:-1] for turns in told_of(backbone)]
    return [encode(backbone.processor, turns, images_of(turns)) for turns in told]


def batch_of(backbone: Any, side: str = "right", *, answered: bool = True) -> dict[str, torch.Tensor]:
    batch = backbone.family.pad(backbone.processor, encoded_of(backbone, answered=answered), side=side)
    return {name: value for name, value in batch.items() if name != "labels"}


def states_of(backbone: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return image_side_states(backbone.model, batch, num_states(backbone.model, batch["input_ids"]))


def logits(backbone: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(**inputs).logits


# --- states instead of pixels


@pytest.mark.parametrize("side", ["right", "left"])
def test_states_instead_of_pixels_give_the_same_logits(backbone: Any, side: str) -> None:
    batch = batch_of(backbone, side)
    states = states_of(backbone, batch)
    expected = logits(backbone, batch)
    assert torch.equal(logits(backbone, given_image_side(backbone.model, batch, states)), expected)
    turned = [one.flip(0) for one in states]
    shown = torch.tensor([len(one) > 0 for one in states])
    differs = (logits(backbone, given_image_side(backbone.model, batch, turned)) != expected).flatten(1).any(1)
    assert differs.equal(shown), "other states are seen, and by their own sample alone"


def test_a_batch_without_pixels_is_enough(backbone: Any) -> None:
    batch = batch_of(backbone)
    dropped = dropped_inputs(backbone.description.config["model_type"])
    bare = {name: value for name, value in batch.items() if name not in dropped}
    assert set(batch) - set(bare) and not any("pixel" in name for name in bare)
    given = given_image_side(backbone.model, bare, states_of(backbone, batch))
    assert torch.equal(logits(backbone, given), logits(backbone, batch))


def test_states_do_not_depend_on_the_neighbours(backbone: Any) -> None:
    encoded = encoded_of(backbone)
    together = states_of(backbone, batch_of(backbone))
    for place, (one, states) in enumerate(zip(encoded, together, strict=True)):
        if "pixel_values" not in one:
            assert len(states) == 0
            continue
        (alone,) = states_of(backbone, backbone.family.pad(backbone.processor, [one]))
        assert len(alone) == backbone.family.image_tokens(backbone.processor, one).sum()
        torch.testing.assert_close(alone, states, rtol=0, atol=ALONE)
        others = [other for other in (*together[:place], *together[place + 1 :]) if other.shape == alone.shape]
        assert not any((other - alone).abs().max() < ALONE for other in others), "other pictures, other states"


def test_new_and_known_images_share_a_batch(backbone: Any) -> None:
    """As a run with a cache does it: texts of all samples, pixels of some, states of the others."""
    encoded, batch = encoded_of(backbone), batch_of(backbone)
    dropped = dropped_inputs(backbone.description.config["model_type"])
    pad, counts = backbone.family.pad, num_states(backbone.model, batch["input_ids"])
    words = pad(backbone.processor, [{key: one[key] for key in one if key not in dropped} for one in encoded])
    merged = states_of(backbone, batch)  # those of samples that are known
    new = [place for place, one in enumerate(encoded) if "pixel_values" in one][1:]
    pixels = pad(backbone.processor, [encoded[place] for place in new])
    made = image_side_states(backbone.model, pixels, [counts[place] for place in new])
    for place, states in zip(new, made, strict=True):
        merged[place] = states
    given = given_image_side(backbone.model, words, merged)
    given.pop("labels")
    torch.testing.assert_close(logits(backbone, given), logits(backbone, batch), rtol=0, atol=ALONE)


def test_states_may_be_kept_in_half_precision(backbone: Any) -> None:
    batch = batch_of(backbone)
    halved = [one.half() for one in states_of(backbone, batch)]
    found = logits(backbone, given_image_side(backbone.model, batch, halved))
    expected = logits(backbone, batch)
    assert found.dtype == expected.dtype and not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=HALF * float(expected.abs().max()))


def test_layers_that_qwen3_hands_on_are_among_its_states(chat_backbone: Callable[[str], Any]) -> None:
    backbone = chat_backbone("qwen3_vl")
    batch = batch_of(backbone)
    states, width = states_of(backbone, batch), backbone.model.get_input_embeddings().embedding_dim
    layers = len(backbone.model.config.vision_config.deepstack_visual_indexes)
    assert layers > 0 and all(one.shape[1] == width * (1 + layers) for one in states)
    for layer in range(1, 1 + layers):
        without = [one.clone() for one in states]
        for one in without:
            one[:, layer * width : (layer + 1) * width] = 0
        found = logits(backbone, given_image_side(backbone.model, batch, without))
        assert (found - logits(backbone, batch)).abs().max() > SEEN


def test_without_images_the_words_stay_as_they_are(backbone: Any) -> None:
    batch = batch_of(backbone)
    words = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    assert given_image_side(backbone.model, words, [torch.zeros(0, 32)]) == words


@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_same_words_are_generated(backbone: Any, num_beams: int) -> None:
    batch = batch_of(backbone, side_of(backbone), answered=False)
    states = states_of(backbone, batch)

    def said(inputs: dict[str, Any]) -> list[str]:
        made: list[str] = backbone.family.generate(
            backbone.model, backbone.processor, inputs, max_new_tokens=5, num_beams=num_beams
        )
        return made

    expected = said(batch)
    assert said(given_image_side(backbone.model, batch, states, generating=True)) == expected
    others = [-3 * one for one in states]
    assert said(given_image_side(backbone.model, batch, others, generating=True)) != expected


def gradients_of(backbone: Any, *, fed: bool) -> dict[str, torch.Tensor]:
    """What LoRA in the language model learns from the batch, with its dropout drawn alike."""
    fresh = load(Section(id=str(backbone.description.folder)))
    adapted = disturb(attach(fresh, section(**{**LORA, "parts": ["text"]})))
    set_modes(adapted)
    batch = fresh.family.pad(fresh.processor, encoded_of(fresh))
    inputs = given_image_side(fresh.model, batch, states_of(fresh, batch)) if fed else batch
    torch.manual_seed(0)
    loss_of_states(fresh, inputs).backward()
    return {name: value.grad for name, value in adapted.trainable().items() if value.grad is not None}


def test_gradients_above_are_the_same(backbone: Any) -> None:
    expected, found = gradients_of(backbone, fed=False), gradients_of(backbone, fed=True)
    largest = max(float(value.abs().max()) for value in expected.values())
    assert set(found) == set(expected) and largest > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING * largest)


# --- text about images that are not read


def no_reading(monkeypatch: pytest.MonkeyPatch, processor: Any) -> None:
    """From here on the image processor refuses every image."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("an image is read")

    monkeypatch.setattr(type(processor.image_processor), "__call__", refuse)


@pytest.mark.parametrize("answered", [True, False])
def test_text_is_written_again_without_an_image(backbone: Any, answered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    processor, family = backbone.processor, backbone.family
    reader = processor.image_processor
    encode = family.encode_turns if answered else family.encode_prompt
    told = [turns if answered else turns[:-1] for turns in told_of(backbone)]
    read = []
    for turns in told:
        with noting(processor) as beside:
            read.append((encode(processor, turns, images_of(turns)), beside))
    no_reading(monkeypatch, processor)
    for turns, (expected, beside) in zip(told, read, strict=True):
        with remembering(processor, beside):
            found = without_pixels(encode(processor, turns, stand_ins(len(images_of(turns)))))
        assert found.keys() == without_pixels(expected).keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert all(found[name].dtype == expected[name].dtype for name in found)
        assert sum(value.numel() for value in beside.values()) < 40, "what is kept is small"
        assert bool(beside) == any(turn.media for turn in turns)
    assert processor.image_processor is reader
    with pytest.raises(AssertionError, match="an image is read"):
        encode(processor, told[0], stand_ins(1))


def test_another_image_is_another_text(chat_backbone: Callable[[str], Any]) -> None:
    """What is noted matters: with that of an image of another size there are other image tokens."""
    backbone = chat_backbone("qwen2_5_vl")
    asked = (Turn("user", (Shown(0), "What is it?")),)
    lengths = []
    for size in ((60, 40), (90, 30), (20, 90)):
        with noting(backbone.processor) as beside:
            backbone.family.encode_prompt(backbone.processor, asked, [Shown(0, *size).read()])
        with remembering(backbone.processor, beside):
            lengths.append(len(backbone.family.encode_prompt(backbone.processor, asked, stand_ins(1))["input_ids"]))
    assert len(set(lengths)) > 1


def test_the_image_processor_is_put_back_after_an_error(chat_backbone: Callable[[str], Any]) -> None:
    processor = chat_backbone("llava").processor
    reader = processor.image_processor
    for place in (noting(processor), remembering(processor, {})):
        with pytest.raises(ValueError, match="broken"), place:
            assert processor.image_processor is not reader and processor.image_processor.size == reader.size
            raise ValueError("broken")
        assert processor.image_processor is reader


@pytest.mark.parametrize("family", ["clip", "blip", "git", "instructblip", "vilt"])
def test_single_images_of_other_families_are_remembered(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same serves ``encode_media``, and who encodes with it."""
    module: Any = importlib.import_module(f"mmtune.backbones.{family}")
    processor = module.tiny()[1]
    with noting(processor) as beside:
        expected = encode_media(processor, Shown(0).read())
    no_reading(monkeypatch, processor)
    with remembering(processor, beside):
        found = encode_media(processor, stand_ins(1)[0])
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}
    assert found["pixel_values"].stride() == (0, 0, 0) and not found["pixel_values"].any()


# --- which models


def test_every_chat_model_with_a_twin_declares_its_image_side(chat_backbone: Callable[[str], Any]) -> None:
    assert set(SIDES) == {*chat.FAMILY.model_types, "blip-2"}
    for name in chat.FAMILY.model_types:
        traits = chat_backbone(name).traits
        assert traits.image_side == ("vision", "connector") and set(traits.image_side) <= set(traits.parts)
    untested = {"model_type": "mistral3", "vision_config": {"model_type": "pixtral"}}
    assert chat.family_for(untested).image_side == ()


def test_of_the_q_former_families_blip2_that_speaks_declares_it(speaking: Callable[[str], Any]) -> None:
    traits = speaking("opt").traits
    assert traits.image_side == ("vision", "qformer", "connector") and set(traits.image_side) < set(traits.parts)
    assert blip2.FAMILY.image_side == () and instructblip.FAMILY.image_side == ()
