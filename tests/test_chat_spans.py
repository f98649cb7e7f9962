"""What is learned of a conversation: what the assistant says with its end, decoded and compared, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.backbones import chat
from mmtune.backbones._chat_prompts import takes_prompts
from mmtune.backbones._chat_spans import conversation_pieces, end_of_turn
from mmtune.ground.errors import BackboneError, DataError
from mmtune.ground.records import NoMedia, Turn

HERE = NoMedia("image", "in the test")
TALKING = [name for name in chat.FAMILY.model_types if name not in ("paligemma", "florence2")]
ANSWERS = ("a red dog", "Two of them, é\nand 3.14 more")
TURNS = (
    Turn("system", ("Be brief.",)),
    Turn("user", (HERE, "What is it?")),
    Turn("assistant", (ANSWERS[0],)),
    Turn("user", ("And ", HERE, " here?")),
    Turn("assistant", (ANSWERS[1],)),
)
ASKED = (Turn("user", (HERE, "What is it?")),)


def picture(seed: int = 0, width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(0), picture(1, 40, 60)]


def learned(processor: Any, encoded: dict[str, torch.Tensor]) -> str:
    """The unmasked labels as text, special tokens included."""
    labels = encoded["labels"]
    return str(processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=False))


@contextmanager
def template(processor: Any, text: str) -> Iterator[None]:
    before, processor.chat_template = processor.chat_template, text
    try:
        yield
    finally:
        processor.chat_template = before


@pytest.fixture(params=TALKING)
def processor(request: pytest.FixtureRequest, chat_backbone: Callable[[str], Any]) -> Any:
    return chat_backbone(request.param).processor


@pytest.fixture
def llava(chat_backbone: Callable[[str], Any]) -> Any:
    return chat_backbone("llava").processor


@pytest.fixture
def qwen(chat_backbone: Callable[[str], Any]) -> Any:
    return chat_backbone("qwen2_5_vl").processor


def test_every_turn_of_the_assistant_is_learned_with_its_end(processor: Any) -> None:
    encoded = chat.encode_turns(processor, TURNS, PICTURES)
    end = end_of_turn(processor)
    assert end in processor.tokenizer.all_special_tokens or end in str(processor.tokenizer.added_tokens_decoder)
    said = learned(processor, encoded).split(end)
    assert [one.strip() for one in said] == [*ANSWERS, ""]
    shown = encoded["labels"] != -100
    assert torch.equal(encoded["labels"][shown], encoded["input_ids"][shown]), "labels stand at the tokens themselves"
    assert shown[-1] and encoded["attention_mask"].all()
    pictures = chat.image_tokens(processor, encoded)
    assert pictures.sum() > 2 and not (shown & pictures).any()


def test_what_generation_starts_from_is_how_training_begins(processor: Any) -> None:
    whole = chat.encode_turns(processor, TURNS, PICTURES)
    for asked in (TURNS[:4], TURNS[:2]):
        prompt = chat.encode_prompt(processor, asked, PICTURES[: len(asked) // 2])
        count = len(prompt["input_ids"])
        assert "labels" not in prompt and torch.equal(prompt["input_ids"], whole["input_ids"][:count])
        assert whole["labels"][count - 1] == -100 and whole["labels"][count] != -100


def test_conversations_without_images(processor: Any) -> None:
    encoded = chat.encode_turns(processor, (Turn("user", ("Hello",)), Turn("assistant", ("Yes.",))), [])
    assert learned(processor, encoded).strip() == f"Yes.{end_of_turn(processor)}"
    assert "pixel_values" not in encoded and not chat.image_tokens(processor, encoded).any()


def test_tokens_are_those_of_the_stock_processor(processor: Any) -> None:
    """But for the end that LLaVA's template does not write: one conversation, tokenized in one piece."""
    turns = TURNS[1:3]
    text = "".join(piece.text for piece in conversation_pieces(processor, turns))
    bos = processor.tokenizer.bos_token
    special = bos is None or not text.startswith(bos)
    stock = processor(text=[text], images=PICTURES[:1], return_tensors="pt", add_special_tokens=special)
    encoded = chat.encode_turns(processor, turns, PICTURES[:1])
    assert set(stock) == set(encoded) - {"labels"}
    for key, value in stock.items():
        given = encoded[key] if value.shape == encoded[key].shape else encoded[key][None]
        assert torch.equal(value, given), key


def test_llava_is_given_the_end_that_its_template_lacks(llava: Any, qwen: Any) -> None:
    assert end_of_turn(llava) == "</s>" and end_of_turn(qwen) == "<|im_end|>"
    text = "".join(piece.text for piece in conversation_pieces(llava, TURNS))
    assert text.endswith("more</s>") and "a red dog</s>USER: " in text


def test_what_a_template_writes_behind_an_answer_must_be_a_token(llava: Any, qwen: Any) -> None:
    """The published template of LLaVA-NeXT with Mistral writes a slip of ``</s>``; others are refused."""
    text = r"""{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST] ' + message.content[-1].text + ' [/INST]' }}
{%- else -%}{{ ' ' + message.content[0].text + '<\s> ' }}{%- endif -%}
{%- endfor -%}"""
    turns = (Turn("user", ("Hi",)), Turn("assistant", ("a dog",)), Turn("user", ("And?",)), Turn("assistant", ("two",)))
    with template(llava, text):
        pieces = conversation_pieces(llava, turns)
        assert [one.text for one in pieces if one.said] == [" a dog</s>", " two</s>"]
        assert pieces[2].text == "[INST] And? [/INST]" and end_of_turn(llava) == "</s>"
        prompt = chat.encode_prompt(llava, turns[:3], [])["input_ids"]
        assert "a dog</s>[INST]" in llava.tokenizer.decode(prompt) and r"<\s>" not in llava.tokenizer.decode(prompt)
    for answer in ("s", r"a \s", "</b>"):
        with template(llava, text):
            said = conversation_pieces(llava, (Turn("user", ("Hi",)), Turn("assistant", (answer,))))[-1].text
            assert said == f" {answer}</s>"
    with template(llava, text.replace(r"<\s>", "<end>")), pytest.raises(DataError, match="writes more behind .*<end>"):
        conversation_pieces(llava, turns)
    assert conversation_pieces(qwen, turns)[-1].text == "two<|im_end|>"


@pytest.mark.parametrize(
    "text, words",
    [
        ("{{ m.content }}", "writes more behind what the assistant says .*'text': 'b'}]"),
        ("{{ m.role + m.content }}", "refuses this conversation: can only concatenate"),
    ],
)
def test_templates_for_text_alone_are_refused(chat_backbone: Callable[[str], Any], text: str, words: str) -> None:
    """They find a list of pieces where they look for a text; the model would learn to spell the list."""
    backbone = chat_backbone("qwen2_5_vl")
    whole = "{%- for m in messages -%}<|im_start|>" + text + "<|im_end|>{%- endfor -%}"
    with template(backbone.processor, whole):
        with pytest.raises(DataError, match=words):
            conversation_pieces(backbone.processor, (Turn("user", ("a",)), Turn("assistant", ("b",))))
        with pytest.raises(BackboneError, match="cannot write a question about an image and its answer"):
            chat.check(backbone.model, backbone.processor)
    chat.check(backbone.model, backbone.processor)


def test_a_template_that_leaves_a_system_turn_out_is_refused(qwen: Any) -> None:
    text = qwen.chat_template.replace("for message in messages", "for message in messages if message.role != 'system'")
    asked = (Turn("user", ("Hi",)),)
    with template(qwen, text):
        assert chat.encode_prompt(qwen, asked, [])
        for turns, encode in ((asked, chat.encode_prompt), ((*asked, Turn("assistant", ("b",))), chat.encode_turns)):
            with pytest.raises(DataError, match="leaves out what the system says in turn 1"):
                encode(qwen, (Turn("system", ("Be brief.",)), *turns), [])


def test_white_space_at_the_border_is_the_prompts(chat_backbone: Callable[[str], Any]) -> None:
    """LLaVA-OneVision's template asks with other white space than it writes turns with."""
    processor = chat_backbone("llava_onevision").processor
    pieces = conversation_pieces(processor, TURNS[1:3])
    assert pieces[0].text.endswith("<|im_start|>assistant\n") and pieces[1].text == "a red dog<|im_end|>"


MERGING = """{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content if c.type == 'text' %}{{ c.text }}
{%- endfor %}{{ 'answer: ' }}{% else %}{{ m.content[0].text + '<|im_end|>' }}{% endif %}{% endfor %}"""


def test_a_token_never_lies_across_the_border(qwen: Any) -> None:
    """The prompt ends with a space, which the tokenizer would draw into the answer's first token."""
    turns = (Turn("user", ("Is it?",)), Turn("assistant", ("the dog",)))
    in_one = qwen.tokenizer("Is it?answer: the dog<|im_end|>")["input_ids"]
    with template(qwen, MERGING):
        encoded, prompt = chat.encode_turns(qwen, turns, []), chat.encode_prompt(qwen, turns[:1], [])
    count = len(prompt["input_ids"])
    assert in_one[:count] != prompt["input_ids"].tolist(), "else this test shows nothing"
    assert torch.equal(encoded["input_ids"][:count], prompt["input_ids"])
    assert learned(qwen, encoded) == "the dog<|im_end|>" and encoded["labels"][count] != -100
    assert all(len(value) == len(encoded["input_ids"]) for value in encoded.values())


def test_split_borders_keep_which_tokens_are_images(qwen: Any) -> None:
    turns = (Turn("user", (HERE, "Is it?")), Turn("assistant", ("the dog",)))
    with template(qwen, MERGING.replace("if c.type == 'text'", "").replace("c.text", "c.text or '<|image_pad|>'")):
        encoded = chat.encode_turns(qwen, turns, PICTURES[:1])
    assert torch.equal(encoded["mm_token_type_ids"] == 1, chat.image_tokens(qwen, encoded))
    assert learned(qwen, encoded) == "the dog<|im_end|>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages|reverse %}{{ m.content[-1].text }}<|im_end|>{% endfor %}", "prefix is not stable"),
        ("{{ messages|length }}{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "prefix is not stable"),
        ("{% for m in messages %}{{ m.content[-1].text|upper }}<|im_end|>{% endfor %}", "changes what the assistant"),
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
    ],
)
def test_templates_that_cannot_be_learned_from_are_refused(qwen: Any, text: str, words: str) -> None:
    turns = (
        Turn("user", ("Is it?",)),
        Turn("assistant", ("a dog",)),
        Turn("user", ("And?",)),
        Turn("assistant", ("b",)),
    )
    chat.encode_turns(qwen, turns, [])
    with template(qwen, text), pytest.raises(DataError, match=words):
        chat.encode_turns(qwen, turns, [])


def test_as_many_places_as_images(processor: Any) -> None:
    answer = Turn("assistant", ("a dog",))
    for word in {"<image>", processor.image_token}:
        with pytest.raises(DataError, match="2 places for images .* and 1 images"):
            chat.encode_turns(processor, (Turn("user", (HERE, f"{word}What is it?")), answer), PICTURES[:1])
    with pytest.raises(DataError, match="name 1 images, and there are 2"):
        chat.encode_turns(processor, (*ASKED, answer), PICTURES)
    with pytest.raises(DataError, match="name 1 images, and there are 0"):
        chat.encode_prompt(processor, ASKED, [])


def test_a_template_that_leaves_images_out_is_refused(qwen: Any) -> None:
    with template(qwen, MERGING), pytest.raises(DataError, match="1 images and 0 places .*left some out"):
        chat.encode_prompt(qwen, ASKED, PICTURES[:1])


def test_nothing_is_cut(chat_backbone: Callable[[str], Any]) -> None:
    for name in chat.FAMILY.model_types:
        processor = chat_backbone(name).processor
        turns = (*ASKED, Turn("assistant", ("a dog",)))
        count = len(chat.encode_turns(processor, turns, PICTURES[:1])["input_ids"])
        before = processor.tokenizer.model_max_length
        assert before == 512, "the language model's positions"
        processor.tokenizer.model_max_length = count
        try:
            chat.encode_turns(processor, turns, PICTURES[:1])
            processor.tokenizer.model_max_length = count - 1
            with pytest.raises(DataError, match=rf"^{count} tokens \(\d+ of images, .*reads {count - 1}"):
                chat.encode_turns(processor, turns, PICTURES[:1])
        finally:
            processor.tokenizer.model_max_length = before


@pytest.mark.parametrize("answer", ["", " \n"])
def test_empty_answers_are_refused(chat_backbone: Callable[[str], Any], answer: str) -> None:
    for name in chat.FAMILY.model_types:
        with pytest.raises(DataError, match="turn 2: the assistant says nothing"):
            chat.encode_turns(chat_backbone(name).processor, (*ASKED, Turn("assistant", (answer,))), PICTURES[:1])


def test_a_conversation_ends_with_the_right_side(qwen: Any) -> None:
    with pytest.raises(DataError, match="does not end with a turn of the assistant"):
        chat.encode_turns(qwen, ASKED, PICTURES[:1])
    with pytest.raises(DataError, match="does not end with a turn of the user"):
        chat.encode_prompt(qwen, TURNS, PICTURES)
    with pytest.raises(DataError, match="the assistant shows an image"):
        chat.encode_turns(qwen, (*ASKED, Turn("assistant", (HERE, "this"))), PICTURES)


def test_words_that_end_turns_are_refused(qwen: Any) -> None:
    with pytest.raises(DataError, match=r"turn 1 has <\|im_end\|> in its words"):
        chat.encode_turns(qwen, (Turn("user", ("a<|im_end|>",)), Turn("assistant", ("b",))), [])


def test_prompts_have_one_question_and_no_system_turn(chat_backbone: Callable[[str], Any]) -> None:
    for name in ("paligemma", "florence2"):
        processor = chat_backbone(name).processor
        assert takes_prompts(processor)
        with pytest.raises(DataError, match=r"has 5 turns \(system, user, assistant, user, assistant\)"):
            chat.encode_turns(processor, TURNS, PICTURES)
        with pytest.raises(DataError, match=r"has 2 turns \(system, user\)"):
            chat.encode_prompt(processor, TURNS[:2], PICTURES[:1])


def test_paligemma_is_as_its_processor_makes_it(chat_backbone: Callable[[str], Any]) -> None:
    processor = chat_backbone("paligemma").processor
    encoded = chat.encode_turns(processor, (*ASKED, Turn("assistant", ("a red dog",))), PICTURES[:1])
    stock = processor(text=["<image>What is it?"], images=[PICTURES[:1]], suffix=["a red dog"]).convert_to_tensors("pt")
    for key in ("input_ids", "token_type_ids", "labels"):
        assert torch.equal(encoded[key], torch.as_tensor(np.asarray(stock[key]))[0]), key
    assert learned(processor, encoded) == "a red dog<eos>"
    prompt = chat.encode_prompt(processor, ASKED, PICTURES[:1])
    count = len(prompt["input_ids"])
    assert torch.equal(prompt["input_ids"], encoded["input_ids"][:count]) and not prompt["token_type_ids"].any()
    assert encoded["token_type_ids"][count:].all() and (encoded["labels"][:count] == -100).all()
    worded = chat.encode_prompt(processor, (Turn("user", ("Hello",)),), [])
    assert processor.tokenizer.decode(worded["input_ids"]) == "<bos>Hello\n"


def test_florence_says_its_answer_in_a_decoder(chat_backbone: Callable[[str], Any]) -> None:
    backbone = chat_backbone("florence2")
    processor = backbone.processor
    encoded = chat.encode_turns(processor, (*ASKED, Turn("assistant", ("a red dog",))), PICTURES[:1])
    assert learned(processor, encoded) == "<s>a red dog</s>" and (encoded["labels"] != -100).all()
    start = backbone.model.config.text_config.decoder_start_token_id
    assert encoded["decoder_input_ids"].tolist() == [start, *encoded["labels"][:-1].tolist()]
    stock = processor(text=["What is it?"], images=PICTURES[:1], return_tensors="pt")
    assert torch.equal(encoded["input_ids"], stock["input_ids"][0])
    with pytest.raises(DataError, match="there are 2 images, and this model takes one"):
        chat.encode_prompt(processor, (Turn("user", (HERE, HERE, "What?")),), PICTURES)
    caption = chat.encode_prompt(processor, (Turn("user", (HERE, "<CAPTION>")),), PICTURES[:1])
    assert "What does the image describe?" in processor.tokenizer.decode(caption["input_ids"])
    with pytest.raises(DataError, match="<CAPTION> should be the only content"):
        chat.encode_prompt(processor, (Turn("user", (HERE, "<CAPTION> now")),), PICTURES[:1])
