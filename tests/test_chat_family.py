"""Chat models: their parts, what never runs, batches and answers that do not depend on their neighbours."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_chat_spans import ASKED, PICTURES, TURNS

from mmtune.activation_checkpointing import checkpoint_activations
from mmtune.adapters._targets import find_targets
from mmtune.adapters.lora import Section as Lora
from mmtune.backbones import Section, chat, describe, load, tiny_folder
from mmtune.backbones._chat_refused import REFUSED
from mmtune.backbones._chat_table import MODELS
from mmtune.ground.errors import BackboneError
from mmtune.ground.kind_folder import kinds
from mmtune.ground.records import Turn
from mmtune.token_states import head_of, headless

CLOSE = 2e-5
"""Largest difference of a logit, of up to 7, in a batch and alone: sums in float32 of a few thousand numbers."""

HELLO = (Turn("user", ("Hello",)), Turn("assistant", ("Yes, a long one.",)))
INSIDE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Their connector lies inside their image tower."""


@pytest.fixture(params=chat.FAMILY.model_types)
def backbone(request: pytest.FixtureRequest, chat_backbone: Callable[[str], Any]) -> Any:
    return chat_backbone(request.param)


def samples(backbone: Any, *, answered: bool) -> list[dict[str, torch.Tensor]]:
    """Two questions about an image, one without; of those that can, a conversation about two images."""
    told = [(*ASKED, Turn("assistant", ("a red dog",))), (*ASKED, Turn("assistant", ("no",))), HELLO]
    shown = [PICTURES[:1], PICTURES[1:], []]
    if backbone.description.config["model_type"] not in ("paligemma", "florence2"):
        told, shown = [*told, TURNS], [*shown, PICTURES]
    if answered:
        return [chat.encode_turns(backbone.processor, *one) for one in zip(told, shown, strict=True)]
    return [chat.encode_prompt(backbone.processor, t[:-1], i) for t, i in zip(told, shown, strict=True)]


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if key != "labels"}


def test_a_sample_has_the_logits_it_has_alone(backbone: Any) -> None:
    encoded = samples(backbone, answered=True)
    batch = chat.pad(backbone.processor, encoded)
    assert len({len(one["labels"]) for one in encoded}) > 1, "unequal lengths"
    with torch.no_grad():
        together = backbone.model(**inputs_of(batch)).logits
        for place, one in enumerate(encoded):
            alone = backbone.model(**inputs_of(chat.pad(backbone.processor, [one]))).logits[0]
            assert (together[place, : len(alone)] - alone).abs().max() < CLOSE
            rows = batch["labels"][place]
            assert torch.equal(rows[: len(one["labels"])], one["labels"]) and (rows[len(one["labels"]) :] == -100).all()


def test_answers_in_a_batch_are_those_alone(backbone: Any) -> None:
    prompts = samples(backbone, answered=False)
    assert len({len(one["input_ids"]) for one in prompts}) > 1

    def said(some: list[Any]) -> list[str]:
        batch = chat.pad(backbone.processor, some, side="left")
        return chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=6)

    together = said(prompts)
    assert together == [said([one])[0] for one in prompts]
    assert len(set(together)) > 1 and all(text == text.strip() for text in together)


def test_generation_stops_at_the_end_and_is_as_long_as_asked(chat_backbone: Callable[[str], Any]) -> None:
    backbone = chat_backbone("qwen2_5_vl")
    batch = chat.pad(backbone.processor, samples(backbone, answered=False)[:1], side="left")
    with torch.no_grad():
        first = int(backbone.model(**batch).logits[0, -1].argmax())
    end = backbone.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=1)
    assert said == [backbone.processor.tokenizer.decode([first]).strip()]
    settings, before = backbone.model.generation_config, backbone.model.generation_config.eos_token_id
    settings.eos_token_id = [*before, first]  # a token that ends answers and does not count as special
    try:
        assert chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=6) == [""]
    finally:
        settings.eos_token_id = before
    head = backbone.model.lm_head
    hook = head.register_forward_hook(lambda *call: call[-1].index_fill(-1, torch.tensor([end]), 1e4))
    try:
        assert chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=6) == [""]
    finally:
        hook.remove()


def test_nothing_of_generation_config_makes_answers_depend_on_the_batch(chat_backbone: Callable[[str], Any]) -> None:
    backbone = chat_backbone("qwen2_5_vl")
    batch = chat.pad(backbone.processor, samples(backbone, answered=False)[:1], side="left")
    plain = chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=6)
    settings = backbone.model.generation_config
    before = settings.repetition_penalty, settings.do_sample
    settings.repetition_penalty, settings.do_sample = 5.0, True
    try:
        assert chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=6) == plain
    finally:
        settings.repetition_penalty, settings.do_sample = before
    assert isinstance(chat.generate(backbone.model, backbone.processor, batch, max_new_tokens=4, num_beams=2)[0], str)


def test_states_before_the_head_are_all_there_is_to_logits(backbone: Any) -> None:
    """No cap and no scale comes after the head, so that a loss may make logits of some places alone."""
    inputs = inputs_of(chat.pad(backbone.processor, samples(backbone, answered=True)[:2]))
    with torch.no_grad():
        logits = backbone.model(**inputs).logits
        with headless(backbone.model, backbone.traits.head):
            headed = backbone.model(**inputs).logits
        states = chat.token_states(backbone.model, inputs)
        again = backbone.model.get_submodule(backbone.traits.head)(states)
    assert states.shape[-1] == 32 and (again - logits).abs().max() < CLOSE
    assert (states - headed).abs().max() < CLOSE * states.abs().max()


def test_a_prompt_is_seen_whole_and_an_answer_from_left_to_right(chat_backbone: Callable[[str], Any]) -> None:
    """PaliGemma: a later word of the prompt changes its earlier states, a later word of the answer changes nothing."""
    backbone = chat_backbone("paligemma")
    batch = chat.pad(backbone.processor, samples(backbone, answered=True)[:1])
    inputs, first = inputs_of(batch), int((batch["labels"][0] != -100).nonzero()[0])

    def changed(place: int) -> torch.Tensor:
        other = {**inputs, "input_ids": inputs["input_ids"].clone()}
        other["input_ids"][0, place] += 1
        with torch.no_grad():
            states = [chat.token_states(backbone.model, one)[0] for one in (inputs, other)]
        return (states[0] - states[1]).abs().amax(-1) > CLOSE

    assert changed(first - 2)[: first - 2].all()
    assert not changed(first + 2)[: first + 2].any() and changed(first + 2)[first + 2 :].all()


def test_a_cap_on_logits_is_part_of_the_head(chat_backbone: Callable[[str], Any], changed_copy: Any) -> None:
    """As PaliGemma 2 has it: the class caps what the head gives, and a loss on bare states would miss it."""
    from transformers import AutoModelForImageTextToText

    capped = changed_copy(chat_backbone("paligemma").description.folder, text_config={"final_logit_softcapping": 0.25})
    backbone = load(Section(id=str(capped)))
    stock = AutoModelForImageTextToText.from_pretrained(str(capped))
    inputs = inputs_of(chat.pad(backbone.processor, samples(backbone, answered=True)[:2]))
    with torch.no_grad():
        wanted = stock(**inputs).logits
        states = chat.token_states(backbone.model, inputs)
        again, bare = head_of(backbone)(states), backbone.model.lm_head(states)
    assert wanted.abs().max() <= 0.25 < bare.abs().max()
    assert (again - wanted).abs().max() < CLOSE


def gradients(backbone: Any, parts: list[str], *, on: bool) -> dict[str, torch.Tensor]:
    """Gradients of a loss on the labels for everything in some parts, in train mode with one draw of dropout.

    Without cache, as with checkpointing: with one, attention is masked in another way, which draws other dropout.
    """
    model = backbone.model
    paths = [backbone.traits.parts[part] for part in parts]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{path}.") for path in paths))
    if on:
        checkpoint_activations(backbone, parts)
    model.train()
    torch.manual_seed(0)
    batch = chat.pad(backbone.processor, samples(backbone, answered=True))
    try:
        backbone.model(**batch, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    finally:
        model.zero_grad()
        model.activation_checkpointing_disable()
        model.eval().requires_grad_(False)


def test_asking_for_a_part_gives_it_gradients_with_and_without_checkpointing(backbone: Any) -> None:
    """All of it but what is said to be idle, which gets none."""
    traits = backbone.traits
    idle = re.compile("|".join(rf"(?:{one})(?:\.|$)" for one in traits.idle) or "(?!)")
    every = [["vision"], ["vision", "connector", "text"]]
    if backbone.description.config["model_type"] == "florence2":  # its image encoder cannot compute anything again
        every = [["text"], ["connector", "text"]]
    for parts in every:
        plain, saved = (gradients(backbone, parts, on=on) for on in (False, True))
        assert plain.keys() == saved.keys()
        assert all(torch.equal(value, saved[name]) for name, value in plain.items())
        under = [f"{traits.parts[part]}." for part in parts]
        wanted = {n for n, _ in backbone.model.named_parameters() if n.startswith(tuple(under)) and not idle.match(n)}
        assert {name for name, value in plain.items() if value.any()} == wanted


def test_targets_are_those_of_their_part(backbone: Any) -> None:
    section = Lora(kind="lora", parts=["vision", "text"], targets=["attention", "mlp"])
    hits = find_targets(backbone.model, backbone.traits, section)
    parts = backbone.traits.parts
    for part in ("vision", "text"):
        assert hits[part] and all(name.startswith(f"{parts[part]}.") for name in hits[part])
        assert not [name for name in hits[part] if name.startswith(f"{parts['connector']}.")]
    if not backbone.traits.made_of:
        section = Lora(kind="lora", parts=["connector"], targets=["mlp"])
        found = find_targets(backbone.model, backbone.traits, section)["connector"]
        linear = [n for n, m in backbone.model.get_submodule(parts["connector"]).named_modules() if _is_linear(m)]
        assert found == [f"{parts['connector']}.{name}" for name in linear] != []
    inside = parts["connector"].startswith(f"{parts['vision']}.")
    assert inside == (backbone.description.config["model_type"] in INSIDE)


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def test_depths_are_read_from_config_alone_as_transformers_reads_them() -> None:
    from transformers import CONFIG_MAPPING

    for name, model in MODELS.items():
        kinds_of = {f"{part}_config": {"model_type": kind} for part, kind in model.kinds.items()}
        named = {key: value for key, value in kinds_of.items() if value["model_type"] in CONFIG_MAPPING}
        forms = [{}, {"vision_config": {}, "text_config": {}}] if model.tested else []
        forms += [named] if model.tested and name not in ("florence2",) else []
        for form in forms:
            made = CONFIG_MAPPING[name](**{key: dict(value) for key, value in form.items()})
            found = chat.num_layers({"model_type": name, **form})
            for part, count in found.items():
                section = made.vision_config if part == "vision" else made.text_config
                depth = getattr(section, "num_hidden_layers", None) or section.depth
                assert count == depth, (name, part, form)


def test_old_forms_of_config() -> None:
    flat = {"model_type": "qwen2_5_vl", "num_hidden_layers": 36, "hidden_size": 2048, "vision_config": {"depth": 30}}
    assert chat.num_layers(flat) == {"vision": 30, "text": 36}
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 24}
    old = {"model_type": "llava", "vision_config": vision, "text_config": {"model_type": "llama"}}
    assert chat.num_layers({**old, "image_token_index": 32000}) == {"vision": 24, "text": 32}
    assert chat.family_for(old).idle[0].endswith(r"layers\.23")
    assert chat.family_for({**old, "vision_feature_layer": -1}).idle == (r"model\.vision_tower\.post_layernorm",)
    assert len(chat.family_for({**old, "vision_feature_layer": [3, 21]}).idle) == 4
    pixtral = {**old, "vision_config": {"model_type": "pixtral"}}
    assert chat.family_for(pixtral).layers["vision"] == "model.vision_tower.transformer.layers"
    with pytest.raises(BackboneError, match="no num_hidden_layers, and what 'mixtral' has by default"):
        chat.num_layers({**old, "text_config": {"model_type": "mixtral"}})


def test_every_image_text_to_text_model_is_answered_for_or_refused_by_name(tmp_path: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    families = [family.FAMILY for family in kinds("backbones").values()]
    answered = {name for family in families for name in (*family.model_types, *family.other_types)}
    assert set(NAMES) <= answered and not set(MODELS) & set(REFUSED)
    for name, reason in (("pi0", "actions"), ("udop", "boxes"), ("pp_formulanet", "formula"), ("mllama", "cross")):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{name}"}}')
        with pytest.raises(BackboneError, match=f"model_type '{name}' is not supported: .*{reason}"):
            describe(Section(id=str(tmp_path)))


def test_processor_and_model_belong_together(chat_backbone: Callable[[str], Any], changed_copy: Any) -> None:
    backbone = chat_backbone("llava")
    folder = backbone.description.folder
    untold = changed_copy(folder, name="untold")
    (untold / "chat_template.jinja").unlink()
    with pytest.raises(BackboneError, match="has no chat template.*instruct or chat version"):
        load(Section(id=str(untold)))
    with pytest.raises(BackboneError, match=r"processor marks images with id \d+, the model looks for 5"):
        load(Section(id=str(changed_copy(folder, image_token_index=5, image_token_id=5))))
    other = changed_copy(
        chat_backbone("florence2").description.folder, name="other", text_config={"decoder_start_token_id": 0}
    )
    with pytest.raises(BackboneError, match="decoder begins with id 0, and the tokenizer's end of text is 2"):
        load(Section(id=str(other)))


def test_attention_is_computed_by_what_was_asked_for(chat_backbone: Callable[[str], Any]) -> None:
    folder = str(chat_backbone("qwen2_5_vl").description.folder)
    for name in ("eager", "sdpa"):
        model = load(Section(id=folder, attention=name)).model
        assert model.config._attn_implementation == name == model.model.visual.config._attn_implementation
    with pytest.raises(BackboneError, match="flash_attention_2 needs .*flash-attn.*GPU.*bfloat16.*Write sdpa"):
        load(Section(id=folder, attention="flash_attention_2"))


def test_no_twin_of_what_is_not_tested(tmp_path: Any) -> None:
    with pytest.raises(BackboneError, match="no model type 'glm4v'"):
        tiny_folder("chat", tmp_path / "twin", model_type="glm4v")
