"""The interval of a difference: coverage where the truth is known, pairing, groups, and the negation of each."""

import numpy as np
import pytest

from mmtune.metrics import retrieval_scores
from mmtune.metrics._bootstrap import difference_intervals, joined_groups

SCORES = {score.name: score for score in retrieval_scores()}
RECALL, MEDIAN, MRR = (SCORES[f"text_to_image_{key}"] for key in ("recall@1", "median_rank", "mrr"))


def interval(base, tuned, groups=None, score=RECALL, **options):
    groups = np.arange(len(base)) if groups is None else groups
    of = score.direction
    options = {"seed": 0, **options}
    return difference_intervals([score], {of: base}, {of: tuned}, {of: groups}, **options)[score.name]


def ranks_with_recall(generator, share, size):
    return np.where(generator.random(size) < share, 1.0, 2.0)


def test_coverage_where_the_true_difference_is_known():
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        base, tuned = ranks_with_recall(generator, 0.4, 200), ranks_with_recall(generator, 0.55, 200)
        low, high = interval(base, tuned, seed=trial, num_resamples=400)
        inside += low <= 0.15 <= high
    # 95 % of 300, three standard errors (3.8 points) and a point for the percentile method's small-sample bias
    assert 0.90 <= inside / 300 <= 0.99


def test_width_is_that_of_the_normal_approximation():
    generator = np.random.default_rng(1)
    base, tuned = ranks_with_recall(generator, 0.4, 2000), ranks_with_recall(generator, 0.55, 2000)
    gains = (tuned == 1).astype(float) - (base == 1)
    low, high = interval(base, tuned)
    expected = 2 * 1.96 * gains.std() / np.sqrt(2000)
    assert high - low == pytest.approx(expected, rel=0.08)  # 2,000 resamples know a 2.5 % tail to about 4 %


def test_pairing_narrows_the_interval_and_its_loss_widens_it():
    generator = np.random.default_rng(2)
    base = ranks_with_recall(generator, 0.5, 400)
    tuned = base.copy()
    tuned[:20] = 1.0  # the same queries, a few better
    low, high = interval(base, tuned)
    shuffled_low, shuffled_high = interval(base, generator.permutation(tuned))
    assert shuffled_high - shuffled_low > 3 * (high - low)
    assert interval(base, base) == (0.0, 0.0)


def test_groups_are_drawn_whole():
    generator = np.random.default_rng(3)
    per_group = ranks_with_recall(generator, 0.5, 50)
    base, tuned, groups = np.full(500, 2.0), np.repeat(per_group, 10), np.repeat(np.arange(50), 10)
    low, high = interval(base, tuned, groups)
    alone_low, alone_high = interval(base, tuned)
    # ten copies of 50 facts are 50 facts: sqrt(10) wider than 500 facts, within the noise of 2,000 resamples
    assert (high - low) / (alone_high - alone_low) == pytest.approx(np.sqrt(10), rel=0.15)


@pytest.mark.parametrize("score", [RECALL, MEDIAN, MRR], ids=lambda s: s.name)
def test_equals_a_plain_loop_over_resamples(score):
    from mmtune.ground.seeding import generator_for

    generator = np.random.default_rng(4)
    base, tuned = generator.integers(1, 9, size=60) * 1.0, generator.integers(1, 6, size=60) * 1.0
    groups = joined_groups(60, np.arange(0, 40, 2), np.arange(1, 41, 2))
    draws = generator_for(9, "bootstrap").integers(0, 40, size=(150, 40))
    differences = []
    for drawn in draws:
        queries = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
        differences.append(score.value(tuned[queries]) - score.value(base[queries]))
    expected = np.percentile(differences, [2.5, 97.5])
    # the same draws; sums in another order
    assert interval(base, tuned, groups, score, seed=9, num_resamples=150) == pytest.approx(expected, abs=1e-12)


def test_slicing_of_the_draws_and_company_change_nothing(monkeypatch):
    generator = np.random.default_rng(5)
    base, tuned = generator.integers(1, 9, size=80) * 1.0, generator.integers(1, 6, size=80) * 1.0
    both = {RECALL.direction: base, "image_to_text": tuned}
    groups = {RECALL.direction: np.arange(80), "image_to_text": np.arange(80)}
    whole = difference_intervals(retrieval_scores(), both, {k: v[::-1] for k, v in both.items()}, groups, seed=3)
    monkeypatch.setattr("mmtune.metrics._bootstrap.DRAWS_AT_ONCE", 80 * 7)
    sliced = difference_intervals(retrieval_scores(), both, {k: v[::-1] for k, v in both.items()}, groups, seed=3)
    assert whole == sliced
    assert whole[MRR.name] == interval(base, base[::-1], score=MRR, seed=3)
    assert whole[MRR.name] != interval(base, base[::-1], score=MRR, seed=4)


def test_one_group_has_no_interval():
    assert interval(np.ones(5), np.ones(5), np.zeros(5, dtype=np.int64)) is None


def test_different_queries_are_refused():
    with pytest.raises(ValueError, match="same queries"):
        interval(np.ones(5), np.ones(4))


def test_joined_groups_are_the_connected_components():
    left, right = np.array([0, 4, 2]), np.array([3, 5, 3])
    assert joined_groups(7, left, right).tolist() == [0, 1, 0, 0, 2, 2, 3]
    assert joined_groups(3, np.zeros(0, dtype=int), np.zeros(0, dtype=int)).tolist() == [0, 1, 2]
    chain = np.arange(50_000 - 1)
    assert not joined_groups(50_000, chain[::-1], chain[::-1] + 1).any()
