"""Tiny chat models: real classes that run, tell images and texts apart, and reload by plain transformers."""

import functools
import json

import pytest
from chat_examples import picture

from mmtune.backbones._chat_processor import without_video
from mmtune.backbones._chat_twins import TWINS, tiny_chat

IMAGE_TOKENS = {
    "llava": 16,
    "qwen2_5_vl": 12,
    "idefics3": 5,
    "llava_next": 14,
    "llava_onevision": 14,
    "qwen2_vl": 12,
    "qwen3_vl": 12,
    "smolvlm": 5,
    "paligemma": 16,
    "gemma3": 4,
    "internvl": 12,
    "florence2": 5,
}
"""Tokens of an image of 60 x 40 pixels, counted from how each model cuts it (see the twins' docstrings)."""

IMAGES_ONLY = ("llava", "llava_next", "idefics3", "paligemma", "gemma3", "florence2")
"""Their processors have no video half, and load without torchvision."""

SEEN = 1e-3
"""Least difference of logits, whose spread is 0.3 and more, that counts as one; float32 noise is below 1e-5."""

TEXTS = ("What is it? a red dog", "éß 你好 🙂\tx", "<|im_start|> a  b")


@pytest.fixture(params=TWINS)
def kind(request):
    return request.param


@functools.cache
def made(kind):
    return tiny_chat(kind)


def encoded(kind, processor, *, seed=0, text="a red dog", prompt=False):
    """A question about an image with its answer, or without it, as the model's own processor makes it."""
    from transformers.processing_utils import ProcessorMixin  # SmolVLM's own function asks for the video half

    if processor.chat_template is None:
        written = ("<image>" if kind == "paligemma" else "") + "What is it?" + ("" if prompt else f" {text}")
    else:
        question = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        turns = [{"role": "user", "content": question}]
        turns += [] if prompt else [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        written = ProcessorMixin.apply_chat_template(processor, turns, add_generation_prompt=prompt)
    first = processor.tokenizer.bos_token
    options = {"add_special_tokens": not (first and written.startswith(first))} if processor.chat_template else {}
    if kind == "paligemma":  # its processor makes arrays of tensors, in a way that numpy is about to drop
        batch = processor(images=[picture(seed)], text=[written]).convert_to_tensors("pt")
        return {name: value for name, value in batch.items() if name != "labels"}
    return processor(images=[picture(seed)], text=[written], return_tensors="pt", **options)


def logits(model, batch):
    import torch

    with torch.no_grad():
        return model(**batch, labels=batch["input_ids"]).logits


def test_image_and_text_are_seen(kind):
    import torch

    model, processor = made(kind)
    batch = encoded(kind, processor)
    plain = logits(model, batch)
    assert torch.isfinite(plain).all()
    assert torch.isfinite(model(**batch, labels=batch["input_ids"]).loss)
    assert torch.equal(plain, logits(model, batch))
    other = encoded(kind, processor, seed=1)
    assert torch.equal(other["input_ids"], batch["input_ids"])
    assert (logits(model, other) - plain)[:, -1].abs().max() > SEEN
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, -4] += 1
    assert (logits(model, other) - plain)[:, -1].abs().max() > SEEN


def test_tokens_of_an_image(kind):
    model, processor = made(kind)
    count = int((encoded(kind, processor)["input_ids"] == model.config.image_token_id).sum())
    assert count == IMAGE_TOKENS[kind] <= 16
    with pytest.raises((ValueError, IndexError)):
        broken = encoded(kind, processor)
        keep = (broken["input_ids"][0] != model.config.image_token_id).nonzero()[:, 0]
        keep = sorted([*keep.tolist(), int((broken["input_ids"][0] == model.config.image_token_id).nonzero()[0])])
        of_tokens = {name: value[:, keep] for name, value in broken.items() if value.shape == broken["input_ids"].shape}
        logits(model, {**broken, **of_tokens})


def test_generation_says_something(kind):
    model, processor = made(kind)
    batch = encoded(kind, processor, prompt=True)
    said = [model.generate(**batch, max_new_tokens=8, do_sample=False, num_beams=1)[0] for _ in range(2)]
    new = said[0] if model.config.is_encoder_decoder else said[0][batch["input_ids"].shape[1] :]
    assert said[0].tolist() == said[1].tolist()
    assert len(new) >= 4 and len(set(new.tolist())) > 1


def test_dropout_is_on_in_training_alone(kind):
    import torch

    model, processor = made(kind)
    batch = encoded(kind, processor)
    try:
        model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            assert not torch.equal(logits(model, batch), logits(model, batch))
    finally:
        model.eval()
    assert torch.equal(logits(model, batch), logits(model, batch))


def test_twin_is_small_and_always_the_same(kind):
    import torch

    before = torch.random.get_rng_state()
    again, _ = tiny_chat(kind)
    assert torch.equal(before, torch.random.get_rng_state())
    model, _ = made(kind)
    assert sum(weight.numel() for weight in model.parameters()) < 200_000
    weights = dict(again.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


def test_reloads_by_plain_transformers(kind, tmp_path):
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    model, processor = made(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = encoded(kind, processor)
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model) and not any(report.values())
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert tokenizer.chat_template is None or tokenizer.chat_template == processor.chat_template
    pictures = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(pictures) is type(processor.image_processor)
    assert pictures.to_dict() == processor.image_processor.to_dict()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2**20


def test_processor_reloads(kind, tmp_path):
    import torch
    import transformers

    _, processor = made(kind)
    tiny_chat(kind)[0].config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    whole = getattr(transformers, type(processor).__name__)
    if kind in IMAGES_ONLY:
        again = transformers.AutoProcessor.from_pretrained(tmp_path)
        assert type(again) is whole is type(processor)
    else:
        parts = [transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")]
        parts += [transformers.AutoTokenizer.from_pretrained(tmp_path), None]
        own, _ = whole.get_processor_dict(tmp_path)
        again = without_video(whole).from_args_and_dict(parts, own)
    one, other = encoded(kind, again), encoded(kind, processor)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", [kind for kind in TWINS if kind not in IMAGES_ONLY])
def test_files_name_the_video_half(kind, tmp_path):
    import transformers

    _, processor = made(kind)
    processor.save_pretrained(tmp_path)
    for file in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        assert json.loads((tmp_path / file).read_text())["processor_class"] == type(processor).__name__
    videos = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert hasattr(transformers, videos["video_processor_type"])
    assert "image_processor" not in json.loads((tmp_path / "processor_config.json").read_text())


@pytest.mark.parametrize("kind", [kind for kind in TWINS if kind not in IMAGES_ONLY])
def test_video_half_is_left_out(kind):
    import transformers

    whole = getattr(transformers, type(made(kind)[1]).__name__)
    images_only = without_video(whole)
    assert "video_processor" in whole.get_attributes()
    assert images_only.get_attributes() == [name for name in whole.get_attributes() if name != "video_processor"]
    assert issubclass(images_only, whole) and images_only.__name__ == whole.__name__


def test_any_text_has_tokens_and_comes_back(kind):
    _, processor = made(kind)
    for text in TEXTS[:2]:
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
