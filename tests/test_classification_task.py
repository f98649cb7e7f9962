"""What classification asks: classes, templates, shots; and what of it is refused."""

from typing import Any

import numpy as np
import pytest

from mmtune.ground.errors import DataError
from mmtune.ground.records import Sample
from mmtune.metrics import answer_score
from mmtune.tasks import classification, reads_prompts, rendering, retrieval


class Picture:
    """A reference that is never read."""

    def __init__(self, key: str) -> None:
        self.key = self.where = key


def sample(name: str, *captions: str) -> Sample:
    return Sample(name, Picture(name), captions)  # type: ignore[arg-type]


def section(**given: Any) -> classification.Section:
    return classification.Section(kind="classification", **{"classes": ["cat", "hot_dog"], **given})


def test_a_class_is_read_in_every_template() -> None:
    assert classification.prompts(section(), "hot_dog") == ["a photo of a hot dog."]
    assert classification.prompts(section(templates=["{}", "{} and {}"]), "cat") == ["cat", "cat and cat"]
    assert len(classification.prompts(section(templates="clip7"), "cat")) == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": ["cat", "dog", "cat"]}, "'cat' is there twice"),
        ({"classes": ["Hot dog", "hot_dog"]}, r"'hot_dog' is there twice \(first as 'Hot dog'\)"),
        ({"classes": ["cat", " "]}, "class 2 has no name"),
        ({"classes": ["cat"]}, "at least 2"),
        ({"templates": ["a photo of a cat"]}, r"does not say where the class goes: write \{\} in it"),
        ({"templates": []}, "at least 1"),
        ({"shots": 0}, "greater than or equal to 1"),
        ({"scores": ["acuracy"]}, "accuracy"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**given)


def test_an_image_is_of_one_class() -> None:
    assert classification.class_of(section(), sample("1", "hot_dog")) == 1
    assert classification.class_of(section(), sample("1", "a furry one", "cat")) == 0
    with pytest.raises(DataError, match="'bird' is not among task.classes .'cat', 'hot_dog'."):
        classification.class_of(section(), sample("1", "bird"))
    with pytest.raises(DataError, match="of one class, and this one is 'cat' and 'hot_dog'"):
        classification.class_of(section(), sample("1", "cat", "hot_dog"))


def test_shots_are_the_same_for_each_class_and_nested() -> None:
    samples = [sample(str(n), ("cat", "hot_dog", "bird")[n % 3]) for n in range(60)]
    chosen = {k: {one.id for one in classification.trained_on(section(shots=k), samples, 0)} for k in (1, 2, 4, 100)}
    assert [len(each) for each in chosen.values()] == [2, 4, 8, 40], "what is not of a class is left out"
    assert chosen[1] < chosen[2] < chosen[4] < chosen[100]
    other = {one.id for one in classification.trained_on(section(shots=4), samples, 1)}
    assert other != chosen[4], "another seed, other shots"
    assert classification.trained_on(section(), samples, 0) is samples
    with pytest.raises(DataError, match="no training sample of 'hot_dog'"):
        classification.trained_on(section(shots=1), [sample("1", "cat")], 0)


def test_an_epoch_shows_the_class_and_its_number() -> None:
    assert reads_prompts(classification) and not reads_prompts(retrieval)
    assert rendering(retrieval, None) is retrieval
    shown = rendering(classification, section(templates=["a {}"])).render(sample("1", "hot_dog"), None, seed=0, epoch=0)
    assert (shown.text, shown.text_key) == ("a hot dog", 1)


def test_metrics_over_classes_by_hand() -> None:
    """a: 2 of 3 right, b: 1 of 1, c: 0 of 1; said: a 2, b 2, d 1 (never true)."""
    said, true = ["a", "a", "b", "b", "d"], [["a"], ["a"], ["a"], ["b"], ["c"]]
    assert answer_score("mean_class_recall").value(said, true) == pytest.approx((2 / 3 + 1 + 0) / 3)
    f1 = [2 * 2 / (3 + 2), 2 * 1 / (1 + 2), 0, 0]  # a, b, c, d
    assert answer_score("macro_f1").value(said, true) == pytest.approx(np.mean(f1))
    assert answer_score("accuracy").value(said, true) == pytest.approx(3 / 5)
    perfect = [one[0] for one in true]
    assert answer_score("macro_f1").value(perfect, true) == answer_score("mean_class_recall").value(perfect, true) == 1


def test_a_constant_answer_gets_one_class() -> None:
    said, true = ["a"] * 10, [["a"]] * 8 + [["b"]] * 2
    assert answer_score("accuracy").value(said, true) == 0.8
    assert answer_score("mean_class_recall").value(said, true) == 0.5
    assert answer_score("macro_f1").value(said, true) == pytest.approx((2 * 8 / 18) / 2)


def test_of_several_right_labels_the_predicted_one_counts() -> None:
    assert answer_score("mean_class_recall").value(["b", "a"], [["a", "b"], ["a"]]) == 1
    assert answer_score("mean_class_recall").value(["c", "a"], [["a", "b"], ["a"]]) == 0.5


def test_a_resample_without_a_class_leaves_it_out() -> None:
    for name in ("mean_class_recall", "macro_f1"):
        score = answer_score(name)
        rows = score.statistics(["a", "b", "b"], [["a"], ["b"], ["a"]])
        assert score.combine(rows[[0, 0]].sum(axis=0)) == 1, name
        assert score.combine(np.stack([rows.sum(axis=0), rows[:1].sum(axis=0)])).shape == (2,)
