"""Randomness as a function of names, and which captions are the same text."""

import pytest

from mmtune.ground.seeding import fraction_for, generator_for, seed_for, text_key


def test_seeds_depend_on_every_name_and_on_nothing_else() -> None:
    assert seed_for(0, "a", 1) == 5640247956467711177, "the same on every machine and in every version"
    others = [seed_for(1, "a", 1), seed_for(0, "b", 1), seed_for(0, "a", 2), seed_for(0, "a"), seed_for(0, "a1")]
    assert len({seed_for(0, "a", 1), *others}) == 6
    assert all(0 <= seed < 2**63 for seed in others)
    assert generator_for(3, "x").integers(1 << 40) == generator_for(3, "x").integers(1 << 40)
    assert 0 <= fraction_for("a") < 1 and fraction_for("a") != fraction_for("a", "salt")


@pytest.mark.parametrize("name", ["caf\udce9.png", "\ud800", "\udfff\ud83d"])
def test_names_that_are_not_utf8_have_seeds(name: str) -> None:
    assert seed_for(0, name) == seed_for(0, name) != seed_for(0, name[:-1])
    assert fraction_for(name) < 1


@pytest.mark.parametrize(
    "other", ["Red Shirt", "red  shirt", " red shirt\n", "red\tshirt", "RED\u00a0SHIRT", "red\u3000shirt"]
)
def test_captions_that_say_the_same_are_one(other: str) -> None:
    assert text_key(other) == text_key("red shirt")


def test_unicode_forms_are_one() -> None:
    assert text_key("Cafe\u0301") == text_key("caf\u00e9") == text_key("CAF\u00c9")


@pytest.mark.parametrize("other", ["redshirt", "red shirts", "red-shirt", "shirt red", "red shirt."])
def test_other_captions_are_others(other: str) -> None:
    assert text_key(other) != text_key("red shirt")


def test_clip_reads_captions_of_one_key_alike(tiny_clip_folder: object) -> None:
    """The reason for the key: the tokens, and with them the embeddings, are equal."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_clip_folder))
    texts = ["a dog", "A  Dog", " a\tDOG \n"]
    assert len({text_key(text) for text in texts}) == 1
    assert len({tuple(tokenizer(text).input_ids) for text in texts}) == 1
    assert tokenizer("a cat").input_ids != tokenizer("a dog").input_ids


def test_every_character_keeps_a_caption_of_its_own() -> None:
    from mmtune.glyphs.characters import caption_of, list_glyphs

    names = {caption_of(glyph.character) for glyph in list_glyphs()}
    assert len(names) > 5000
    assert len({text_key(name) for name in names}) == len(names)
