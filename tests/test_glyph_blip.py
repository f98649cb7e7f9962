"""The captioner that travels in the package: small, plain, right on clean print and lost in another look."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtune.glyphs import characters
from mmtune.sources import glyphs

ASSET = Path(characters.__file__).parents[1] / "assets" / "glyph_blip"
NUM_CHARACTERS = 120  # of the test split, in one font family: seconds, and a share that moves by less than 0.1


@pytest.fixture(scope="module")
def captioner():
    """The stored model and its processor."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BlipForConditionalGeneration.from_pretrained(ASSET).eval()
    return model, transformers.BlipProcessor.from_pretrained(ASSET)


def exact_match(captioner, look):
    """Share of greedy captions that are a true name of the drawing."""
    model, processor = captioner
    section = glyphs.Section(kind="glyphs", look=look, fonts=["sans"], characters=NUM_CHARACTERS)
    samples = glyphs.open_split(section, "test", seed=0).samples
    inputs = processor(images=[sample.media.read() for sample in samples], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=32, do_sample=False, num_beams=1)
    said = processor.batch_decode(ids, skip_special_tokens=True)
    assert len(said) == len(samples) > NUM_CHARACTERS
    hits = (text in (*one.captions, *one.also_true) for text, one in zip(said, samples, strict=True))
    return float(np.mean(list(hits)))


def test_the_asset_is_small_and_safe():
    files = {path.name for path in ASSET.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)
    assert sum(path.stat().st_size for path in ASSET.iterdir()) <= 5_000_000
    config = json.loads((ASSET / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("float32", ["BlipForConditionalGeneration"])
    assert "## Scores" in (ASSET / "README.md").read_text()


def test_clean_print_is_captioned_right_and_the_camera_look_is_not(captioner):
    clean, camera = exact_match(captioner, "clean"), exact_match(captioner, "camera")
    assert clean > 0.8
    assert camera < clean / 2


def test_every_name_comes_back_from_its_tokens(captioner):
    model, processor = captioner
    tokenizer, text = processor.tokenizer, model.config.text_config
    names = sorted({characters.caption_of(glyph.character) for glyph in characters.list_glyphs()})
    encoded = tokenizer(names)["input_ids"]
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == names
    assert max(map(len, encoded)) <= text.max_position_embeddings
    assert {ids[0] for ids in encoded} == {tokenizer.cls_token_id} != {text.bos_token_id}
    assert {ids[-1] for ids in encoded} == {text.sep_token_id}


def test_ascii_has_tokens_and_other_letters_are_unknown(captioner):
    tokenizer = captioner[1].tokenizer
    assert tokenizer.unk_token_id not in tokenizer('A photo: "two (2) cats", no? ~100%').input_ids
    assert tokenizer.unk_token_id in tokenizer("猫").input_ids


LOAD_ALONE = """
import sys, numpy, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model, processor = AutoModelForImageTextToText.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
assert type(model).__name__ == "BlipForConditionalGeneration"
assert {p.dtype for p in model.parameters()} == {torch.float32}
page = numpy.full((64, 64), 255, dtype=numpy.uint8)
page[10:50, 30:34] = 0
inputs = processor(images=Image.fromarray(page).convert("RGB"), return_tensors="pt")
assert processor.decode(model.eval().generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True).strip()
assert not any(name.startswith("mmtune") for name in sys.modules)
"""


def test_the_asset_loads_with_transformers_alone(tmp_path):
    command = [sys.executable, "-I", "-c", LOAD_ALONE, str(ASSET)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
