"""GIT: the image's states stand before the words."""

from pathlib import Path
from typing import Any

import generating_checks as checks
import pytest
import torch
from adapter_examples import LORA, DrawnImage, backbone_of, section
from generating_checks import EXCHANGES, answered, asked, encode_prompt, encode_turns, said_of, training_batch

from mmtune.adapters import attach
from mmtune.backbones import Section, describe, tiny_folder
from mmtune.ground.errors import BackboneError, DataError
from mmtune.ground.records import Turn
from mmtune.token_states import token_states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("git", tmp_path_factory.mktemp("git") / "git")


def test_labels_are_the_answer_and_its_end(folder: Path) -> None:
    backbone = backbone_of(folder)
    checks.check_labels_are_the_answers(backbone, backbone.processor.tokenizer.sep_token_id)


def test_a_caption_is_what_the_processor_makes_of_it(folder: Path) -> None:
    backbone = backbone_of(folder)
    encoded = encode_turns(backbone, answered("", "a cat", 3))
    own = backbone.processor(images=DrawnImage(3).read(), text="a cat", return_tensors="pt")
    assert encoded["input_ids"].equal(own["input_ids"][0]) and encoded["pixel_values"].equal(own["pixel_values"][0])


def test_loss_is_transformers_own(folder: Path) -> None:
    checks.check_loss_is_transformers_own(backbone_of(folder))


def test_states_are_those_of_the_words(folder: Path) -> None:
    backbone = backbone_of(folder)
    batch = training_batch(backbone)
    given = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        states = token_states(backbone, batch)
        logits = backbone.model(**given).logits
    num_words = batch["input_ids"].shape[1]
    assert states.shape == (len(EXCHANGES), num_words, 32) and logits.shape[1] == num_words + 17
    torch.testing.assert_close(backbone.model.output(states), logits[:, 17:], rtol=0, atol=checks.ROUNDING)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_the_same_one_by_one(folder: Path, num_beams: int) -> None:
    checks.check_generation_is_the_same_one_by_one(backbone_of(folder), num_beams=num_beams)


def test_padding_on_the_wrong_side_would_be_noticed(folder: Path) -> None:
    backbone = backbone_of(folder)
    rows = [encode_prompt(backbone, asked(question, n)) for n, (question, _) in enumerate(EXCHANGES)]
    wrong = backbone.family.pad(backbone.processor, rows, side="right")
    said = backbone.family.generate(backbone.model, backbone.processor, wrong, max_new_tokens=8)
    assert said != said_of(backbone, rows, max_new_tokens=8)


def test_generation_is_that_of_transformers(folder: Path) -> None:
    from transformers import GitForCausalLM

    backbone = backbone_of(folder)
    own = backbone.processor.image_processor(DrawnImage(5).read(), return_tensors="pt")
    tokenizer = backbone.processor.tokenizer
    ids = [tokenizer.cls_token_id, *tokenizer("name it", add_special_tokens=False)["input_ids"]]
    made = (
        GitForCausalLM.from_pretrained(folder)
        .eval()
        .generate(**own, input_ids=torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    )
    expected = tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True).strip()
    assert said_of(backbone, [encode_prompt(backbone, asked("name it", 5))], max_new_tokens=6) == [expected]


def test_generation_stops_at_what_was_learned(folder: Path) -> None:
    checks.check_generation_stops_at_what_was_learned(backbone_of(folder))


PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("q_proj", "fc1"),
    "connector": (r"visual_projection\.0$",),
    "text": ("self.query", "attention.output.dense", "intermediate.dense", r"layer\.1\.output\.dense"),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_trained_and_nothing_else(folder: Path, part: str) -> None:
    checks.check_lora_trains_a_part(backbone_of(folder), part, PARTS[part])
    checks.check_full_trains_a_part(backbone_of(folder), part)


def test_all_parts_at_once(folder: Path) -> None:
    adapted = attach(backbone_of(folder), section(**{**LORA, "parts": list(PARTS)}))
    assert {part: len(names) for part, names in adapted.modules.items() if names} == {
        "vision": 12,
        "connector": 1,
        "text": 12,
    }


def test_forgotten_activations_change_no_gradient(folder: Path) -> None:
    checks.check_forgotten_activations_change_no_gradient(backbone_of(folder), backbone_of(folder))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(folder: Path, dtype: str) -> None:
    checks.check_half_precision(backbone_of(folder, dtype=dtype), backbone_of(folder))


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized(folder: Path, quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = checks.check_quantized_is_what_it_stands_for(folder, quantize)
    assert type(backbone.model.output) is torch.nn.Linear
    checks.check_lora_trains_a_part(backbone, "text", PARTS["text"])


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    backbone = backbone_of(folder)
    two = (DrawnImage(1), "or", DrawnImage(2))
    refused = [
        ([Turn("system", ("be kind",)), *answered("a", "b")], "turns are system, user, assistant"),
        ([*answered("a", "b"), *answered("a", "b")], "one question and one answer"),
        ([Turn("user", two), Turn("assistant", ("b",))], "takes one image"),
        ([Turn("user", ("a",)), Turn("assistant", ("b",))], "takes one image"),
        (answered("a", " "), "answer is empty"),
        (answered("a", "b [SEP] c"), r"the answer holds '\[SEP\]', which ends answers"),
        (answered("x " * 254, "b"), "257 tokens, and the model reads 256"),
        (answered("b", "x " * 254), "257 tokens, and the model reads 256"),
    ]
    for turns, message in refused:
        with pytest.raises(DataError, match=message):
            encode_turns(backbone, turns)
    with pytest.raises(DataError, match="places for 1 images, and there are 2"):
        backbone.family.encode_turns(backbone.processor, answered("a", "b"), [DrawnImage(1).read()] * 2)
    fits = encode_turns(backbone, answered("x " * 100, "x " * 154))
    assert len(fits["input_ids"]) == 256
    with pytest.raises(DataError, match="the longest question with max_new_tokens"):
        said_of(backbone, [encode_prompt(backbone, asked("x " * 250))], max_new_tokens=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GitModel"]}, "names the architecture GitModel"),
        ({"num_image_with_embedding": 6}, "frames of a video"),
    ],
)
def test_other_git_models_are_refused_before_weights_are_loaded(
    folder: Path, changed_copy: Any, changes: dict[str, Any], message: str
) -> None:
    changed = changed_copy(folder, **changes)
    (changed / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=message):
        describe(Section(id=str(changed)))


def test_a_tokenizer_that_ends_otherwise_is_refused(folder: Path, changed_copy: Any) -> None:
    with pytest.raises(BackboneError, match=r"eos_token_id is 4 .* ends texts with '\[SEP\]' \(id 3\)"):
        backbone_of(changed_copy(folder, eos_token_id=4))


def test_depth_of_a_config_that_says_little(folder: Path) -> None:
    assert backbone_of(folder).family.num_layers({}) == {"vision": 12, "text": 6}
    assert describe(Section(id=str(folder))).num_layers == {"vision": 2, "text": 2}
