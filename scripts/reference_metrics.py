"""What the answer metrics should give, worked out a second time: plain loops and fractions, from the formulas.

Prints the values that `tests/test_answer_metrics.py` holds. Nothing here is shared with `mmtune/metrics/`, nothing is
fast: vectors over the whole vocabulary, subsequences by recursion, annotators left out one by one. Texts are tokenized
already (words between single spaces, lower case, no punctuation), where the official scorers need no tokenizer.

Sources, followed to the letter: CIDEr and CIDEr-D: Vedantam et al. 2015 and the authors' scorer; BLEU and ROUGE-L: the
scorers of the COCO caption evaluation; sacrebleu's BLEU (smoothing "exp") and chrF2: Post 2018, Popovic 2016; VQA:
Antol et al. 2015; ANLS: Biten et al. 2019; ChartQA: Masry et al. 2022; F1: Rajpurkar et al. 2016; edits: Levenshtein
1966.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

Words = tuple[str, ...]
Rows = Sequence[tuple[str, Sequence[str]]]

CAPTIONS: Rows = (
    ("a man rides a brown horse on the beach", ("a man rides a horse along the beach", "a person on a brown horse")),
    ("two dogs play in the the the snow", ("two dogs run in the snow", "dogs play with a ball in snow", "the snow")),
    ("a plate of food", ("a plate of food",)),
    ("a red bus", ("a red double decker bus drives down a city street", "the bus is red")),
    ("a man rides a horse", ("a black cat sleeps on a sofa", "a cat on the sofa")),
    ("a cat on a sofa with a ball in the snow", ("a child throws a ball of snow", "a child in the snow with a ball")),
)
ANSWERS: Rows = (
    ("blue", ("blue",) * 10),
    ("2", ("two",) * 3 + ("3",) * 7),
    ("the dog", ("dog", "a dog") + ("cat",) * 8),
    ("yes", ("no",) * 6 + ("yes",) * 4),
    ("Blue", ("blue",) * 10),
    ("dont know", ("don't know", "red") + ("green",) * 8),
)
READINGS: Rows = (
    ("kitten", ("sitting",)),
    ("abcd", ("abxy", "efgh")),
    ("Total 12 50", ("total 12.50", "12.50")),
    ("", ("empty",)),
    ("invoice number", ("invoice numbers", "invoice")),
)
CHARTS: Rows = (("10.5", ("10",)), ("10.6", ("10",)), ("12%", ("0.12",)), ("0.0", ("0",)), ("Spain", (" spain",)))


def ngrams(words: Words, n: int) -> list[Words]:
    """Every run of n words, in order, repeats included."""
    return [words[i : i + n] for i in range(len(words)) if i + n <= len(words)]


def cider_pair(said: Words, text: Words, documents: Sequence[Sequence[Words]], *, clipped: bool) -> float:
    """Similarity of one caption to one reference: the mean over n of cosines of vectors over all n-grams seen."""
    cosines = []
    for n in (1, 2, 3, 4):
        axes = sorted(set(ngrams(said, n)) | set(ngrams(text, n)))
        own, other = [], []
        for axis in axes:
            df = sum(any(axis in ngrams(each, n) for each in document) for document in documents)
            idf = math.log(Fraction(len(documents), max(1, df)))
            own.append(ngrams(said, n).count(axis) * idf)
            other.append(ngrams(text, n).count(axis) * idf)
        lengths = math.hypot(*own, 0.0) * math.hypot(*other, 0.0)
        products = [(min(a, b) if clipped else a) * b for a, b in zip(own, other, strict=True)]
        cosines.append(math.fsum(products) / lengths if lengths else 0.0)
    gap = len(ngrams(said, 2)) - len(ngrams(text, 2))
    return math.fsum(cosines) / 4 * (math.e ** (-gap * gap / 72) if clipped else 1.0)


def cider_samples(rows: Rows, *, clipped: bool) -> list[float]:
    """Ten times the mean similarity of each sample's caption to its references."""
    documents = [[tuple(text.split()) for text in texts] for _, texts in rows]
    scores = []
    for (said, _), texts in zip(rows, documents, strict=True):
        pairs = [cider_pair(tuple(said.split()), text, documents, clipped=clipped) for text in texts]
        scores.append(10 * math.fsum(pairs) / len(pairs))
    return scores


def retrieval_samples(rows: Rows) -> list[float]:
    """1 where the caption's nearest reference by CIDEr-D is its own, shared among those that are as near."""
    documents = [[tuple(text.split()) for text in texts] for _, texts in rows]
    hits = []
    for place, (said, _) in enumerate(rows):
        near = []
        for texts in documents:
            pairs = [cider_pair(tuple(said.split()), text, documents, clipped=True) for text in texts]
            near.append(round(max(pairs), 9))
        first = [number for number, value in enumerate(near) if value == max(near)]
        hits.append(1 / len(first) if place in first else 0.0)
    return hits


def matches(said: Words, texts: Sequence[Words], n: int) -> int:
    """n-grams of the caption that a reference has, none oftener than in the reference that has it most."""
    total = 0
    for each in set(ngrams(said, n)):
        total += min(ngrams(said, n).count(each), max(ngrams(text, n).count(each) for text in texts))
    return total


def coco_bleu(rows: Rows, k: int) -> float:
    """BLEU-k of the COCO caption evaluation, with its two small constants."""
    split = [(tuple(said.split()), [tuple(text.split()) for text in texts]) for said, texts in rows]
    product = 1.0
    for n in range(1, k + 1):
        matched = sum(matches(said, texts, n) for said, texts in split)
        product *= (matched + 1e-15) / (sum(len(ngrams(said, n)) for said, _ in split) + 1e-9)
    words = sum(len(said) for said, _ in split)
    closest = sum(sorted((abs(len(t) - len(said)), len(t)) for t in texts)[0][1] for said, texts in split)
    ratio = (words + 1e-15) / (closest + 1e-9)
    return product ** (1 / k) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def sacre_bleu(rows: Rows) -> float:
    """sacrebleu's BLEU of text that its 13a tokenizer leaves alone; orders without a match are smoothed by halving."""
    split = [(tuple(said.split()), [tuple(text.split()) for text in texts]) for said, texts in rows]
    product, halvings = 1.0, 0
    for n in (1, 2, 3, 4):
        matched = sum(matches(said, texts, n) for said, texts in split)
        possible = sum(len(ngrams(said, n)) for said, _ in split)
        halvings += matched == 0
        product *= float(Fraction(matched, possible) if matched else Fraction(1, 2**halvings * possible))
    words = sum(len(said) for said, _ in split)
    closest = sum(sorted((abs(len(t) - len(said)), len(t)) for t in texts)[0][1] for said, texts in split)
    return 100 * product**0.25 * min(1.0, math.exp(1 - closest / words))


def chrf_f(counts: Sequence[tuple[int, int, int]]) -> float:
    """chrF2 from (said, right, matched) of each order; orders that one side is too short for do not count."""
    whole = [(Fraction(m, s), Fraction(m, r)) for s, r, m in counts if s and r]
    precision = sum((p for p, _ in whole), Fraction(0)) / max(1, len(whole))
    recall = sum((r for _, r in whole), Fraction(0)) / max(1, len(whole))
    return float(100 * 5 * precision * recall / (4 * precision + recall)) if precision + recall else 0.0


def chrf(rows: Rows) -> float:
    """chrF2 of a split: character runs of 1 to 6 without spaces, each sample against its best reference."""
    totals = [[0, 0, 0] for _ in range(6)]
    for said, texts in rows:
        candidates = []
        for text in texts:
            a, b = tuple(said.replace(" ", "")), tuple(text.replace(" ", ""))
            candidates.append([(len(ngrams(a, n)), len(ngrams(b, n)), matches(a, [b], n)) for n in range(1, 7)])
        best = max(candidates, key=chrf_f)
        for total, counts in zip(totals, best, strict=True):
            for place in range(3):
                total[place] += counts[place]
    return chrf_f([(s, r, m) for s, r, m in totals])


@cache
def common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence, by its recursive definition."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return common(a[:-1], b[:-1]) + 1
    return max(common(a[:-1], b), common(a, b[:-1]))


def rouge_sample(said: str, texts: Sequence[str]) -> float:
    """F of the best precision and the best recall, each over all references, beta 1.2."""
    own = tuple(said.split(" "))
    precision = max(Fraction(common(own, tuple(t.split(" "))), len(own)) for t in texts)
    recall = max(Fraction(common(own, tuple(t.split(" "))), len(t.split(" "))) for t in texts)
    squared = Fraction(12, 10) ** 2
    return float((1 + squared) * precision * recall / (recall + squared * precision)) if precision and recall else 0.0


@cache
def edits(a: Words, b: Words) -> int:
    """Fewest changes, removals and additions that turn a into b, by their recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[-1] == b[-1]:
        return edits(a[:-1], b[:-1])
    return 1 + min(edits(a[:-1], b[:-1]), edits(a[:-1], b), edits(a, b[:-1]))


def error_rate(rows: Rows, cut: Callable[[str], Words]) -> float:
    """Edits by length over a split, each sample against the reference with the lowest rate."""
    errors, length = 0, 0
    for said, texts in rows:
        pairs = [(edits(cut(said), cut(text)), len(cut(text))) for text in texts]
        best = min(pairs, key=lambda pair: (Fraction(pair[0], max(1, pair[1])), -pair[1]))
        errors, length = errors + best[0], length + best[1]
    return errors / length


def anls_sample(said: str, texts: Sequence[str]) -> float:
    """1 less the normalised distance, for the nearest reference, if that distance is below one half."""
    near = []
    for text in texts:
        a, b = tuple(said.lower()), tuple(text.lower())
        near.append(1 - Fraction(edits(a, b), max(1, len(a), len(b))))
    return float(max(near)) if max(near) > Fraction(1, 2) else 0.0


def f1_sample(said: str, texts: Sequence[str]) -> float:
    """F1 of the words, crossed off one by one; of texts without articles and punctuation."""
    scores = []
    for text in texts:
        left, hits = text.split(), 0
        for word in said.split():
            if word in left:
                left.remove(word)
                hits += 1
        scores.append(Fraction(2 * hits, len(said.split()) + len(text.split())))
    return float(max(scores))


def vqa_sample(said: str, answers: Sequence[str]) -> float:
    """Leave one annotator out at a time; three of the other nine who agree make 1."""
    table = {"two": "2", "the dog": "dog", "a dog": "dog", "dont know": "don't know"}
    differ = len(set(answers)) > 1
    own, given = (table.get(said, said), [table.get(a, a) for a in answers]) if differ else (said, list(answers))
    total = Fraction(0)
    for absent in range(len(given)):
        agree = sum(given[i] == own for i in range(len(given)) if i != absent)
        total += min(Fraction(1), Fraction(agree, 3))
    return float(total / len(given))


def relaxed_sample(said: str, texts: Sequence[str]) -> float:
    """Within a twentieth of the reference, or the same text; worked out by hand for `CHARTS`."""
    by_hand = {"10.5": 1.0, "10.6": 0.0, "12%": 1.0, "0.0": 0.0, "Spain": 1.0}
    return by_hand[said] if texts else 0.0


def mean(values: Sequence[float]) -> float:
    """Mean."""
    return math.fsum(values) / len(values)


def expected() -> dict[str, float]:
    """Score name -> value, captions first, then answers, readings and charts."""
    without_the = [(" ".join(w for w in s.split() if w not in ("a", "the")), list(t)) for s, t in CAPTIONS]
    bare = [(s, [" ".join(w for w in t.split() if w not in ("a", "the")) for t in texts]) for s, texts in without_the]
    values = {"cider": mean(cider_samples(CAPTIONS, clipped=False))}
    values["cider_d"] = mean(cider_samples(CAPTIONS, clipped=True))
    values |= {f"coco_bleu@{k}": coco_bleu(CAPTIONS, k) for k in (1, 2, 3, 4)}
    values["rouge_l"] = mean([rouge_sample(*row) for row in CAPTIONS])
    values["bleu"] = sacre_bleu(CAPTIONS)
    values["chrf"] = chrf(CAPTIONS)
    values["caption_retrieval"] = mean(retrieval_samples(CAPTIONS))
    values["token_f1"] = mean([f1_sample(*row) for row in bare])
    values["wer"] = error_rate(CAPTIONS, lambda text: tuple(text.split()))
    values["vqa_accuracy"] = mean([vqa_sample(*row) for row in ANSWERS])
    values["cer"] = error_rate(READINGS, tuple)
    values["anls"] = mean([anls_sample(*row) for row in READINGS])
    values["relaxed_accuracy"] = mean([relaxed_sample(*row) for row in CHARTS])
    return values


if __name__ == "__main__":
    for name, value in expected().items():
        print(f'    "{name}": {value:.12g},')
