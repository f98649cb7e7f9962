"""What models say about splits, with fakes whose answers are known."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmtune.answer_scoring import answer_split, score_answers
from mmtune.ground.errors import DataError
from mmtune.ground.records import Sample, Turn
from mmtune.item_encoding import Asking
from mmtune.tasks import captioning, chat, matching, vqa

SURE = 1 / (1 + math.exp(-1))
"""Log odds of 1, and of -1 for the other answer."""
WORDS = ["red", "blue", "yes", "no", "a", "spot"]


class Picture:
    """An image that is a number; a negative one cannot be read."""

    def __init__(self, number: int) -> None:
        self.number, self.key, self.where = number, str(number), f"{number}.png"

    def read(self) -> int:
        if self.number < 0:
            raise DataError(f"{self.where}: cut short")
        return self.number


class Family:
    """Says WORDS[image % 6] to every image; counts what passes through it."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_prompt(self, processor: Any, turns: Any, images: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"image": torch.tensor(images[0])}

    def encode_turns(self, processor: Any, turns: Any, images: Sequence[int]) -> dict[str, torch.Tensor]:
        said = WORDS.index(turns[-1].text)
        return {"image": torch.tensor(images[0]), "labels": torch.tensor([-100, said])}

    def encode_media(self, processor: Any, image: int) -> dict[str, torch.Tensor]:
        return {"image": torch.tensor(image)}

    def encode_text(self, processor: Any, text: str) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(8)}  # padded to the limit, as some families do

    def num_tokens(self, processor: Any, text: str) -> int:
        return len(text.split())

    def pad(self, processor: Any, encoded: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
        self.batches.append(len(encoded))
        return {name: torch.stack([one[name] for one in encoded]) for name in encoded[0]}

    def generate(self, model: Any, processor: Any, batch: Any, **options: Any) -> list[str]:
        return [WORDS[int(image) % 6] for image in batch["image"]]

    def token_states(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        states = torch.nn.functional.one_hot(inputs["image"] % 6, 6).float() * 3
        return states[:, None].expand(-1, 2, -1)

    def match(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return (batch["image"] % 2).float() * 2 - 1

    def classify(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.one_hot(batch["image"] % 2, 2).float()


def ask(task: Any, ability: str, answers: tuple[str, ...] = (), **given: Any) -> tuple[Asking, Any]:
    family = Family()
    processor = SimpleNamespace(tokenizer=SimpleNamespace(model_max_length=8))
    traits = SimpleNamespace(caption_prompt="", modality="image", shifted_labels=True, head="head")
    section = task.Section(kind=task.__name__.rpartition(".")[2], **given)
    model = torch.nn.Module()
    model.head = torch.nn.Identity()
    backbone = SimpleNamespace(model=model, processor=processor, family=family, traits=traits)
    return Asking(task, section, ability, family, processor, traits, answers), backbone


def samples(numbers: Sequence[int], **given: Any) -> list[Sample]:
    return [Sample(f"s{n}", Picture(n), **given) for n in numbers]  # type: ignore[arg-type]


def test_generated_answers_stand_with_their_samples() -> None:
    asking, backbone = ask(captioning, "generate", scores=["exact_match"])
    answers = answer_split(asking, backbone, samples(range(7), captions=("red",)), device="cpu", batch=3)
    assert answers.predictions == ("red", "blue", "yes", "no", "a", "spot", "red")
    assert backbone.family.batches == [3, 3, 1] and answers.confidences == (None,) * 7
    assert score_answers(answers) == {"exact_match": 2 / 7}


def test_what_cannot_be_read_is_left_out_and_counted() -> None:
    asking, backbone = ask(captioning, "generate")
    answers = answer_split(asking, backbone, samples([0, -1, 2], captions=("red",)), device="cpu", batch=2)
    assert [one.id for one in answers.samples] == ["s0", "s2"] and answers.predictions == ("red", "yes")
    (bad,) = answers.bad
    assert (bad.where, bad.reason) == ("-1.png", "cut short")
    with pytest.raises(DataError, match="none of the 1 samples can be answered; the first, -2.png: cut short"):
        answer_split(asking, backbone, samples([-2], captions=("red",)), device="cpu", batch=2)
    with pytest.raises(DataError, match="nothing to score"):
        answer_split(asking, backbone, [], device="cpu", batch=2)


def test_the_likeliest_of_a_list_is_chosen() -> None:
    asking, backbone = ask(vqa, "generate", answers=None)
    assert asking.task.candidates(asking.section) == []
    asking, backbone = ask(vqa, "generate")
    section = vqa.Section(kind="vqa", answers=["blue", "yes", "red"], scores=["exact_match"])
    asking = Asking(vqa, section, "generate", backbone.family, backbone.processor, backbone.traits)
    given = [
        Sample(f"s{n}", Picture(n), question="which?", answers=("red",))  # type: ignore[arg-type]
        for n in (0, 1, -1, 2, 3)
    ]
    answers = answer_split(asking, backbone, given, device="cpu", batch=4)
    assert answers.predictions == ("red", "blue", "yes", "blue"), "no is not on the list: the first of equals is taken"
    likely, unlikely = answers.confidences[0], answers.confidences[3]
    assert likely is not None and unlikely is not None and likely > unlikely
    assert [item.where for item in answers.bad] == ["-1.png (sample s-1)"], (
        "one sample, though three pairs of it failed"
    )


def test_matches_and_classes() -> None:
    asking, backbone = ask(matching, "match")
    given = [Sample(f"s{n}", Picture(n), captions=("it",), label=n % 3 == 0) for n in range(4)]  # type: ignore[arg-type]
    answers = answer_split(asking, backbone, given, device="cpu", batch=3)
    assert answers.predictions == ("no", "yes", "no", "yes") and answers.confidences == pytest.approx((SURE,) * 4)
    assert score_answers(answers) == {"accuracy": 0.5}
    asking, backbone = ask(vqa, "classify", ("cat", "dog"))
    given = [Sample(f"s{n}", Picture(n), question="which?", answers=("dog",)) for n in range(3)]  # type: ignore[arg-type]
    assert answer_split(asking, backbone, given, device="cpu", batch=3).predictions == ("cat", "dog", "cat")


def test_a_text_that_is_too_long_is_bad_and_not_cut() -> None:
    asking, backbone = ask(matching, "match")
    given = [Sample(f"s{n}", Picture(n), captions=("word " * (n + 1),), label=True) for n in (6, 7, 8)]  # type: ignore[arg-type]
    answers = answer_split(asking, backbone, given, device="cpu", batch=3)
    assert [one.id for one in answers.samples] == ["s6", "s7"]
    assert "9 tokens, more than the 8 of the text tower" in answers.bad[0].reason


def test_samples_of_one_image_or_group_are_drawn_together() -> None:
    asking, backbone = ask(captioning, "generate")
    given = [
        Sample("a", Picture(1), captions=("red",)),  # type: ignore[arg-type]
        Sample("b", Picture(1), captions=("red",)),  # type: ignore[arg-type]
        Sample("c", Picture(2), captions=("red",), group="g"),  # type: ignore[arg-type]
        Sample("d", Picture(3), captions=("red",), group="g"),  # type: ignore[arg-type]
        Sample("e", Picture(4), captions=("red",)),  # type: ignore[arg-type]
    ]
    assert answer_split(asking, backbone, given, device="cpu", batch=9).groups.tolist() == [0, 0, 1, 1, 2]


def test_what_is_asked_twice_is_bad_once_and_two_questions_are_bad_twice() -> None:
    asking, backbone = ask(matching, "match")
    given = matching.prepare([*samples([-1], captions=("one",)), *samples([2, 3], captions=("two",))], seed=0)
    answers = answer_split(asking, backbone, given, device="cpu", batch=2)
    assert len(given) == 6 and [item.where for item in answers.bad] == ["-1.png (sample s-1)"]
    asking, backbone = ask(vqa, "generate")
    asked = [Sample(f"q{n}", Picture(-1), question="which?", answers=("red",)) for n in range(2)]  # type: ignore[arg-type]
    answers = answer_split(asking, backbone, [*asked, *samples([1], answers=("red",))], device="cpu", batch=2)
    assert [item.where for item in answers.bad] == ["-1.png (sample q0)", "-1.png (sample q1)"]


def test_any_image_of_a_conversation_joins_it_with_others() -> None:
    asking, backbone = ask(chat, "generate")
    shown = [(1, 2), (3, 2), (4, 5)]
    given = [
        Sample(
            str(n),
            Picture(pair[0]),  # type: ignore[arg-type]
            turns=(Turn("user", tuple(map(Picture, pair))), Turn("assistant", ("red",))),  # type: ignore[arg-type]
        )
        for n, pair in enumerate(shown)
    ]
    assert answer_split(asking, backbone, given, device="cpu", batch=9).groups.tolist() == [0, 0, 1]


def test_pairs_of_samples_and_answers_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, backbone = ask(vqa, "generate", answers=["red", "blue"])
    listed = []
    monkeypatch.setattr(vqa, "candidates", lambda section: listed.append(1) or ["red", "blue"])
    given = [Sample(f"s{n}", Picture(n), question="which?", answers=("red",)) for n in range(8)]  # type: ignore[arg-type]
    answer_split(asking, backbone, given, device="cpu", batch=2)
    assert len(listed) < 15, "not once more with every batch"
