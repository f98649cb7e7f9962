"""How answers are cut into words and normalised before they are compared."""

import pytest

from mmtune.metrics import answer_score
from mmtune.metrics._ptb_tokens import ptb_tokens
from mmtune.metrics._vqa_words import CONTRACTIONS, normal_answer

TOKENIZED = [
    "a man rides a brown horse",
    "it does n't matter if they ca n't see john 's dog",
    "a t-shirt -lrb- black-and-white -rrb- for $ 5.50",
    "mr. smith of the u.s. eats 50 % of 1,000 apples at 3:30 p.m.",
    "i 'm gon na say they 're here and we 'll go",
    "caf\u00e9 \u5bff\u53f8 42nd o'clock '90s",
]


@pytest.mark.parametrize("text", TOKENIZED)
def test_tokenized_text_stays_as_it_is(text):
    assert ptb_tokens(text) == text.split()


# printed by the official tokenizer (CoreNLP 3.4.1) through `scripts/compare_with_official.py`
OFFICIAL = {
    "A man's dog -- isn't it?": "a man 's dog is n't it",
    "The \u201cred\u201d bus, isn\u2019t here.": "the red bus is n't here",
    "Two dogs' tails; 'quoted' words...": "two dogs tails quoted words",
    "Wait!!! What?! \u2026 (nothing) [x]": "wait !!! what ?! -lrb- nothing -rrb- -lsb- x -rsb-",
    "You shouldn't've, I cannot: I'd gonna": "you should n't 've i can not i 'd gon na",
    "A black/white no.": "a black/white no",
    "Mr. Smith lives in the U.S. now": "mr. smith lives in the u.s. now",
    "It's No. 5 of the '90s, eight o\u2019clock": "it 's no. 5 of the '90s eight o\u2019clock",
    "-5 degrees, 3.5 kg, 1,000 apples & 50%": "-5 degrees 3.5 kg 1,000 apples & 50 %",
    "at 3:30 p.m. for \u20ac5": "at 3:30 p.m. for $ 5",
    "A 20-year-old's t-shirt by AT&T; see setup.txt at http://a.b/c.": "a 20-year-old 's t-shirt by at&t see setup.txt "
    "at http://a.b/c",
    "a 6'2\" man, C++ and @home #tag": "a 6 2 man c++ and @home #tag",
    "salt&pepper \U0001f917 \u2605": "salt & pepper \u2605",
    "letter b. and letter a.": "letter b. and letter a.",
    "letter a. and letter b": "letter a and letter b",
    "": "",
    " . - ' ": "",
}


@pytest.mark.parametrize("raw", OFFICIAL)
def test_raw_text_has_the_words_of_the_official_tokenizer(raw):
    words = OFFICIAL[raw].split()
    assert ptb_tokens(raw) == words
    assert ptb_tokens(" ".join(words)) == words  # twice is once


def test_known_differences_are_still_there():
    assert ptb_tokens("a dog :-)") == ["a", "dog", "-rrb-"]  # officially the smiley is one word
    assert ptb_tokens("rock'n'roll") == ["rock'n'roll"]  # officially three


def test_punctuation_and_case_do_not_count_in_captions_but_words_do():
    references = [["A man rides, slowly."], ["Two dogs run here."]]
    found = answer_score("cider_d")
    same = found.value(["a MAN rides slowly", "two dogs run here!"], references)
    assert same == pytest.approx(10, abs=1e-9)
    assert found.value(["a man ride slowly", "two dogs run here!"], references) < same


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("The Dog", "dog"),
        ("two dogs and a cat", "2 dogs and cat"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("youre it", "you're it"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("don't", "don't"),
        ("black/white", "black white"),  # no space beside the mark: it becomes one
        ("black/ white", "black white"),  # a space beside it: it goes
        ("red, blue/green", "red blue green"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("1,000 t-shirts", "1000 tshirts"),  # a number with a comma takes every mark away
        ("3.5", "3.5"),
        ("a.m.", "am"),
        ("no.", "no"),
        ("yes!", "yes"),
        ("", ""),
    ],
)
def test_official_normalisation_by_hand(raw, normal):
    assert normal_answer(raw) == normal


def test_contractions_are_those_of_the_official_table():
    # counted in the official script: 120 entries, of which 4 begin with a capital and 2 stand for themselves
    assert len(CONTRACTIONS) == 120 - 6
    assert all(word.replace("'", "") == wrong.replace("'", "") for wrong, word in CONTRACTIONS.items())
    for word in ("well", "were", "its", "shed", "id", "wed", "hell", "ill"):
        assert word not in CONTRACTIONS  # words of their own


def test_answers_are_normalised_only_where_people_differ():
    found = answer_score("vqa_accuracy")
    agreed, differing = [["yes"] * 10], [["yes"] * 9 + ["no"]]
    assert found.value(["Yes."], agreed) == 0 and found.value(["yes\n"], agreed) == 1
    assert found.value(["Yes."], differing) == 1
    assert found.value(["Yes."], [["YES"] * 5 + ["yes"] * 5]) == 1


@pytest.mark.parametrize(
    ("answers", "value"),
    [
        (["yes"], 1.0),
        (["no"], 0.0),
        (["yes", "yes"], 1.0),
        (["yes", "no"], 0.5),
        (["yes"] * 3, 1.0),
        (["yes"] * 4, 1.0),
    ],
)
def test_fewer_annotators_than_the_official_ten(answers, value):
    assert answer_score("vqa_accuracy").value(["yes"], [answers]) == pytest.approx(value)
