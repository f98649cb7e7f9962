"""What each task shows, what must be said, and what would have been right: without a model."""

from types import SimpleNamespace
from typing import Any

import pytest

from mmtune.ground.kind_folder import kinds
from mmtune.ground.records import MediaReference, NoMedia, Sample, Turn
from mmtune.tasks import ability_for, captioning, chat, matching, vqa


def media(name: str) -> MediaReference:
    return SimpleNamespace(key=name, where=name, read=lambda: None)  # type: ignore[return-value]


def words(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in turns]


def section(task: Any, **given: Any) -> Any:
    return task.Section(kind=task.__name__.rpartition(".")[2], **given)


GIVEN: dict[str, Any] = {"classification": {"classes": ["cat", "dog"]}}
"""What a task's section cannot do without."""


def test_every_task_says_what_it_needs() -> None:
    assert set(kinds("tasks")) == {"retrieval", "captioning", "classification", "vqa", "matching", "chat"}
    for name, task in kinds("tasks").items():
        assert task.ABILITIES and task.FIELDS, name
        assert task.score_names(task.Section(kind=name, **GIVEN.get(name, {})), "image")


def test_the_best_ability_that_a_family_has_is_taken() -> None:
    both = SimpleNamespace(abilities=frozenset({"generate", "match"}))
    assert ability_for(matching, both) == "match"
    assert ability_for(matching, SimpleNamespace(abilities=frozenset({"generate"}))) == "generate"
    assert ability_for(captioning, SimpleNamespace(abilities=frozenset({"embed"}))) is None


def test_a_caption_is_drawn_per_epoch_and_all_are_right() -> None:
    sample = Sample("a", media("a"), captions=("one", "two", "three"), also_true=("four",))
    said = {
        captioning.spoken(section(captioning), sample, None, prompt="say", seed=0, epoch=epoch)[-1].text
        for epoch in range(20)
    }
    assert said == {"one", "two", "three"}
    again = [captioning.spoken(section(captioning), sample, None, prompt="", seed=1, epoch=5) for _ in range(2)]
    assert again[0] == again[1]
    assert captioning.spoken(section(captioning), sample, 1, prompt="say", seed=0, epoch=0)[-1].text == "two"
    assert captioning.references(section(captioning), sample) == ["one", "two", "three", "four"]


def test_what_asks_for_a_caption() -> None:
    sample = Sample("a", media("a"), captions=("one",))
    (turn,) = captioning.asked(section(captioning), sample, "the family's words")
    assert turn.content == (sample.media, "the family's words")
    assert captioning.asked(section(captioning, prompt="mine"), sample, "theirs")[0].text == "mine"
    assert captioning.asked(section(captioning, prompt=""), sample, "theirs")[0].content == (sample.media,)


def test_answers_given_more_often_are_learned_more() -> None:
    sample = Sample("a", media("a"), question="which?", answers=("red",) * 8 + ("blue",) * 2)
    said = [vqa.spoken(section(vqa), sample, None, prompt="", seed=0, epoch=epoch)[-1].text for epoch in range(300)]
    assert 0.7 < said.count("red") / 300 < 0.9 and set(said) == {"red", "blue"}
    put = section(vqa, prompt="Question: {question} Answer:")
    assert vqa.asked(put, sample, "")[0].text == "Question: which? Answer:"
    assert vqa.candidates(put) == [] and vqa.candidates(section(vqa, answers=["a", "b"])) == ["a", "b"]
    with pytest.raises(ValueError, match="question"):
        section(vqa, prompt="no place for it")


def test_soft_scores_are_those_of_the_metric() -> None:
    votes = ("red",) * 2 + ("blue",) * 8
    sample = Sample("a", media("a"), question="which?", answers=votes)
    assert vqa.soft_scores(sample, ["red", "green", "blue"]) == pytest.approx([0.6, 0.0, 1.0])
    alone = Sample("a", media("a"), question="which?", answers=("red",))
    assert vqa.soft_scores(alone, ["red", "green"]) == [1.0, 0.0]


def test_matching_without_labels_asks_twice() -> None:
    samples = [Sample(str(n), media(str(n)), captions=(f"caption {n}",), group=str(n // 2)) for n in range(8)]
    prepared = matching.prepare(samples, seed=0)
    assert [one.label for one in prepared] == [True, False] * 8 and len({one.id for one in prepared}) == 16
    for sample, one in zip(samples, prepared[1::2], strict=True):
        partner = samples[int(sample.id) ^ 1]
        assert one.media is sample.media and sample.captions[0] not in one.captions
        assert partner.captions[0] not in one.captions, "a caption of the same group may be true"
        drawn = {matching.spoken(section(matching), one, None, prompt="", seed=0, epoch=e)[0].text for e in range(9)}
        assert len(drawn) > 1, "another mismatch in another epoch"
    assert matching.prepare(samples, seed=0) == prepared != matching.prepare(samples, seed=1)


def test_matching_with_labels_leaves_samples_alone() -> None:
    samples = [Sample(str(n), media("x"), captions=("it",), label=n % 2 == 0) for n in range(4)]
    assert matching.prepare(samples, seed=0) == samples
    one = section(matching, prompt="{caption}?", yes="right", no="wrong")
    assert [matching.references(one, sample) for sample in samples] == [["right"], ["wrong"]] * 2
    assert words(matching.spoken(one, samples[1], None, prompt="", seed=0, epoch=0)) == [
        ("user", "it?"),
        ("assistant", "wrong"),
    ]


def test_a_conversation_is_asked_without_its_last_turn() -> None:
    turns = (Turn("user", (media("a"), "hello")), Turn("assistant", ("hi",)), Turn("user", ("and?",)))
    sample = Sample("c", NoMedia("c", "f:1"), turns=(*turns, Turn("assistant", ("no",))))
    assert chat.asked(section(chat), sample, "") == turns
    assert chat.references(section(chat), sample) == ["no"]
    brief = section(chat, system="Be brief.")
    assert words(chat.spoken(brief, sample, None, prompt="", seed=0, epoch=0))[0] == ("system", "Be brief.")
    own = Sample("c", NoMedia("c", "f:1"), turns=(Turn("system", ("Mine.",)), *sample.turns))
    assert words(chat.spoken(brief, own, None, prompt="", seed=0, epoch=0))[0] == ("system", "Mine.")


@pytest.mark.parametrize("task", [captioning, vqa, matching, chat])
def test_a_mistyped_score_is_named_with_the_nearest(task: Any) -> None:
    assert section(task, scores=["coco_bleu@2"]).scores == ["coco_bleu@2"]
    with pytest.raises(ValueError, match=r"cider"):
        section(task, scores=["ciderd"])


def test_no_media_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="f:1: there is no image"):
        NoMedia("a", "f:1").read()


def test_matching_never_calls_a_caption_of_the_same_image_false() -> None:
    shared = media("shared")
    samples = [Sample(f"s{n}", shared, captions=(f"caption {n}",)) for n in range(5)]
    samples += [Sample("other", media("other"), captions=("elsewhere",))]
    others = [one.captions for one in matching.prepare(samples, seed=0) if one.label is False]
    assert others[:5] == [("elsewhere",)] * 5 and set(others[5]) == {f"caption {n}" for n in range(5)}
    assert [one.label for one in matching.prepare(samples[:5], seed=0)] == [True] * 5, "nothing false is known of it"


def test_ids_lead_back_to_the_data() -> None:
    made = matching.prepare([Sample(str(n), media(str(n)), captions=(f"caption {n}",)) for n in range(2)], seed=0)
    assert [matching.source_id(one.id) for one in made] == ["0", "0", "1", "1"] and len({one.id for one in made}) == 4


def test_a_classifier_learns_answers_written_another_way() -> None:
    sample = Sample("a", media("a"), question="which?", answers=("Yes.", "Yes.", "yes", "no"))
    assert vqa.soft_scores(sample, ["yes", "no", "Maybe"]) == pytest.approx([0.75, 0.25, 0.0])
    loud = Sample("a", media("a"), question="which?", answers=("Sky Blue",))
    assert vqa.soft_scores(loud, ["Sky Blue", "sky blue"]) == [1.0, 0.0], "as it stands on the list comes first"
    unknown = Sample("a", media("a"), question="which?", answers=("purple",))
    assert vqa.count_unknown([sample, loud, unknown], ["yes", "sky blue"]) == 1


@pytest.mark.parametrize(
    ("task", "given", "what"),
    [
        (vqa, {"answers": ["yes", " "]}, "an answer is empty"),
        (vqa, {"answers": ["yes", "no", "yes"]}, "named twice: yes"),
        (matching, {"yes": "so", "no": "so "}, "write two different answers"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(task: Any, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        section(task, **given)
