"""The answer normalisation of the VQA evaluation: punctuation, articles, number words, contractions.

Facts of the official script, odd ones included; the tables are built here from the words that make them up. What the
script does by accident and few answers show is left out: it stops after 32 full stops, and its contractions of I'm,
I've and I'd've never apply, because they begin with a capital and the answer is in lower case by then.
"""

import re

ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you couldn't hadn't mightn't shouldn't wouldn't "
    "he'd it'd she'd someone'd something'd somebody'd there'd they'd we'd who'd y'all'd you'd",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
}
"""Ending -> the beginnings that it makes a contraction with."""

OTHERS = ("ma'am", "o'clock", "'ow's'at", "'twas", "y'all")
COUNTING = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0", **{word: str(n) for n, word in enumerate(COUNTING.split())}}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")


def _contractions() -> dict[str, str]:
    """Each contraction with any one of its apostrophes forgotten -> the contraction."""
    full = [beginning + ending for ending, words in ENDINGS.items() for beginning in words.split()]
    table = {}
    for word in (*full, *OTHERS):
        for place in (match.start() for match in re.finditer("'", word)):
            table[word[:place] + word[place + 1 :]] = word
    return {**table, "somebody'd": "somebodyd"}  # the wrong way round there as well


CONTRACTIONS = _contractions()


def plain_answer(text: str) -> str:
    """Line breaks and tabs as spaces, none at the ends: what every answer goes through."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normal_answer(text: str) -> str:
    """Without punctuation, in lower case, without articles, numbers to ten as digits, contractions with apostrophes.

    A punctuation mark is removed where it stands at a space anywhere in the answer, or where a number has a comma
    inside, and becomes a space otherwise; a full stop is removed unless a digit follows.
    """
    words = (NUMBERS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    number = COMMA_IN_NUMBER.search(text) is not None
    kept = text
    for mark in PUNCTUATION:
        at_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if at_space or number else " ")
    return FULL_STOP.sub("", kept)
