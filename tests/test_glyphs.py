"""The embedded data set, its looks, and the backbone that travels with it."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtune.glyphs import characters, drawing, looks
from mmtune.ground.errors import DataError
from mmtune.sources import glyphs

ASSET = Path(characters.__file__).parents[1] / "assets" / "glyph_clip"


def section(**fields):
    return glyphs.Section(kind="glyphs", **fields)


def read_pixels(sample):
    return np.asarray(sample.media.read())


@pytest.fixture(scope="module")
def opened():
    """All pictures of every split, in the clean look."""
    return {split: glyphs.open_split(section(look="clean"), split, seed=0).samples for split in glyphs.SPLITS}


def test_there_are_tens_of_thousands_of_pictures_in_four_families():
    found = characters.list_glyphs()
    assert len(found) > 50_000
    assert len({glyph.character for glyph in found}) > 7_000
    assert {glyph.font for glyph in found} == {font for family in characters.FONTS.values() for font in family}
    assert not any(glyph.font.startswith(("cm", "LastResort", "STIXNonUni", "STIXSiz")) for glyph in found)
    assert len({glyph.key for glyph in found}) == len(found)


def test_characters_drawn_alike_share_a_class():
    alike = characters.map_alike()
    class_of = {character: name for name, members in alike.items() for character in members}
    assert class_of["X"] == class_of["Χ"] == class_of["Х"] == "U+0058"  # Latin, Greek Chi, Cyrillic Ha
    assert class_of["X"] != class_of["Y"]
    assert class_of["x"] != class_of["X"]
    alone = sum(len(members) == 1 for members in alike.values())
    assert 0.8 < alone / len(alike) < 1.0
    assert max(map(len, alike.values())) < 30  # nothing has run together


def test_joining_is_transitive_and_keeps_strangers_apart():
    assert characters.join_alike([["c", "b"], ["d"], ["b", "a"]]) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_no_drawing_and_no_name_is_in_two_splits(opened):
    drawings, names, groups = {}, {}, {}
    for split, samples in opened.items():
        small = samples[::7]
        drawings[split] = {read_pixels(sample).tobytes() for sample in small}
        names[split] = {caption for sample in samples for caption in (*sample.captions, *sample.also_true)}
        groups[split] = {sample.group for sample in samples}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not drawings[one] & drawings[other]
        assert not names[one] & names[other]
        assert not groups[one] & groups[other]


def test_a_split_by_character_alone_would_leak(opened):
    """The negation: cutting alike classes apart puts one drawing on both sides, so the classes are needed."""
    by_code_point = {"X": "U+0058", "Χ": "U+03A7", "Х": "U+0425", "A": "U+0041", "Α": "U+0391", "А": "U+0410"}
    assert len({characters.split_of(code_point) for code_point in by_code_point.values()}) > 1
    assert drawing.draw_clean("X", "DejaVuSans").tobytes() == drawing.draw_clean("Χ", "DejaVuSans").tobytes()


def test_the_splits_have_their_shares(opened):
    total = sum(len({sample.group for sample in samples}) for samples in opened.values())
    shares = {split: len({sample.group for sample in samples}) / total for split, samples in opened.items()}
    assert shares == pytest.approx({"train": 0.80, "validation": 0.08, "test": 0.12}, abs=0.02)


def test_a_sample_names_its_character_and_what_else_is_true():
    samples = {
        sample.id: sample for split in glyphs.SPLITS for sample in glyphs.open_split(section(), split, seed=0).samples
    }
    sample = samples["U+03A7/DejaVuSans"]
    assert sample.captions == ("greek capital letter chi",)
    assert {"latin capital letter x", "cyrillic capital letter ha"} < set(sample.also_true)
    assert "greek capital letter chi" not in sample.also_true
    assert sample.group == "U+0058"
    assert sample.media.where == "U+03A7 in DejaVuSans (camera, seed 0)"
    assert samples["U+0416/DejaVuSans"].captions == ("cyrillic capital letter zhe",)


def test_pictures_are_drawn_on_reading_and_travel_to_workers(opened):
    sample = opened["test"][0]
    again = pickle.loads(pickle.dumps(sample))
    assert again == sample
    assert len(pickle.dumps(sample)) < 1_000
    picture = again.media.read()
    assert (picture.mode, picture.size) == ("RGB", (drawing.SIDE, drawing.SIDE))


@pytest.mark.parametrize("look", list(looks.LOOKS))
def test_a_look_is_a_function_of_seed_and_picture(look):
    first, other = (glyphs.open_split(section(look=look, seed=seed, characters=5), "test", seed=9) for seed in (0, 1))
    again = glyphs.open_split(section(look=look, characters=5), "test", seed=3)
    assert [sample.id for sample in first.samples] == [sample.id for sample in again.samples]
    for sample, same, changed in zip(first.samples, reversed(again.samples[::-1]), other.samples, strict=True):
        assert np.array_equal(read_pixels(sample), read_pixels(same))
        assert sample.media.key == same.media.key != changed.media.key
        assert np.array_equal(read_pixels(sample), read_pixels(changed)) == (look == "clean")


def test_shifted_looks_differ_from_print_and_from_each_other():
    glyph = next(glyph for glyph in characters.list_glyphs() if glyph.key == "U+0041/DejaVuSans")
    drawn = {look: np.asarray(looks.draw_look(glyph, look, 0), dtype=float) for look in looks.LOOKS}
    for one, other in (("clean", "camera"), ("clean", "hollow"), ("camera", "hollow")):
        assert np.abs(drawn[one] - drawn[other]).mean() > 5


def test_no_picture_is_blank(opened):
    for look in looks.LOOKS:
        for sample in opened["test"][::97]:
            pixels = np.asarray(looks.draw_look(sample.media.glyph, look, 0), dtype=float)
            assert np.ptp(pixels) > 30, (look, sample.id)
    for sample in opened["validation"]:
        assert sample.media.read().getextrema()[0][0] < 200, sample.id


def test_fonts_restrict_what_is_drawn():
    samples = glyphs.open_split(section(fonts=["mono"]), "validation", seed=0).samples
    assert {sample.media.glyph.font for sample in samples} == set(characters.FONTS["mono"])


def test_a_limit_keeps_alike_classes_whole():
    samples = glyphs.open_split(section(characters=40, look="clean"), "train", seed=0).samples
    drawn = {sample.media.glyph.character for sample in samples}
    assert 40 <= len(drawn) < 60
    for sample in samples:
        assert set(characters.map_alike()[sample.group]) <= drawn


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test"):
        glyphs.open_split(section(), "dev", seed=0)


def test_without_the_fonts_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    drawing.find_font_folder.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        drawing.find_font_folder()
    drawing.find_font_folder.cache_clear()


def test_the_asset_is_small_and_safe():
    files = {path.name for path in ASSET.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert sum(path.stat().st_size for path in ASSET.iterdir()) <= 5_000_000
    config = json.loads((ASSET / "config.json").read_text())
    assert (config["dtype"], config["text_config"]["eos_token_id"]) == ("float32", 3)  # 2 would mean "the largest id"
    assert "## Scores" in (ASSET / "README.md").read_text()


LOAD_ALONE = """
import sys, torch
from transformers import AutoModel, AutoProcessor
model, processor = AutoModel.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
assert type(model).__name__ == "CLIPModel" and {p.dtype for p in model.parameters()} == {torch.float32}
short, long = "latin small letter a", "latin small letter a with ring above and acute"
alone, padded = processor.tokenizer([short]), processor.tokenizer([short, long], padding=True)
assert len(alone["input_ids"][0]) < len(padded["input_ids"][0])
embed = lambda t: model.get_text_features(**{k: torch.tensor(v) for k, v in t.items()}).pooler_output[0]
assert torch.allclose(embed(alone), embed(padded), atol=1e-5)
assert processor.tokenizer("hei\\u00df \\u732b").input_ids.count(processor.tokenizer.unk_token_id) == 0
assert not any(name.startswith("mmtune") for name in sys.modules)
"""


def test_the_asset_loads_with_transformers_alone(tmp_path):
    command = [sys.executable, "-I", "-c", LOAD_ALONE, str(ASSET)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_asset_finds_clean_print_by_name():
    """Recall@1 among 120 test characters in one family; chance is below 0.02."""
    torch = pytest.importorskip("torch")
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(ASSET).eval(), CLIPProcessor.from_pretrained(ASSET)
    samples = glyphs.open_split(section(look="clean", fonts=["sans"], characters=120), "test", seed=0).samples
    group_of = {sample.captions[0]: sample.group for sample in samples}
    with torch.no_grad():
        inputs = processor(images=[sample.media.read() for sample in samples], return_tensors="pt")
        images = torch.nn.functional.normalize(model.get_image_features(**inputs).pooler_output)
        inputs = processor(text=list(group_of), padding=True, truncation=True, return_tensors="pt")
        texts = torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output)
    nearest = (texts @ images.T).argmax(1).tolist()
    hits = [samples[index].group == group for index, group in zip(nearest, group_of.values(), strict=True)]
    assert np.mean(hits) > 0.9
