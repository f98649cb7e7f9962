"""What every generating family is checked for; the tests of a family call these with its tiny twin."""

from pathlib import Path
from typing import Any

import torch
from adapter_examples import LORA, DrawnImage, disturb, section

from mmtune.adapters import attach, set_modes
from mmtune.backbones import Backbone
from mmtune.ground.records import Turn
from mmtune.token_states import head_of, token_states

ROUNDING = 1e-5
"""Losses near 5 computed twice in float32, in other orders of summation."""

EXCHANGES = (
    ("is this the red line?", "no"),
    ("", "a cat in a hat"),
    ("what number is over the long, thin line there?", "17"),
    ("name it", "the other one, the red one"),
)
"""Questions and answers of unlike lengths."""


def asked(question: str, number: int = 0) -> list[Turn]:
    """One question about one image."""
    return [Turn("user", (DrawnImage(number), question) if question else (DrawnImage(number),))]


def answered(question: str, answer: str, number: int = 0) -> list[Turn]:
    """One question about one image and its answer."""
    return [*asked(question, number), Turn("assistant", (answer,))]


def images_of(turns: list[Turn]) -> list[Any]:
    """The images of a conversation, decoded."""
    return [one.read() for turn in turns for one in turn.media]


def encode_turns(backbone: Backbone, turns: list[Turn]) -> dict[str, torch.Tensor]:
    """A conversation with its labels."""
    encoded: dict[str, torch.Tensor] = backbone.family.encode_turns(backbone.processor, turns, images_of(turns))
    return encoded


def encode_prompt(backbone: Backbone, turns: list[Turn]) -> dict[str, torch.Tensor]:
    """A question."""
    encoded: dict[str, torch.Tensor] = backbone.family.encode_prompt(backbone.processor, turns, images_of(turns))
    return encoded


def training_batch(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The exchanges as one batch."""
    rows = [encode_turns(backbone, answered(*exchange, number)) for number, exchange in enumerate(EXCHANGES)]
    batch: dict[str, torch.Tensor] = backbone.family.pad(backbone.processor, rows)
    return batch


def loss_of_states(backbone: Backbone, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the label tokens, from the states and the head."""
    logits, labels = head_of(backbone)(token_states(backbone, batch)), batch["labels"]
    if backbone.traits.shifted_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def said_of(backbone: Backbone, rows: list[dict[str, torch.Tensor]], **options: Any) -> list[str]:
    """What is generated after the prompts, as one batch."""
    family, processor = backbone.family, backbone.processor
    side = "left" if backbone.traits.shifted_labels else "right"
    with torch.no_grad():
        said: list[str] = family.generate(backbone.model, processor, family.pad(processor, rows, side=side), **options)
    return said


# --- the checks


def check_labels_are_the_answers(backbone: Backbone, end: int) -> None:
    """What is trained on is the answer and the token that ends it; the rest is exactly the prompt."""
    tokenizer = backbone.processor.tokenizer
    for question, answer in EXCHANGES:
        encoded = encode_turns(backbone, answered(question, answer))
        labels = encoded["labels"]
        trained = labels[labels != -100].tolist()
        assert trained[-1] == end and end not in trained[:-1]
        assert tokenizer.decode(trained[:-1]).strip() == answer
        assert tokenizer.decode(trained[:-2]).strip() != answer
        prompt = encode_prompt(backbone, asked(question))
        ids = prompt["input_ids"].tolist()
        assert "labels" not in prompt and encoded["input_ids"][: len(ids)].tolist() == ids
        if backbone.traits.shifted_labels:
            assert labels.tolist() == [-100] * len(ids) + trained and encoded["input_ids"].tolist() == ids + trained
    padded = training_batch(backbone)
    assert (padded["labels"] == -100).any() and (padded["attention_mask"] == 0).any()
    if backbone.traits.shifted_labels:
        assert (padded["labels"][padded["attention_mask"] == 0] == -100).all()


def check_loss_is_transformers_own(backbone: Backbone) -> None:
    """The loss of the states equals what the class makes of ``labels``; with other labels it does not."""
    batch = training_batch(backbone)
    with torch.no_grad():
        found = loss_of_states(backbone, batch)
        expected = backbone.model(**batch).loss
        shown = {**batch, "labels": torch.where(batch["labels"] == -100, batch["labels"], batch["labels"] + 1)}
        other = loss_of_states(backbone, shown)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    assert (other - expected).abs() > 0.01


def check_generation_is_the_same_one_by_one(backbone: Backbone, **options: Any) -> list[str]:
    """Padding changes nothing that is said, and the images matter."""
    rows = [encode_prompt(backbone, asked(question, n)) for n, (question, _) in enumerate(EXCHANGES)]
    together = said_of(backbone, rows, max_new_tokens=8, **options)
    assert together == [said_of(backbone, [row], max_new_tokens=8, **options)[0] for row in rows]
    assert len(set(together)) > len(rows) // 2
    other = [encode_prompt(backbone, asked(question, n + 9)) for n, (question, _) in enumerate(EXCHANGES)]
    assert said_of(backbone, other, max_new_tokens=8, **options) != together
    return together


def check_generation_stops_at_what_was_learned(
    backbone: Backbone, part: str = "text", learning_rate: float = 1e-2, steps: int = 30
) -> None:
    """After a few steps on one answer the model says it, and no more."""
    adapted = attach(backbone, section(kind="full", parts=[part]))
    set_modes(adapted)
    adapted.model.eval()
    family, exchange = backbone.family, EXCHANGES[3]
    batch = family.pad(backbone.processor, [encode_turns(backbone, answered(*exchange))])
    optimizer = torch.optim.Adam(adapted.trainable().values(), learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of_states(backbone, batch).backward()
        optimizer.step()
    prompt = encode_prompt(backbone, asked(exchange[0]))
    assert said_of(backbone, [prompt], max_new_tokens=24) == [exchange[1]]
    assert said_of(backbone, [prompt], max_new_tokens=2) != [exchange[1]]


def check_lora_trains_a_part(backbone: Backbone, part: str, patterns: tuple[str, ...]) -> None:
    """Every trained tensor is LoRA's, lies in the part and gets a gradient; each pattern is hit."""
    import re

    adapted = disturb(attach(backbone, section(**{**LORA, "parts": [part]})))
    modules, root = adapted.modules[part], backbone.traits.parts[part]
    assert modules and all(name == root or name.startswith(root + ".") for name in modules)
    assert all(any(re.search(pattern, name) for name in modules) for pattern in patterns), modules
    trained = adapted.trainable()
    assert len(trained) == 2 * len(modules) and all("lora_" in name for name in trained)
    assert {n for n, v in adapted.model.named_parameters() if v.requires_grad} == set(trained)
    set_modes(adapted)
    loss_of_states(adapted.backbone, training_batch(adapted.backbone)).backward()
    without = [name for name, value in trained.items() if value.grad is None or not value.grad.abs().max() > 0]
    assert not without
    assert not [n for n, v in adapted.model.named_parameters() if n not in trained and v.grad is not None]


def check_full_trains_a_part(backbone: Backbone, part: str) -> None:
    """Every tensor of the part that is trained gets a gradient."""
    adapted = attach(backbone, section(kind="full", parts=[part]))
    set_modes(adapted)
    loss_of_states(adapted.backbone, training_batch(adapted.backbone)).backward()
    assert adapted.trainable()
    assert not [name for name, value in adapted.trainable().items() if value.grad is None]


def check_quantized_is_what_it_stands_for(folder: Path, quantize: Any) -> Backbone:
    """Quantized and turned back into plain layers it is one model, and another than the one in full precision."""
    from mmtune.backbones import Section, load

    asked = Section(id=str(folder), quantize=quantize)
    quantized, plain = load(asked), load(asked, dequantize=True)
    batch = training_batch(plain)
    with torch.no_grad():
        found, expected, whole = (token_states(b, batch) for b in (quantized, plain, load(Section(id=str(folder)))))
    scale = expected.abs().max()
    # LLM.int8 rounds activations: some hundredths after a few layers.
    assert (found - expected).abs().max() < (1e-4 if quantize == "4bit" else 0.2) * scale
    assert (whole - expected).abs().max() > 1e-3 * scale
    return quantized


def gradients(backbone: Backbone, *, forget: bool) -> dict[str, torch.Tensor]:
    """The gradients of LoRA in every part, with the layers' activations kept or computed again."""
    from mmtune.activation_checkpointing import checkpoint_activations

    parts = list(backbone.traits.parts)
    adapted = disturb(attach(backbone, section(**{**LORA, "parts": parts})))
    if forget:
        checkpoint_activations(backbone, parts)
    set_modes(adapted)
    torch.manual_seed(0)
    loss_of_states(backbone, training_batch(backbone)).backward()
    return {name: value.grad for name, value in adapted.trainable().items() if value.grad is not None}


def check_forgotten_activations_change_no_gradient(kept: Backbone, forgotten: Backbone) -> None:
    """Every part gets the gradients that it gets without activation checkpointing, dropout included."""
    expected, found = gradients(kept, forget=False), gradients(forgotten, forget=True)
    assert set(found) == set(expected) and expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING)


def check_half_precision(backbone: Backbone, plain: Backbone) -> None:
    """What half precision says of the same batch is near what float32 says."""
    batch = training_batch(plain)
    with torch.no_grad():
        # 8 bits of mantissa, a few layers.
        torch.testing.assert_close(loss_of_states(backbone, batch), loss_of_states(plain, batch), rtol=0, atol=0.05)
    assert said_of(backbone, [encode_prompt(backbone, asked("what"))], max_new_tokens=3)
