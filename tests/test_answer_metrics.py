"""Answer metrics against published cases, a second implementation, and worse answers."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from mmtune.metrics import answer_metrics, answer_score, answer_score_names  # noqa: E402
from scripts import reference_metrics as reference  # noqa: E402

CLOSE = 1e-6  # the accuracy that is promised; both sides are float64 and differ by about 1e-15
DATA = {
    "cer": reference.READINGS,
    "anls": reference.READINGS,
    "relaxed_accuracy": reference.CHARTS,
    "vqa_accuracy": reference.ANSWERS,
}
# printed by `python scripts/reference_metrics.py`; coco_bleu, cider_d and rouge_l are also what pycocoevalcap 1.2 gives
EXPECTED = {
    "cider": 3.18160778844,
    "cider_d": 2.9967681993,
    "coco_bleu@1": 0.774999999981,
    "coco_bleu@2": 0.640542049849,
    "coco_bleu@3": 0.468106961396,
    "coco_bleu@4": 0.310749653822,
    "rouge_l": 0.640380906351,
    "bleu": 31.0749653832,
    "chrf": 54.5265736927,
    "caption_retrieval": 0.666666666667,
    "token_f1": 0.665656565657,
    "wer": 0.558139534884,
    "vqa_accuracy": 0.633333333333,
    "cer": 0.309523809524,
    "anls": 0.482770562771,
    "relaxed_accuracy": 0.6,
}
WORDS = ("a", "the", "man", "dog", "cat", "rides", "sits", "on", "in", "red", "brown", "horse", "beach", "snow")


def score(name, predictions, references):
    return answer_score(name).value(predictions, references)


def split_of(rows):
    return [said for said, _ in rows], [list(texts) for _, texts in rows]


def random_rows(seed, *, size=9, shortest=1):
    """Captions, most of them a reference with a letter or a word that is another, and one to three references."""
    generator = np.random.default_rng(seed)

    def caption():
        return list(generator.choice(WORDS, size=generator.integers(shortest, 9)))

    rows = []
    for number in range(size):
        texts = [caption() for _ in range(generator.integers(1, 4))]
        said = caption() if number % 4 == 0 else list(texts[-1])
        said[generator.integers(len(said))] = str(generator.choice([*WORDS, "dig", "horses", "bred"]))
        rows.append((" ".join(said), [" ".join(text) for text in texts]))
    return rows


@pytest.mark.parametrize("name", EXPECTED)
def test_equals_the_reference_script(name):
    assert reference.expected()[name] == pytest.approx(EXPECTED[name], rel=1e-11)  # printed with 12 digits
    assert score(name, *split_of(DATA.get(name, reference.CAPTIONS))) == pytest.approx(EXPECTED[name], abs=CLOSE)


PER_ROW = {
    "cider": lambda rows: reference.cider_samples(rows, clipped=False),
    "cider_d": lambda rows: reference.cider_samples(rows, clipped=True),
    "caption_retrieval": reference.retrieval_samples,
    "rouge_l": lambda rows: [reference.rouge_sample(*row) for row in rows],
    "anls": lambda rows: [reference.anls_sample(*row) for row in rows],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PER_ROW)
def test_each_sample_equals_plain_loops_on_random_captions(name, seed):
    rows = random_rows(seed)
    values = answer_score(name).per_sample(*split_of(rows))
    assert values.tolist() == pytest.approx(PER_ROW[name](rows), abs=CLOSE)
    shifted = [(said, texts) for (said, _), (_, texts) in zip(rows, rows[1:] + rows[:1], strict=True)]
    assert values.mean() > np.mean(PER_ROW[name](shifted)) + 0.05  # the negation: captions of other samples


@pytest.mark.parametrize("seed", range(3))
def test_splits_equal_plain_loops_on_random_captions(seed):
    rows = random_rows(seed, shortest=4)
    for k in (1, 2, 3, 4):
        assert score(f"coco_bleu@{k}", *split_of(rows)) == pytest.approx(reference.coco_bleu(rows, k), abs=CLOSE)
    assert score("bleu", *split_of(rows)) == pytest.approx(reference.sacre_bleu(rows), abs=CLOSE)
    assert score("chrf", *split_of(rows)) == pytest.approx(reference.chrf(rows), abs=CLOSE)
    for name, cut in (("wer", lambda text: tuple(text.split())), ("cer", tuple)):
        short = [(said[:12].strip(), [text[:12].strip() for text in texts]) for said, texts in rows]
        assert score(name, *split_of(short)) == pytest.approx(reference.error_rate(short, cut), abs=CLOSE)


@pytest.mark.parametrize("name", answer_score_names())
def test_the_sums_give_the_score(name):
    predictions, references = split_of(random_rows(11, size=12))
    found = answer_score(name)
    statistics = found.statistics(predictions, references)
    assert statistics.dtype == np.float64 and len(statistics) == 12
    assert float(found.combine(statistics.sum(axis=0))) == found.value(predictions, references)
    stacked = found.combine(np.stack([statistics[:5].sum(axis=0), statistics[5:].sum(axis=0)])[:, None])
    assert stacked.shape == (2, 1)
    assert found.per_sample(predictions, references).shape == (12,)


GOOD = [f"the {colour} letter number {n}" for n, colour in enumerate(["red", "blue", "green", "grey", "pink", "tan"])]


@pytest.mark.parametrize("name", [n for n in answer_score_names() if n != "majority_accuracy"])
def test_worse_answers_score_worse(name):
    references = [[text, f"some {text} here"] for text in GOOD]
    found = answer_score(name)
    worse = ["no such thing at all", "nothing", *GOOD[2:]]
    right, wrong = found.value(GOOD, references), found.value(worse, references)
    assert (right > wrong) == found.higher_is_better and right != wrong
    if name not in ("cider", "cider_d", "vqa_accuracy"):  # means over references, of which one of two is copied
        assert right == pytest.approx(found.record.top if found.higher_is_better else 0.0, abs=1e-8)


# ---- published cases


def test_bleu_of_papineni_2002():
    references = [["the cat is on the mat", "there is a cat on the mat"]]
    assert score("coco_bleu@1", ["the the the the the the the"], references) == pytest.approx(2 / 7, abs=CLOSE)
    party = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    said = "It is a guide to action which ensures that the military always obeys the commands of the party"
    assert score("coco_bleu@1", [said], [party]) == pytest.approx(17 / 18, abs=CLOSE)
    assert score("coco_bleu@2", [said], [party]) == pytest.approx(math.sqrt(17 / 18 * 10 / 17), abs=CLOSE)


def test_rouge_of_lin_2004():
    police = [["police killed the gunman"]]
    assert score("rouge_l", ["police kill the gunman"], police) == pytest.approx(3 / 4, abs=CLOSE)
    assert score("rouge_l", ["the gunman kill police"], police) == pytest.approx(2 / 4, abs=CLOSE)


def test_the_example_of_sacrebleu():
    said = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert round(score("bleu", said, references), 2) == 48.53
    assert round(score("chrf", said, references), 2) == 59.73


def test_corpus_scores_are_those_of_sacrebleu_itself():
    import sacrebleu

    predictions, references = split_of(random_rows(3))
    streams = [[texts[n] if n < len(texts) else None for texts in references] for n in range(3)]
    assert score("bleu", predictions, references) == sacrebleu.corpus_bleu(predictions, streams).score
    assert score("chrf", predictions, references) == sacrebleu.corpus_chrf(predictions, streams).score


def test_the_example_of_jiwer():
    assert score("wer", ["hello duck"], [["hello world"]]) == 0.5


@pytest.mark.parametrize(("others", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_annotators(others, value):
    answers = ["yes"] * others + ["no"] * (10 - others)
    assert score("vqa_accuracy", ["yes"], [answers]) == pytest.approx(value, abs=CLOSE)


# ---- what the scales promise


@pytest.mark.parametrize("name", ["cider", "cider_d"])
def test_a_copy_is_ten_on_the_official_scale(name):
    references = [["a man rides a brown horse"], ["two dogs run"], ["the red bus waits here"]]
    values = answer_score(name).per_sample([texts[0] for texts in references], references)
    # of three words there are no 4-grams: three of the four cosines are 1
    assert values.tolist() == pytest.approx([10, 7.5, 10], abs=CLOSE)
    assert score(name, ["two dogs run"], [["two dogs run"]]) == 0  # a split of one sample: nothing is telling


def test_cider_d_is_not_fooled_where_cider_is():
    references = [["a man rides a brown horse"], ["two dogs run in snow"], ["the red bus waits here"]]
    said = ["a man rides a brown horse", "dogs dogs dogs dogs dogs", "the red bus waits here"]
    assert answer_score("cider_d").per_sample(said, references)[1] < 0.5
    assert answer_score("cider").per_sample(said, references)[1] > 1.0


def test_a_constant_caption_retrieves_by_chance():
    references = [[text] for text in GOOD]
    for constant in ("the red letter number 0", "the letter", "nothing of it", ""):
        assert score("caption_retrieval", [constant] * len(GOOD), references) == pytest.approx(1 / len(GOOD))
    assert score("caption_retrieval", GOOD[1:] + GOOD[:1], references) == 0


def test_accuracy_and_its_baseline():
    labels = [["yes"], ["no"], ["yes"], ["yes", "maybe"], ["maybe"]]
    assert score("accuracy", ["yes", "yes", "no", "maybe", "Maybe"], labels) == 2 / 5
    assert score("majority_accuracy", [""] * 5, labels) == 3 / 5 == score("accuracy", ["yes"] * 5, labels)
    assert score("accuracy", ["no"] * 5, labels) < 3 / 5


# ---- edges


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("ab", "ax", 0.0),
        ("abc", "abx", 2 / 3),
        ("abcd", "abxy", 0.0),
        ("ABC  d", "abc d", 1.0),
        ("", "", 1.0),
        ("", "a", 0),
    ],
)
def test_anls_at_its_threshold(said, right, value):
    assert score("anls", [said], [[right]]) == pytest.approx(value, abs=CLOSE)


@pytest.mark.parametrize(
    ("said", "right", "value"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-95", "100", 0),
        ("0.12", "12%", 1),
        ("12", "12%", 0),
        ("0", "0.0", 0),
        ("0", "0", 1),
        ("0.01", "0", 0),
        ("1,200", "1200", 0),
        ("inf", "inf", 1),
        ("Red ", "red", 1),
        ("red", "blue", 0),
    ],
)
def test_relaxed_accuracy_by_hand(said, right, value):
    assert score("relaxed_accuracy", [said], [[right]]) == value


def test_exact_match_forgives_case_and_spaces_only():
    assert answer_score("exact_match").per_sample(
        ["A  Cat\n", "a cat.", "the cat", "dog"], [["a cat"], ["a cat"], ["cat"], ["cat", "DOG"]]
    ).tolist() == [1, 0, 0, 1]


def test_token_f1_by_hand():
    values = answer_score("token_f1").per_sample(
        ["The cat, sat!", "cat cat", "", "the", "dog"], [["a cat sat"], ["cat"], ["an a"], ["cat"], ["cat", "big dog"]]
    )
    assert values.tolist() == pytest.approx([1, 2 / 3, 1, 0, 2 / 3], abs=CLOSE)


def test_error_rates_count_edits_over_the_split_and_take_the_best_reference():
    said, references = ["a b c", "a b c d e f g"], [["a x c", "q q q"], ["a b c d e f h", "z"]]
    assert score("wer", said, references) == pytest.approx(2 / 10)
    assert answer_score("wer").per_sample(said, references).tolist() == pytest.approx([1 / 3, 1 / 7])
    assert score("wer", ["one two"], [[""]]) == 2.0 and score("cer", [""], [[""]]) == 0.0
    assert score("wer", ["a b c d"], [["a"]]) == 3.0


@pytest.mark.parametrize("name", answer_metrics())
def test_what_has_no_score_is_refused(name):
    with pytest.raises(ValueError, match="at least one text"):
        score(name, [], [])
    with pytest.raises(ValueError, match="2 predictions, but references of 1"):
        score(name, ["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        score(name, ["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match=r"references\[0\] is one text: give a list of texts, \['a'\]"):
        score(name, ["a"], ["a"])
