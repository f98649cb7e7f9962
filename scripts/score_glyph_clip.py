"""Scores of `builtin:glyph-clip` on the test characters in every look, and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, CLIPProcessor

from mmtune.glyphs.characters import caption_of, list_glyphs, map_alike, split_of
from mmtune.glyphs.looks import LOOKS, draw_look

CARD = """---
license: apache-2.0
library_name: transformers
tags: [clip, mmtune]
---
# glyph-clip

A CLIP model of {parameters:,} parameters that knows printed characters by their Unicode names. It travels inside mmtune
as `builtin:glyph-clip`, so that a first run, the tests and the examples need no download. It is a real `CLIPModel` with
its processor: `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained` load the folder, in float32, from float16
weights.

- **Data:** {pictures:,} pictures (64 x 64 pixels, seen at 32 x 32) of {names:,} characters in the DejaVu Sans, Serif,
  Mono and STIX General fonts that matplotlib ships; the text is the character's Unicode name in lower case. Clean
  black print on white, all splits: adapting it to another look then needs no new characters. 2.5 % of the
  pictures (not of the characters), chosen by hash, were held out.
- **Training:** `python scripts/pretrain_glyph_clip.py --steps {steps} --batch {batch}
  --learning-rate {learning_rate:g} --seed {seed}`: InfoNCE in both directions, AdamW, {seconds:,.0f} seconds on two
  shared CPU cores. Characters that some font draws alike (Latin X, Greek Chi, Cyrillic Ha) and several fonts of one
  character are never negatives of each other.
- **Not for:** anything but single characters. It has seen no photograph, no word and no sentence.

## Scores of the stored weights

Test split: {queries:,} names, {gallery:,} pictures in all fonts. The rank of a query is that of its best positive;
ties count half.

| look | text to image R@1 | R@10 | image to text R@1 | R@10 | loss |
|---|---|---|---|---|---|
{scores}

The other two looks are not in its training data. "loss" is InfoNCE over batches of 128 pictures.

## Log

| step | training loss | held-out loss | held-out image to text R@1, of all names |
|---|---|---|---|
{log}

The fonts keep their own licences (Bitstream Vera and DejaVu; STIX). Weights: the licence of mmtune.
"""


@torch.no_grad()
def embed_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """float32[B, 3, H, W] -> unit rows float32[B, D]."""
    return torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output)


@torch.no_grad()
def embed_texts(model: CLIPModel, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Padded token ids int64[B, T] with their lengths int64[B] -> unit rows float32[B, D], 512 texts at a time."""
    rows = []
    for ids, counts in zip(tokens.split(512), lengths.split(512), strict=True):
        mask = (torch.arange(ids.shape[1])[None] < counts[:, None]).long()
        rows.append(model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output)
    return torch.nn.functional.normalize(torch.cat(rows))


def rank_best_positives(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """float[Q, G] scores and bool[Q, G] -> float64[Q]: 1 + negatives above the best positive + half of its equals."""
    best = np.where(positive, scores, -np.inf).max(1, keepdims=True)
    above = ((scores > best) & ~positive).sum(1)
    equal = ((scores == best) & ~positive).sum(1)
    return 1.0 + above + 0.5 * equal


def compute_batch_loss(scores: np.ndarray, positive: np.ndarray, scale: float, size: int = 128) -> float:
    """Mean InfoNCE, both directions, over shuffled batches of `size` pictures (rows of float[G, G])."""
    order = np.random.default_rng(0).permutation(len(scores))
    losses = []
    for start in range(0, len(order) - size + 1, size):
        batch = order[start : start + size]
        block = torch.from_numpy(scores[np.ix_(batch, batch)]).double() * scale
        others = torch.from_numpy(positive[np.ix_(batch, batch)]) & ~torch.eye(size, dtype=torch.bool)
        block = block.masked_fill(others, -torch.inf)
        target = torch.arange(size)
        both = torch.nn.functional.cross_entropy(block, target), torch.nn.functional.cross_entropy(block.T, target)
        losses.append((both[0] + both[1]).item() / 2)
    return float(np.mean(losses))


def score_splits(model: CLIPModel, processor: CLIPProcessor) -> dict[str, Any]:
    """Scores on the test characters, by look, and the sizes of the question."""
    glyphs = [glyph for glyph in list_glyphs() if split_of(glyph.alike) == "test"]
    names = sorted({caption_of(glyph.character) for glyph in glyphs})
    alike_of = {caption_of(glyph.character): glyph.alike for glyph in glyphs}
    encoded = processor.tokenizer(names, padding=True, return_tensors="pt")
    texts = embed_texts(model, encoded["input_ids"], encoded["attention_mask"].sum(1)).numpy()
    positive = np.array([alike_of[name] for name in names])[:, None] == np.array([glyph.alike for glyph in glyphs])
    index = np.array([names.index(caption_of(glyph.character)) for glyph in glyphs])
    result: dict[str, Any] = {"queries": len(names), "gallery": len(glyphs), "looks": {}}
    for look in LOOKS:
        rows = []
        for start in range(0, len(glyphs), 256):
            pictures = [draw_look(glyph, look, 0) for glyph in glyphs[start : start + 256]]
            pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
            rows.append(embed_images(model, pixels))
        scores = texts @ torch.cat(rows).numpy().T
        to_image, to_text = rank_best_positives(scores, positive), rank_best_positives(scores.T, positive.T)
        result["looks"][look] = {
            "text_to_image_recall@1": float((to_image <= 1).mean()),
            "text_to_image_recall@10": float((to_image <= 10).mean()),
            "image_to_text_recall@1": float((to_text <= 1).mean()),
            "image_to_text_recall@10": float((to_text <= 10).mean()),
            "loss": compute_batch_loss(
                scores.T[:, index], positive.T[:, index], float(model.logit_scale.detach().exp())
            ),
        }
    return result


def write_model_card(path: Path, model: CLIPModel, log: dict[str, Any], scores: dict[str, Any]) -> None:
    """The asset's README: what it is, how it was made, what it scores."""
    score_rows = [
        f"| {look} | " + " | ".join(f"{v:.3f}" for v in row.values()) + " |" for look, row in scores["looks"].items()
    ]
    shown = log["rows"][3::4] if len(log["rows"]) > 8 else log["rows"]  # every 1,000 steps say enough
    shown = shown if not log["rows"] or shown[-1] is log["rows"][-1] else [*shown, log["rows"][-1]]
    log_rows = [
        f"| {row['step']} | {row['loss']:.4f} | {row['held_out_loss']:.4f} | {row['held_out_recall@1']:.3f} |"
        for row in shown
    ]
    text = CARD.format(
        parameters=model.num_parameters(),
        pictures=len(list_glyphs()),
        names=sum(len(members) for members in map_alike().values()),
        steps=log["step"],
        **log["settings"],
        seconds=log["seconds"],
        queries=scores["queries"],
        gallery=scores["gallery"],
        scores="\n".join(score_rows),
        log="\n".join(log_rows),
    )
    path.write_text(text)
