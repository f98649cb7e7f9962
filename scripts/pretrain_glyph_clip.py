"""Pretrain `builtin:glyph-clip`, the small CLIP model that travels in the package, on clean print of every character.

    python scripts/pretrain_glyph_clip.py --steps 6000             # trains, then writes mmtune/assets/glyph_clip
    python scripts/pretrain_glyph_clip.py --export                 # writes the asset from the newest checkpoint
    python scripts/pretrain_glyph_clip.py --steps 8000 --resume    # goes on from it

The learning rate is constant until the last quarter and then falls to zero. So a run that was resumed before its last
quarter is the run that was asked for `--steps` from the start: batches are functions of (seed, step) alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402

from mmtune.glyphs.characters import Glyph, caption_of, list_glyphs  # noqa: E402
from mmtune.glyphs.drawing import draw_clean  # noqa: E402
from mmtune.ground.seeding import fraction_for  # noqa: E402
from scripts.glyph_assets import finish_asset, load_checkpoint, read_options, save_checkpoint, write_half  # noqa: E402
from scripts.score_glyph_clip import embed_images, embed_texts, score_splits, write_model_card  # noqa: E402

ASSET = REPOSITORY / "mmtune" / "assets" / "glyph_clip"
CACHE = REPOSITORY / ".cache" / "glyph_clip"
SIDE = 32  # pixels the model sees
TEXT_LENGTH = 32  # tokens
VOCABULARY = 1024
PAD, UNKNOWN, START, END = "<|pad|>", "<|unknown|>", "<|start|>", "<|end|>"  # ids 0 to 3: an end of 2 means "old CLIP"


def build_tokenizer(names: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the names; any text has tokens, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, UNKNOWN, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(names, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 2), (END, 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_LENGTH,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor(names: list[str]) -> CLIPProcessor:
    """The tokenizer and the Pillow image processor: bicubic to 32 x 32, values in [-1, 1]."""
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=size, do_center_crop=False, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return CLIPProcessor(image_processor=images, tokenizer=build_tokenizer(names))


def build_model() -> CLIPModel:
    """About 2.3 million parameters, the most that fits 5 MB in float16; two thirds of them see, one third reads."""
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": TEXT_LENGTH, "hidden_act": "gelu",
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8, "hidden_act": "gelu",
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


class GlyphSet:
    """All pictures and names as arrays, drawn once.

    Attributes:
        pixels: uint8[N, 32, 32], one per (character, font).
        names: the C names; `tokens` int64[C, T] and `lengths` int64[C] are theirs.
        name_of, alike: int64[N], index of the picture's name and of its alike class.
        held_out: bool[N], pictures (not characters) that training never shows, by hash.
    """

    def __init__(self, glyphs: tuple[Glyph, ...]) -> None:
        from PIL import Image

        self.glyphs = glyphs
        bicubic = Image.Resampling.BICUBIC  # what the image processor uses: training sees what users will feed
        drawn = (draw_clean(glyph.character, glyph.font).resize((SIDE, SIDE), bicubic) for glyph in glyphs)
        self.pixels = np.stack([np.asarray(picture) for picture in drawn])
        fonts_of = Counter(glyph.character for glyph in glyphs)
        characters = sorted(fonts_of)
        self.names = [caption_of(character) for character in characters]
        position = {character: index for index, character in enumerate(characters)}
        self.name_of = np.array([position[glyph.character] for glyph in glyphs])
        self.alike = np.unique([glyph.alike for glyph in glyphs], return_inverse=True)[1]
        num_fonts = np.array([fonts_of[glyph.character] for glyph in glyphs])
        held = np.array([fraction_for(glyph.key, "held out") < 0.025 for glyph in glyphs])
        self.held_out = held & (num_fonts > 2)  # its character is still seen in other fonts
        # A character of one font would be seen a sixteenth as often as one of sixteen; the root meets half-way.
        weight = np.where(self.held_out, 0.0, num_fonts**-0.5)
        self.cumulated = np.cumsum(weight / weight.sum())

    def encode(self, processor: CLIPProcessor) -> None:
        """Tokenize every name once."""
        encoded = processor.tokenizer(self.names, padding=True, truncation=True, return_tensors="np")
        self.tokens = encoded["input_ids"].astype(np.int64)
        self.lengths = encoded["attention_mask"].sum(1)

    def draw_batch(self, seed: int, step: int, size: int) -> np.ndarray:
        """int64[B]: indices of the pictures of step `step`."""
        draws = np.random.default_rng([seed, step, 0]).random(size)
        return np.minimum(np.searchsorted(self.cumulated, draws), len(self.cumulated) - 1)

    def load_pixels(self, indices: np.ndarray, jitter: np.random.Generator | None) -> torch.Tensor:
        """float32[B, 3, 32, 32] in [-1, 1]; with `jitter` each picture moves by at most one pixel each way."""
        batch = self.pixels[indices]
        if jitter is not None:
            padded = np.pad(batch, ((0, 0), (1, 1), (1, 1)), constant_values=255)
            dy, dx = jitter.integers(0, 3, (2, len(indices), 1, 1))
            rows = dy + np.arange(SIDE)[None, :, None]
            columns = dx + np.arange(SIDE)[None, None, :]
            batch = padded[np.arange(len(indices))[:, None, None], rows, columns]
        return (torch.from_numpy(batch).float() / 127.5 - 1.0)[:, None].expand(-1, 3, -1, -1)

    def load_texts(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """Token ids and attention mask int64[B, T] of the pictures' names, padded to the longest of them."""
        names = self.name_of[indices]
        lengths = torch.from_numpy(self.lengths[names])
        width = int(lengths.max())
        ids = torch.from_numpy(self.tokens[names][:, :width])
        return {"input_ids": ids, "attention_mask": (torch.arange(width)[None] < lengths[:, None]).long()}


def compute_loss(
    model: CLIPModel, data: GlyphSet, indices: np.ndarray, jitter: np.random.Generator | None
) -> torch.Tensor:
    """InfoNCE in both directions; characters drawn alike, and other fonts of one character, are no negatives."""
    images = model.get_image_features(pixel_values=data.load_pixels(indices, jitter)).pooler_output
    texts = model.get_text_features(**data.load_texts(indices)).pooler_output
    scores = functional.normalize(images) @ functional.normalize(texts).T * model.logit_scale.exp()
    alike = torch.from_numpy(data.alike[indices])
    others = (alike[:, None] == alike[None]) & ~torch.eye(len(indices), dtype=torch.bool)
    scores = scores.masked_fill(others, -torch.inf)
    target = torch.arange(len(indices))
    return (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2


def learning_rate_at(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Warm-up, constant, and a fall to zero over the last quarter (1 - sqrt).

    Source: Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".
    """
    start = 0.75 * steps
    fall = 1.0 if step < start else 1.0 - math.sqrt((step - start) / (steps - start))
    return peak * min(1.0, (step + 1) / warmup) * fall


@torch.no_grad()
def score_held_out(model: CLIPModel, data: GlyphSet) -> dict[str, float]:
    """Loss (batches of 256) and share of held-out pictures whose nearest name, of all names, is true."""
    model.eval()
    indices = np.random.default_rng(0).permutation(np.flatnonzero(data.held_out))
    batches = [indices[start : start + 256] for start in range(0, len(indices) - 255, 256)]
    losses = [compute_loss(model, data, batch, None).item() for batch in batches]
    images = torch.cat([embed_images(model, data.load_pixels(batch, None)) for batch in batches])
    texts = embed_texts(model, torch.from_numpy(data.tokens), torch.from_numpy(data.lengths))
    alike_of_name = np.zeros(len(data.names), dtype=np.int64)
    alike_of_name[data.name_of] = data.alike
    nearest = (images @ texts.T).argmax(1).numpy()
    hits = alike_of_name[nearest] == data.alike[np.concatenate(batches)]
    model.train()
    return {"held_out_loss": float(np.mean(losses)), "held_out_recall@1": float(hits.mean())}


def train(options: argparse.Namespace, data: GlyphSet, model: CLIPModel) -> dict[str, Any]:
    """Train to `options.steps`; returns (and keeps in the cache) the log: one dict per scoring, and the seconds."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    settings = {"batch": options.batch, "learning_rate": options.learning_rate, "seed": options.seed}
    log: dict[str, Any] = {"step": 0, "seconds": 0.0, "rows": [], "settings": settings}
    if options.resume:
        log = load_checkpoint(CACHE, model, optimizer)
        assert log["settings"] == settings, f"the checkpoint was trained with {log['settings']}"
    recent: list[float] = []
    since = time.monotonic()
    for step in range(log["step"], options.steps):
        rate = learning_rate_at(step, options.steps, options.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices = data.draw_batch(options.seed, step, options.batch)
        loss = compute_loss(model, data, indices, np.random.default_rng([options.seed, step, 1]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(100.0))
        recent.append(loss.item())
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            now = time.monotonic()
            log["seconds"] += now - since
            since = now
            row = {"step": step + 1, "loss": float(np.mean(recent)), **score_held_out(model, data)}
            log = {**log, "step": step + 1, "rows": [*log["rows"], row]}
            save_checkpoint(CACHE, model, optimizer, log)
            print(json.dumps({**row, "learning_rate": rate, "seconds": round(log["seconds"])}), flush=True)
            recent.clear()
    return log


def export(model: CLIPModel, processor: CLIPProcessor, log: dict[str, Any]) -> None:
    """Write the asset: weights in float16, config in float32 (so it loads as float32), processor, model card.

    The scores in the card are those of the stored weights, read back.
    """
    write_half(ASSET, model, build_model(), processor)
    stored = CLIPModel.from_pretrained(ASSET, dtype=torch.float32).eval()
    write_model_card(ASSET / "README.md", stored, log, score_splits(stored, CLIPProcessor.from_pretrained(ASSET)))
    finish_asset(ASSET, log["step"])


def main() -> None:
    """Read the options, then train, or export what was trained."""
    options = read_options(__doc__ or "", batch=256)
    torch.manual_seed(options.seed)
    model = build_model()
    glyphs = list_glyphs()
    processor = build_processor(sorted({caption_of(glyph.character) for glyph in glyphs}))
    if options.export:
        log = load_checkpoint(CACHE, model)
    else:
        data = GlyphSet(glyphs)
        data.encode(processor)
        print(f"{len(glyphs)} pictures, {len(data.names)} names, {int(data.held_out.sum())} held out", flush=True)
        log = train(options, data, model)
    export(model, processor, log)


if __name__ == "__main__":
    main()
