"""Every chat model type, through its family: what is learned, what padding does, what is generated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from chat_examples import (
    EXCHANGES,
    ONE_EXCHANGE,
    ROUNDING,
    SEEN,
    SEVERAL,
    WITHOUT_IMAGE,
    encode,
    logits,
    pad,
    picture,
    prompt_of,
)

from mmtune.backbones._chat_twins import TWINS
from mmtune.ground.errors import DataError
from mmtune.ground.records import Turn
from mmtune.token_states import head_of, token_states

Loaded = Callable[[str], Any]

END = {
    **dict.fromkeys(("llava", "llava_next", "florence2"), "</s>"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl"), "<|im_end|>"),
    **dict.fromkeys(("idefics3", "smolvlm"), "<end_of_utterance>"),
    "paligemma": "<eos>",
    "gemma3": "<end_of_turn>",
}
"""What an answer ends with."""


@pytest.fixture(params=TWINS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def said(backbone: Any, encoded: dict[str, torch.Tensor]) -> list[str]:
    """What is learned: every run of labels as text."""
    runs: list[list[int]] = [[]]
    for label in encoded["labels"].tolist():
        runs = [*runs[:-1], [*runs[-1], label]] if label >= 0 else [*runs, []]
    return [backbone.processor.tokenizer.decode(run) for run in runs if run]


# --- what is learned


def test_labels_are_the_answer_and_its_end(kind: str, chat_backbone: Loaded) -> None:
    backbone = chat_backbone(kind)
    start = "<s>" if kind == "florence2" else ""
    for turns in EXCHANGES:
        encoded = encode(backbone, turns)
        (found,) = said(backbone, encoded)
        assert found.removeprefix(start).strip() == turns[-1].text + END[kind]
        if backbone.traits.shifted_labels:
            learned = encoded["labels"] >= 0
            assert encoded["labels"][learned].equal(encoded["input_ids"][learned])
            assert not (learned & backbone.family.image_tokens(backbone.processor, encoded)).any()
            assert learned[int(learned.nonzero()[0]) :].all(), "one answer, at the end"
        else:
            assert encoded["decoder_input_ids"][1:].equal(encoded["labels"][:-1])


def test_every_answer_of_a_conversation_is_learned(kind: str, chat_backbone: Loaded) -> None:
    backbone = chat_backbone(kind)
    if kind in ONE_EXCHANGE:
        with pytest.raises(DataError, match="one question and its answer"):
            encode(backbone, SEVERAL)
        return
    encoded = encode(backbone, SEVERAL)
    answers = [turn.text + END[kind] for turn in SEVERAL if turn.role == "assistant"]
    assert [run.strip() for run in said(backbone, encoded)] == answers
    one, other = (encode(backbone, (Turn("user", (image, "?")), EXCHANGES[0][1])) for image in SEVERAL[1].media)
    if kind != "llava_onevision":  # which shows each image in another way where there are several
        images = [int(backbone.family.image_tokens(backbone.processor, each).sum()) for each in (encoded, one, other)]
        assert images[0] == images[1] + images[2]


def test_generation_starts_where_the_answer_is_learned(kind: str, chat_backbone: Loaded) -> None:
    """The prompt is how the conversation begins, and what follows it is predicted alike in training and in use."""
    backbone = chat_backbone(kind)
    for turns in EXCHANGES:
        whole, prompt = encode(backbone, turns), prompt_of(backbone, turns[:-1])
        place = len(prompt["input_ids"])
        assert "labels" not in prompt
        assert whole["input_ids"][:place].equal(prompt["input_ids"])
        if backbone.traits.shifted_labels:
            learned = logits(backbone, pad(backbone, whole))[0, place - 1]
            used = logits(backbone, pad(backbone, prompt))[0, place - 1]
            torch.testing.assert_close(learned, used, rtol=0, atol=ROUNDING)
            assert int((whole["labels"] >= 0).nonzero()[0]) == place
        else:
            assert len(whole["input_ids"]) == place


def test_nothing_is_cut_and_images_are_counted(kind: str, chat_backbone: Loaded) -> None:
    backbone = chat_backbone(kind)
    endless = (EXCHANGES[0][0], Turn("assistant", ("a red dog " * 400,)))
    with pytest.raises(DataError, match="tokens"):
        encode(backbone, endless)
    for wrong in ([], [picture(0), picture(1)]):
        with pytest.raises(DataError, match="images"):
            backbone.family.encode_turns(backbone.processor, EXCHANGES[0], wrong)
    with pytest.raises(DataError, match="says nothing|empty"):
        encode(backbone, (EXCHANGES[0][0], Turn("assistant", (" ",))))


# --- batches


def test_padding_changes_nothing(kind: str, chat_backbone: Loaded) -> None:
    backbone = chat_backbone(kind)
    several = () if kind in ONE_EXCHANGE else (SEVERAL,)
    encoded = [encode(backbone, turns) for turns in (*EXCHANGES, WITHOUT_IMAGE, *several)]
    assert len({len(one["input_ids"]) for one in encoded}) == 3 + len(several)
    together = pad(backbone, *encoded)
    batched = logits(backbone, together)
    for row, one in enumerate(encoded):
        alone = logits(backbone, pad(backbone, one))[0]
        torch.testing.assert_close(batched[row, : len(alone)], alone, rtol=0, atol=ROUNDING)
        assert (together["labels"][row, len(one["labels"]) :] == -100).all()
    unmasked = {**together, "attention_mask": torch.ones_like(together["attention_mask"])}
    shifted = {**unmasked, "input_ids": together["input_ids"].clone()}
    shifted["input_ids"][0, int((encoded[0]["labels"] == -100).nonzero()[-1]) if kind != "florence2" else 6] += 1
    assert (logits(backbone, shifted)[0] - batched[0]).abs().max() > SEEN


@pytest.mark.parametrize("training", [False, True])
def test_states_and_head_make_the_logits(kind: str, training: bool, chat_backbone: Loaded) -> None:
    backbone = chat_backbone(kind)
    batch = pad(backbone, *(encode(backbone, turns) for turns in EXCHANGES))
    backbone.model.train(training)  # some masks and every dropout depend on it
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            states = token_states(backbone, batch)
            torch.manual_seed(0)
            expected = backbone.model(**batch)
    finally:
        backbone.model.eval()
    found = head_of(backbone)(states)
    torch.testing.assert_close(found, expected.logits, rtol=0, atol=ROUNDING)
    labels = batch["labels"]
    pairs = (found[:, :-1], labels[:, 1:]) if backbone.traits.shifted_labels else (found, labels)
    loss = torch.nn.functional.cross_entropy(pairs[0].flatten(0, 1), pairs[1].flatten())
    assert float(loss) == pytest.approx(float(expected.loss), rel=1e-5)


def test_batched_generation_is_one_by_one(kind: str, chat_backbone: Loaded) -> None:
    backbone = chat_backbone(kind)
    model, processor, family = backbone.model, backbone.processor, backbone.family
    prompts = [prompt_of(backbone, turns[:-1]) for turns in (*EXCHANGES, WITHOUT_IMAGE)]
    side = "left" if backbone.traits.shifted_labels else "right"
    together = family.generate(model, processor, pad(backbone, *prompts, side=side), max_new_tokens=6)
    alone = [family.generate(model, processor, pad(backbone, one), max_new_tokens=6)[0] for one in prompts]
    assert together == alone and len(set(alone)) == 3
    assert not any(END[kind] in text for text in together)
    if side == "left":
        wrong = family.generate(model, processor, pad(backbone, *prompts), max_new_tokens=6)
        assert wrong != alone, "on the right side, padding would stand between the question and the answer"
