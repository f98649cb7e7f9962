"""Metrics against plain loops, published and hand-made cases, ties, and the memory of a large split."""

import itertools
import tracemalloc

import numpy as np
import pytest

import mmtune
from mmtune.ground.errors import RecipeError
from mmtune.metrics import directions, higher_is_better, records, retrieval_scores
from mmtune.metrics._ranking import Positives, ranks_of_embeddings, ranks_of_scores
from mmtune.metrics.mean_reciprocal_rank import mean_reciprocal_rank
from mmtune.metrics.median_rank import median_rank, weighted_median_rank
from mmtune.metrics.recall import recall


def unit(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    vectors = generator.normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_positives(generator: np.random.Generator, queries: int, items: int, most: int) -> Positives:
    return Positives.from_lists(
        [generator.choice(items, size=generator.integers(1, most + 1), replace=False) for _ in range(queries)]
    )


def rank_by_counting_orders(scores: np.ndarray, positives: list[int]) -> float:
    """The definition, by brute force: the mean, over all orders of equal items, of the best positive's place."""
    places = []
    for order in itertools.permutations(range(len(scores))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        first = next(n for n, item in enumerate(order) if item in positives)
        places.append(1 + sum(item not in positives for item in order[:first]))
    return float(np.mean(places))


def rank_by_double_loop(scores: np.ndarray, positives: Positives) -> list[float]:
    ranks = []
    for q in range(len(scores)):
        right = set(positives[q].tolist())
        best = max(scores[q, i] for i in right)
        above = sum(scores[q, i] > best for i in range(scores.shape[1]) if i not in right)
        equal = sum(scores[q, i] == best for i in range(scores.shape[1]) if i not in right)
        tied = sum(scores[q, i] == best for i in right)
        ranks.append(1 + above + equal / (tied + 1))
    return ranks


def test_rank_is_the_expected_place_under_random_tie_breaking():
    generator = np.random.default_rng(0)
    for _ in range(25):
        scores = generator.integers(0, 3, size=6).astype(float)
        right = generator.choice(6, size=generator.integers(1, 4), replace=False).tolist()
        expected = rank_by_counting_orders(scores, right)
        assert ranks_of_scores(scores[None], Positives.from_lists([right]))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_ranks_equal_a_double_loop(levels):
    generator = np.random.default_rng(levels)
    scores = generator.integers(0, levels, size=(23, 31)).astype(np.float32)
    positives = random_positives(generator, 23, 31, most=5)
    assert ranks_of_scores(scores, positives).tolist() == rank_by_double_loop(scores, positives)


def test_hand_cases():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.5, 0.5, 0.1], [0.9, 0.8, 0.7]])
    positives = Positives.from_lists([[0], [1], [0], [1, 2]])
    # first; last of three; half a place for one equal item; the worse positive does not stand in the better one's way
    assert ranks_of_scores(scores, positives).tolist() == [1.0, 3.0, 1.5, 2.0]


def test_one_positive_is_one_plus_above_plus_half_of_the_other_equals():
    scores = np.array([[0.5, 0.9, 0.5, 0.5, 0.2, 0.5]])
    assert ranks_of_scores(scores, Positives.from_lists([[0]])).tolist() == [1 + 1 + 3 / 2]


@pytest.mark.parametrize("num_positives", [1, 2, 5])
def test_a_constant_model_scores_chance_exactly(num_positives):
    items, queries = 20, 7
    constant = np.tile(unit(np.random.default_rng(1), 1, 33), (items, 1))
    positives = random_positives(np.random.default_rng(2), queries, items, most=1)
    positives = Positives.from_lists(
        [[(int(positives[q][0]) + n) % items for n in range(num_positives)] for q in range(queries)]
    )
    ranks = ranks_of_embeddings(constant[:queries], constant, positives, chunk=3)
    chance = 1 + (items - num_positives) / (num_positives + 1)  # expected place of the first of p in a random order
    assert ranks.tolist() == [chance] * queries
    assert median_rank(ranks) == chance
    assert all(recall(ranks, k) <= k * num_positives / items for k in range(1, int(chance)))


def test_an_informed_model_does_not_score_chance():
    embeds = unit(np.random.default_rng(1), 20, 33)
    assert ranks_of_embeddings(embeds, embeds, Positives.from_lists([[n] for n in range(20)])).tolist() == [1.0] * 20


def test_the_order_of_items_and_queries_does_not_matter():
    generator = np.random.default_rng(3)
    queries, items = unit(generator, 40, 8), unit(generator, 60, 8)
    items[10:30] = items[40:60]  # many exact ties
    positives = random_positives(generator, 40, 60, most=4)
    ranks = ranks_of_embeddings(queries, items, positives)
    by_query, by_item = generator.permutation(40), generator.permutation(60)
    place = np.argsort(by_item)
    moved = Positives.from_lists([place[positives[q]] for q in by_query])
    assert np.array_equal(ranks_of_embeddings(queries[by_query], items[by_item], moved), ranks[by_query])
    wrong = Positives.from_lists([place[positives[q]] for q in np.roll(by_query, 1)])
    assert not np.array_equal(ranks_of_embeddings(queries[by_query], items[by_item], wrong), ranks[by_query])


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_do_not_change_ranks(chunk, monkeypatch):
    generator = np.random.default_rng(4)
    queries, items = unit(generator, 130, 37), unit(generator, 150, 37)
    items[:50] = items[50:100]
    positives = random_positives(generator, 130, 150, most=3)
    whole = ranks_of_embeddings(queries, items, positives, chunk=130)
    monkeypatch.setattr("mmtune.metrics._ranking.ITEM_BLOCK", 1 + chunk // 2)
    assert np.array_equal(ranks_of_embeddings(queries, items, positives, chunk=chunk), whole)


def peak_bytes(num: int, chunk: int) -> int:
    generator = np.random.default_rng(5)
    queries, items = unit(generator, num, 4), unit(generator, num, 4)
    positives = Positives.from_lists([[n] for n in range(num)])
    tracemalloc.start()
    ranks_of_embeddings(queries, items, positives, chunk=chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_no_full_matrix_is_ever_held(monkeypatch):
    num, chunk = 6000, 32
    peak = peak_bytes(num, chunk)
    # one block's float32 products, its booleans and doubtful rows, and some vectors of Q, N and M
    bound = chunk * 4096 * (4 + 2 + 4) + 40 * num * 8
    assert peak < bound < num * num / 4  # below even one byte per pair
    monkeypatch.setattr("mmtune.metrics._ranking.ITEM_BLOCK", num)
    assert peak_bytes(num, num) > num * num * 4  # the negation: one block of everything is the full matrix


def test_recall_by_loop_and_bounds():
    ranks = np.array([1, 1.5, 2, 5, 5.5, 11])
    for k in (1, 2, 5, 10, 11):
        assert recall(ranks, k) == sum(r <= k for r in ranks) / len(ranks)
    assert recall(ranks) == recall(ranks, 1) == 1 / 6


def test_mean_reciprocal_rank_of_the_published_example():
    # cat, torus, virus: right at 3, 2 and 1 -> 11/18 (the standard example; Voorhees 1999 gives the formula)
    assert mean_reciprocal_rank(np.array([3, 2, 1])) == pytest.approx(11 / 18, abs=1e-15)


def test_median_rank_of_even_and_odd_counts():
    assert median_rank(np.array([1, 9, 2])) == 2
    assert median_rank(np.array([1, 9, 2, 4])) == 3


def test_weighted_median_equals_the_median_of_repeated_ranks():
    generator = np.random.default_rng(6)
    ranks = generator.integers(1, 12, size=15) / 2 + 0.5
    weights = generator.integers(0, 4, size=(200, 15))
    weights[:, 3] += 1  # never all zero
    expected = [median_rank(np.repeat(ranks, row)) for row in weights]
    assert weighted_median_rank(ranks, weights).tolist() == expected


@pytest.mark.parametrize("function", [recall, median_rank, mean_reciprocal_rank])
def test_no_ranks_is_an_error(function):
    with pytest.raises(ValueError, match="at least one rank"):
        function(np.zeros(0))


def test_what_has_no_rank_is_refused():
    embeds = unit(np.random.default_rng(7), 3, 4)
    good = Positives.from_lists([[0], [1], [2]])
    with pytest.raises(ValueError, match="1 queries have no positive, the first is query 1"):
        ranks_of_embeddings(embeds, embeds, Positives.from_lists([[0], [], [2]]))
    with pytest.raises(ValueError, match="outside 0..2"):
        ranks_of_embeddings(embeds, embeds, Positives.from_lists([[0], [1], [3]]))
    with pytest.raises(ValueError, match="named twice"):
        ranks_of_embeddings(embeds, embeds, Positives(np.array([0, 2, 3, 4]), np.array([0, 0, 1, 2])))
    with pytest.raises(ValueError, match="2 queries, but positives of 3"):
        ranks_of_embeddings(embeds[:2], embeds, good)
    broken = embeds.copy()
    broken[1, 2] = np.nan  # would compare false with everything and so rank first
    with pytest.raises(ValueError, match="1 of 3 item embeddings are not finite"):
        ranks_of_embeddings(embeds, broken, good)
    with pytest.raises(ValueError, match="not finite"):
        ranks_of_scores(np.array([[np.nan, 1.0]]), Positives.from_lists([[0]]))
    with pytest.raises(ValueError, match="starts at 1"):
        recall(np.ones(3), 0)


def test_positives_turn_around():
    positives = Positives.from_lists([[0, 2, 2], [1], [0, 1]])
    assert [row.tolist() for row in positives] == [[0, 2], [1], [0, 1]]
    assert [row.tolist() for row in positives.transposed(3)] == [[0, 2], [1, 2], [0]]
    assert [row.tolist() for row in positives.between(1, 3)] == [[1], [0, 1]]
    assert len(positives.between(2, 2)) == 0


def test_score_names_are_those_of_the_contract():
    keys = ["recall@1", "recall@5", "recall@10", "median_rank", "mrr"]
    assert [s.name for s in retrieval_scores()] == [
        f"{direction}_{key}" for direction in directions("image") for key in keys
    ]
    assert higher_is_better("text_to_image_recall@1") and not higher_is_better("image_to_text_median_rank")


def test_every_kind_has_a_record_and_every_heading():
    for record in records().values():
        assert record.function.__name__ == record.name
        assert (record.per_query is None) != (record.weighted is None)
        text = record.function.__doc__ or ""
        for heading in ("What:", "Formula:", "Shapes:", "Needs:", "Relatives:", "Source:"):
            assert heading in text, f"{record.name} lacks {heading}"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("text_to_image_recal", "text_to_image_recall"),
        ("text_to_imge_recall@5", "text_to_image_recall@5"),
        ("image_to_text_median", "image_to_text_median_rank"),
        ("text_to_image_mrr@5", "text_to_image_mrr"),
    ],
)
def test_an_unknown_metric_names_the_nearest(wrong, right):
    with pytest.raises(RecipeError, match=f"{wrong}' is not a score. Did you mean '{right}'"):
        mmtune.metric(wrong)


def test_the_evaluate_metric_computes_what_the_pure_function_computes(tmp_path):
    generator = np.random.default_rng(8)
    scores = generator.integers(0, 40, size=(30, 25)).astype(np.float32) / 7
    positives = random_positives(generator, 30, 25, most=3)
    ranks = ranks_of_scores(scores, positives)
    given = {"predictions": scores, "references": [row.tolist() for row in positives]}
    for score in retrieval_scores():
        wrapped = mmtune.metric(score.name, cache_dir=str(tmp_path))
        assert wrapped.compute(**given) == {score.name: score.value(ranks)}
    named = mmtune.metric("text_to_image_recall", cache_dir=str(tmp_path))
    assert named.name == "text_to_image_recall"
    assert named.compute(**given, k=7) == {"text_to_image_recall": recall(ranks, 7)}
    assert named.compute(**given) == {"text_to_image_recall": recall(ranks, 1)} != {"text_to_image_recall": 1.0}


def test_scores_of_sounds_have_names_of_their_own() -> None:
    names = [score.name for score in retrieval_scores("audio")]
    assert names == [score.name.replace("image", "audio") for score in retrieval_scores()] and len(set(names)) == 10
    assert higher_is_better("text_to_audio_recall@1") and not higher_is_better("audio_to_text_median_rank")
    assert mmtune.metric("audio_to_text_recall@5").name == "audio_to_text_recall@5"
    with pytest.raises(RecipeError, match="Did you mean 'audio_to_text_recall'") as caught:
        higher_is_better("audio_to_txt_recall")
    assert "image" not in str(caught.value).partition("There are:")[2]
