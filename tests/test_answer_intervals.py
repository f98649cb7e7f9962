"""Intervals of answer scores: a plain loop over resamples, pairing, groups, and draws that are shared."""

import numpy as np
import pytest

from mmtune.ground.seeding import generator_for
from mmtune.metrics import answer_score
from mmtune.metrics._bootstrap import answer_intervals

WORDS = ("red", "blue", "cat", "dog", "runs", "sits", "here", "now")


def answers(seed, size=24):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(2, 6))) for _ in range(size)]


REFERENCES = [[text, other] for text, other in zip(answers(0), answers(1), strict=True)]
BASE = answers(2)
TUNED = [texts[0] if number % 3 else said for number, (said, texts) in enumerate(zip(BASE, REFERENCES, strict=True))]
GROUPS = np.arange(24) // 2


def intervals(names, base=BASE, tuned=TUNED, groups=GROUPS, **options):
    scores = [answer_score(name) for name in names]
    of_base, of_tuned = ({s.name: s.statistics(said, REFERENCES) for s in scores} for said in (base, tuned))
    return answer_intervals(scores, of_base, of_tuned, groups, **{"seed": 5, **options})


def samples_drawn(seed, resamples):
    """The samples of each resample: as many groups as there are, drawn with replacement, each whole."""
    for drawn in generator_for(seed, "bootstrap").integers(0, 12, size=(resamples, 12)):
        yield np.concatenate([np.flatnonzero(group == GROUPS) for group in drawn])


@pytest.mark.parametrize("name", ["exact_match", "anls", "coco_bleu@2", "wer", "bleu"])
def test_equals_a_plain_loop_that_scores_every_resample_anew(name):
    score = answer_score(name)
    differences = []
    for rows in samples_drawn(9, 120):
        right = [REFERENCES[row] for row in rows]
        base, tuned = ([said[row] for row in rows] for said in (BASE, TUNED))
        differences.append(score.value(tuned, right) - score.value(base, right))
    expected = np.percentile(differences, [2.5, 97.5])
    found = intervals([name], seed=9, num_resamples=120)[name]
    # the same draws; sums in another order
    assert found == pytest.approx(expected, abs=1e-9 * score.record.top)
    assert np.prod(found) > 0 and found != pytest.approx(intervals([name], seed=8, num_resamples=120)[name], abs=1e-9)


def test_cider_keeps_the_document_frequencies_of_the_split():
    score = answer_score("cider_d")
    base, tuned = (score.per_sample(said, REFERENCES) for said in (BASE, TUNED))
    differences = [tuned[rows].mean() - base[rows].mean() for rows in samples_drawn(9, 120)]
    found = intervals(["cider_d"], seed=9, num_resamples=120)["cider_d"]
    assert found == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-9)
    anew = [score.value([TUNED[r] for r in rows], [REFERENCES[r] for r in rows]) for rows in samples_drawn(9, 5)]
    kept = [tuned[rows].mean() for rows in samples_drawn(9, 5)]
    assert anew != pytest.approx(kept, abs=1e-3)  # with frequencies of the resample it would be another number


def test_scores_share_the_draws_and_company_changes_nothing(monkeypatch):
    together = intervals(["cider", "wer", "exact_match", "accuracy"])
    assert together["exact_match"] == together["accuracy"]  # the same statistics, so the same draws
    assert {name: intervals([name])[name] for name in together} == together
    monkeypatch.setattr("mmtune.metrics._bootstrap.DRAWS_AT_ONCE", 12 * 7)
    assert intervals(list(together)) == together


def test_no_difference_has_no_width_and_a_worse_model_is_seen():
    assert intervals(["cider", "wer"], tuned=BASE) == {"cider": (0.0, 0.0), "wer": (0.0, 0.0)}
    better, worse = intervals(["anls", "wer"]), intervals(["anls", "wer"], base=TUNED, tuned=BASE)
    assert better["anls"][0] > 0 > worse["anls"][1] and better["wer"][1] < 0 < worse["wer"][0]


def test_groups_are_drawn_whole():
    # twelve answers, each said eight times over: no more is known than of twelve
    base, tuned, references = (list(np.repeat(each, 8)) for each in (["x"] * 12, ["y", "x"] * 6, ["y"] * 12))
    score = answer_score("exact_match")
    of_base, of_tuned = ({score.name: score.statistics(s, [[r] for r in references])} for s in (base, tuned))
    low, high = answer_intervals([score], of_base, of_tuned, np.arange(96) // 8, seed=0)[score.name]
    alone_low, alone_high = answer_intervals([score], of_base, of_tuned, np.arange(96), seed=0)[score.name]
    # sqrt(8), within the noise of 2,000 resamples and the steps of a twelfth
    assert (high - low) / (alone_high - alone_low) == pytest.approx(np.sqrt(8), rel=0.2)


def test_one_group_has_no_interval_and_other_samples_are_refused():
    assert intervals(["wer", "cider"], groups=np.zeros(24, dtype=np.int64)) == {"wer": None, "cider": None}
    score = answer_score("wer")
    statistics = {"wer": score.statistics(BASE, REFERENCES)}
    with pytest.raises(ValueError, match="wer: base, tuned and groups must be of the same samples"):
        answer_intervals([score], statistics, {"wer": statistics["wer"][:-1]}, GROUPS, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        answer_intervals([score], {"wer": np.zeros((0, 2))}, {"wer": np.zeros((0, 2))}, np.zeros(0, int), seed=0)
