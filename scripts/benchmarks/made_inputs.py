"""Data and models for the benchmarks, made on the spot: JPEG files like photos, captions, models at real size.

Weights are random, drawn once and saved as transformers saves them, so that every arm loads the same. Vocabularies are
small (letters), the embedding tables of the models as large as the published ones.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.work_table import SIZES, Work

WIDTH, HEIGHT, QUALITY = 640, 480, 90
LETTERS = (8, 30)
"""Fewest and most letters of a caption: each is a token, so a text of CLIP has 10 to 32."""


def make_data(folder: Path, work: Work) -> Path:
    """JPEG files and ``pairs.jsonl``, one row per image and caption; returns the table."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    random, rows, seen = np.random.default_rng(0), [], set()
    names = [f"{number:05d}.jpg" for number in range(work.images)]
    with ProcessPoolExecutor() as processes:
        list(processes.map(save_photo, [folder / "images" / name for name in names], range(work.images), chunksize=8))
    for name in names:
        for _ in range(work.captions):
            while (caption := make_caption(random)) in seen:
                pass
            seen.add(caption)
            rows.append({"image": name, "caption": caption})
    table = folder / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def save_photo(path: Path, number: int) -> None:
    """A picture with a photo's spectrum: noise at every scale, the coarser the stronger, under a few even shapes."""
    from PIL import Image

    random = np.random.default_rng(number)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0, dtype=np.float32)
    for cells, strength in ((4, 60), (16, 35), (64, 18), (320, 9)):
        coarse = random.normal(0, strength, (cells * 3 // 4, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., channel]).resize((WIDTH, HEIGHT)) for channel in range(3)]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    for _ in range(5):
        top, left = random.integers(0, HEIGHT - 60), random.integers(0, WIDTH - 60)
        bottom, right = top + random.integers(40, 200), left + random.integers(40, 200)
        pixels[top:bottom, left:right] = 0.6 * pixels[top:bottom, left:right] + 0.4 * random.integers(0, 256, 3)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)


def make_caption(random: np.random.Generator) -> str:
    """Words of one to six letters; between ``LETTERS`` of them in all (a space is no token of its own)."""
    left, words = int(random.integers(LETTERS[0], LETTERS[1] + 1)), []
    while left > 0:
        length = min(left, int(random.integers(1, 7)))
        words.append("".join(chr(97 + int(letter)) for letter in random.integers(0, 26, length)))
        left -= length
    return " ".join(words)


def save_model(folder: Path, work: Work) -> Path:
    """Model, tokenizer and image processor of a work, as a folder that ``from_pretrained`` takes."""
    import torch

    from mmtune.backbones._dual_encoder import spread_weights

    torch.manual_seed(0)
    model, processor = {"clip": make_clip, "blip": make_blip, "llava": make_llava}[work.family](work.model)
    spread_weights(model, seed=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_clip(size: str) -> tuple[Any, Any]:
    """ViT-B/32 or ViT-L/14 with their text towers, at 224 px."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from mmtune.backbones import clip

    if size == "tiny":
        return clip.tiny()
    vocab, _ = clip.tiny_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
    end = tokenizer.eos_token_id
    width, layers, patch = SIZES[size]
    text = {"hidden_size": width * 2 // 3} if size == "base32" else {"hidden_size": 768, "projection_dim": 768}
    heads = text["hidden_size"] // 64
    text |= {"intermediate_size": 4 * text["hidden_size"], "num_attention_heads": heads}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": end}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": width // 64, "patch_size": patch, "image_size": 224}
    projection = 512 if size == "base32" else 768
    config = CLIPConfig(
        text_config=text, vision_config={**vision, "projection_dim": projection}, projection_dim=projection
    )
    return CLIPModel(config), CLIPProcessor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer)


def make_blip(size: str) -> tuple[Any, Any]:
    """BLIP base that writes captions, at 384 px."""
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from mmtune.backbones import blip
    from mmtune.backbones._bert_text import tiny_tokenizer

    if size == "tiny":
        model, processor = blip.tiny(architecture="BlipForConditionalGeneration")
        return _without_dropout(model), processor
    tokenizer = tiny_tokenizer(512)
    text = {"num_attention_heads": 12, "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    config = transformers.BlipConfig(text_config=text, vision_config={"image_size": 384, "patch_size": 16})
    pictures = BlipImageProcessorPil(size={"height": 384, "width": 384})
    processor = transformers.BlipProcessor(image_processor=pictures, tokenizer=tokenizer)
    return transformers.BlipForConditionalGeneration(config), processor


def make_llava(size: str) -> tuple[Any, Any]:
    """LLaVA-1.5's shape: a ViT-B/16 at 224 px, a projector, and a LLaMA of 4 layers and width 512."""
    from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from mmtune.backbones import _chat_twins_llava, _chat_twins_templates
    from mmtune.backbones._chat_twins_parts import ids_of, text_of
    from mmtune.backbones._chat_twins_tokenizers import llama_tokenizer

    if size == "tiny":
        twin = _chat_twins_llava.llava()
        for part in (twin.config.text_config, twin.config.vision_config):
            part.attention_dropout = 0.0
        return _with_ends(AutoModelForImageTextToText.from_config(twin.config), twin.processor), twin.processor
    tokenizer = llama_tokenizer("<image>")
    text = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 8, "attention_dropout": 0.0, "vocab_size": 32_000}
    vision = {"model_type": "clip_vision_model", "patch_size": 16, "image_size": 224, "num_attention_heads": 12}
    vision |= {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "projection_dim": 512}
    ids = ids_of(tokenizer, image_token_index="<image>")
    config = LlavaConfig(vision_config=vision, text_config=text_of(tokenizer, **text), image_seq_length=196, **ids)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(),
        tokenizer=tokenizer,
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=_chat_twins_templates.LLAVA,
    )
    return _with_ends(AutoModelForImageTextToText.from_config(config), processor), processor


def _without_dropout(model: Any) -> Any:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.text_config.hidden_dropout_prob = model.config.text_config.attention_probs_dropout_prob = 0.0
    return model


def _with_ends(model: Any, processor: Any) -> Any:
    from transformers import GenerationConfig

    ids = {key: getattr(processor.tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    return model


def load_processor(folder: Path, family: str) -> Any:
    """The stock processor with its Pillow image half, as a peer loads it."""
    import transformers

    name = {"clip": "CLIPProcessor", "blip": "BlipProcessor", "llava": "LlavaProcessor"}[family]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pictures = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    if family != "llava":
        return getattr(transformers, name)(image_processor=pictures, tokenizer=tokenizer)
    from mmtune.backbones._chat_twins_templates import LLAVA

    own = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    keys = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
    given = {key: own[key] for key in keys}
    return transformers.LlavaProcessor(image_processor=pictures, tokenizer=tokenizer, chat_template=LLAVA, **given)
