"""BLIP-2 that speaks, with OPT and with T5."""

from pathlib import Path
from typing import Any

import generating_checks as checks
import pytest
import torch
from adapter_examples import LORA, DrawnImage, backbone_of, section
from generating_checks import answered, asked, encode_prompt, encode_turns, said_of

from mmtune.adapters import attach
from mmtune.backbones import Section, describe, tiny_section
from mmtune.backbones.blip2 import tiny_speaking
from mmtune.ground.errors import BackboneError, DataError

LANGUAGES = ("opt", "t5")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Language model -> folder of the tiny twin; read only."""
    made = {name: tmp_path_factory.mktemp("blip2") / name for name in LANGUAGES}
    for name, folder in made.items():
        for each in tiny_speaking(name):
            each.save_pretrained(folder)
    return made


@pytest.fixture(params=LANGUAGES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def test_labels_are_the_answer_and_its_end(folder: Path) -> None:
    backbone = backbone_of(folder)
    line_break = backbone.processor.tokenizer.convert_tokens_to_ids("Ċ")
    checks.check_labels_are_the_answers(backbone, line_break if folder.name == "opt" else 1)


def test_the_prompt_is_what_the_processor_makes_of_it(folder: Path) -> None:
    backbone = backbone_of(folder)
    encoded = encode_prompt(backbone, asked("a red line?", 3))
    own = backbone.processor(images=DrawnImage(3).read(), text="a red line?", return_tensors="pt")
    assert set(own) == set(encoded) == {"input_ids", "attention_mask", "pixel_values"}
    assert all(encoded[key].equal(own[key][0]) for key in own)
    is_image = backbone.family.image_tokens(backbone.processor, encoded)
    assert is_image.tolist() == [True] * 4 + [False] * (len(is_image) - 4)


def test_loss_is_transformers_own(folder: Path) -> None:
    checks.check_loss_is_transformers_own(backbone_of(folder))


def test_the_decoder_of_t5_is_given_what_transformers_would_give_it(folders: dict[str, Path]) -> None:
    backbone = backbone_of(folders["t5"])
    encoded = encode_turns(backbone, answered("name it", "the cat"))
    shifted = backbone.model.language_model._shift_right(encoded["labels"][None])
    assert encoded["decoder_input_ids"].tolist() == shifted[0].tolist()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_the_same_one_by_one(folder: Path, num_beams: int) -> None:
    checks.check_generation_is_the_same_one_by_one(backbone_of(folder), num_beams=num_beams)


def test_generation_is_that_of_transformers(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    backbone, image = backbone_of(folder), DrawnImage(5).read()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    own = processor(images=image, text="name it", return_tensors="pt")
    made = model.generate(**own, max_new_tokens=6, do_sample=False)
    begin = 1 if folder.name == "t5" else own["input_ids"].shape[1]
    expected = processor.tokenizer.decode(made[0, begin:], skip_special_tokens=True).strip()
    prompt = encode_prompt(backbone, asked("name it", 5))
    assert said_of(backbone, [prompt], max_new_tokens=6) == [expected]


def test_generation_stops_at_what_was_learned(folder: Path) -> None:
    checks.check_generation_stops_at_what_was_learned(backbone_of(folder))


PARTS = {
    "vision": ("qkv", "fc1"),
    "qformer": ("attention.query", "crossattention", "intermediate_query.dense", "output_query.dense"),
    "connector": ("language_projection$",),
    "text": ("",),
}
OF_TEXT = {
    "opt": ("q_proj", "out_proj", "fc1", "fc2"),
    "t5": (r"encoder.*SelfAttention\.q", "EncDecAttention.v", "wi_0", "wi_1", "wo", r"decoder.*SelfAttention\.o"),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_trained_and_nothing_else(folder: Path, part: str) -> None:
    patterns = OF_TEXT[folder.name] if part == "text" else PARTS[part]
    checks.check_lora_trains_a_part(backbone_of(folder), part, patterns)
    checks.check_full_trains_a_part(backbone_of(folder), part)


def test_layers_of_t5_are_its_decoders(folders: dict[str, Path]) -> None:
    adapted = attach(backbone_of(folders["t5"]), section(**{**LORA, "parts": ["text"], "layers": "last 1"}))
    assert {name.split(".layer.")[0] for name in adapted.modules["text"]} == {"language_model.decoder.block.1"}


def test_forgotten_activations_change_no_gradient(folder: Path) -> None:
    checks.check_forgotten_activations_change_no_gradient(backbone_of(folder), backbone_of(folder))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(folder: Path, dtype: str) -> None:
    checks.check_half_precision(backbone_of(folder, dtype=dtype), backbone_of(folder))


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized(folder: Path, quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = checks.check_quantized_is_what_it_stands_for(folder, quantize)
    plain = {name for name, module in backbone.model.named_modules() if type(module) is torch.nn.Linear}
    outside = {name for name in plain if not name.startswith(("qformer", "language_projection", "language_model.lm_h"))}
    assert outside == ({name for name in plain if name.endswith(".wo")} if folder.name == "t5" else set())
    checks.check_lora_trains_a_part(backbone, "text", OF_TEXT[folder.name])


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    backbone = backbone_of(folder)
    long = "r " * 180
    refused = [
        ([*answered("a", "b"), *answered("a", "b")], "one question and one answer"),
        (answered("a <image> here", "b"), "the question holds '<image>'"),
        (answered("a", "an <image>"), "the answer holds '<image>'"),
        (answered("a", ""), "answer is empty"),
        (answered("a", "b\nc" if folder.name == "opt" else "b </s> c"), "the answer holds .*, which ends answers"),
        (answered(long, "b"), r"image tokens included\) has \d+ tokens, and the model reads 256"),
        (answered("a", long), r"has \d+ tokens, and the model reads 256"),
    ]
    for turns, message in refused:
        with pytest.raises(DataError, match=message):
            encode_turns(backbone, turns)


def test_answers_beyond_the_last_position_are_refused_where_there_is_one(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        backbone = backbone_of(folder)
        prompt = encode_prompt(backbone, asked("a " * 190))
        if name == "t5":
            assert said_of(backbone, [prompt], max_new_tokens=64)
            continue
        with pytest.raises(DataError, match="the longest question with max_new_tokens has"):
            said_of(backbone, [prompt], max_new_tokens=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["Blip2Model"]}, "names the architecture Blip2Model"),
        ({"image_token_index": None}, "older than transformers 4.46"),
        ({"text_config": {"model_type": "gpt2"}}, "language models opt, llama, t5"),
    ],
)
def test_other_models_are_refused_before_weights_are_loaded(
    folders: dict[str, Path], changed_copy: Any, changes: dict[str, Any], message: str
) -> None:
    changed = changed_copy(folders["opt"], **changes)
    (changed / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=message):
        describe(Section(id=str(changed)))


def test_an_image_token_that_is_another_is_refused(folders: dict[str, Path], changed_copy: Any) -> None:
    with pytest.raises(BackboneError, match="image_token_index is 5 in config.json, and the tokenizer gives '<image>'"):
        backbone_of(changed_copy(folders["opt"], image_token_index=5))


def test_a_twin_speaks_like_what_it_stands_for(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        twin = tiny_section(Section(id=str(folder)), tmp_path / name)
        assert describe(twin).config["text_config"]["model_type"] == name


def test_depth_of_a_config_that_says_little(folders: dict[str, Path]) -> None:
    depth = backbone_of(folders["opt"]).family.num_layers
    named = {"architectures": ["Blip2ForConditionalGeneration"], "image_token_index": 7}
    assert depth(named) == {"vision": 39, "qformer": 12, "text": 12}
    assert depth({**named, "text_config": {"model_type": "t5"}})["text"] == 6
    assert depth({**named, "text_config": {"model_type": "t5", "num_layers": 3}})["text"] == 3
    for folder in folders.values():
        assert describe(Section(id=str(folder))).num_layers == {"vision": 2, "qformer": 2, "text": 2}
