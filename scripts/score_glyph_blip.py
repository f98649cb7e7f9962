"""Scores of `builtin:glyph-blip` by split and look, and its model card.

python scripts/score_glyph_blip.py        # prints the table of the stored asset; some minutes on two cores
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)

from transformers import BlipForConditionalGeneration, BlipProcessor  # noqa: E402

from mmtune.glyphs.characters import Glyph, caption_of, list_glyphs, map_alike, split_of  # noqa: E402
from mmtune.glyphs.looks import LOOKS, draw_look  # noqa: E402
from mmtune.metrics.cider_d import cider_d  # noqa: E402

ASSET = REPOSITORY / "mmtune" / "assets" / "glyph_blip"
MAX_NEW_TOKENS = 32  # the longest name has 21 pieces
SPLITS = ("train", "validation", "test")
PICTURES = 2048  # scored of each split and look, by a fixed draw
SCORES = ("exact match", "own name", "CIDEr-D")

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-to-text
tags: [blip, image-captioning, mmtune]
---
# glyph-blip

A BLIP captioner of {parameters:,} parameters that writes the Unicode name of a printed character. It travels inside
mmtune as `builtin:glyph-blip`, so that a first captioning run, the tests and the examples need no download. It is a
real `BlipForConditionalGeneration` with its processor: `from_pretrained` of the class and of `AutoProcessor` load the
folder, in float32, from float16 weights. Greedy search is what it was scored with
(`generate(**inputs, max_new_tokens=32)`).

- **Data:** {pictures:,} pictures (64 x 64 pixels, seen at 32 x 32) of {names:,} characters in the DejaVu Sans, Serif,
  Mono and STIX General fonts that matplotlib ships; the text is the character's Unicode name in lower case. Clean
  black print on white, all splits: adapting it to another look then needs no new characters. 2.5 % of the
  pictures (not of the characters), chosen by hash, were held out.
- **Training:** `python scripts/pretrain_glyph_blip.py --steps {steps} --batch {batch}
  --learning-rate {learning_rate:g} --seed {seed}`: cross-entropy of the name's word pieces and its end, AdamW, products
  in bfloat16, {seconds:,.0f} seconds on one shared CPU core. The vision tower began as that of `builtin:glyph-clip`.
- **Text:** a caption is `[DEC] pieces [SEP]`. The {vocabulary:,} pieces are of lower-case ASCII; other letters are
  unknown.
- **Not for:** anything but single characters. It has seen no photograph, no word and no sentence.

## Scores of the stored weights

{scored:,} pictures of each split and look, all fonts, greedy captions of at most 32 tokens.

{scores}

A caption is an exact match where it is the name of the character, or of another that some font draws alike (Latin X,
Greek Chi, Cyrillic Ha); "own name" counts the first alone, of which identical drawings allow 0.93 at most. CIDEr-D is
against all these names; its document frequencies are those of the rows of the split. The splits are those of
`kind: glyphs`; the pretraining has seen the characters of all of them, in the clean look alone.

## Log

| step | training loss | held-out loss | held-out exact match |
|---|---|---|---|
{log}

The fonts keep their own licences (Bitstream Vera and DejaVu; STIX). Weights: the licence of mmtune.
"""


@torch.no_grad()
def generate_names(
    model: BlipForConditionalGeneration, processor: BlipProcessor, pixels: torch.Tensor, batch: int = 256
) -> list[str]:
    """The greedy caption of each of float32[B, 3, H, W]."""
    said: list[str] = []
    for part in pixels.split(batch):
        ids = model.generate(pixel_values=part, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1)
        said += processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in said]


def pick_glyphs(split: str) -> list[Glyph]:
    """`PICTURES` of the split, the same on every call."""
    glyphs = [glyph for glyph in list_glyphs() if split_of(glyph.alike) == split]
    chosen = np.random.default_rng(0).permutation(len(glyphs))[:PICTURES]
    return [glyphs[index] for index in sorted(chosen)]


def true_names(glyph: Glyph) -> list[str]:
    """The character's own name first, then those of the characters that some font draws alike."""
    others = (character for character in map_alike()[glyph.alike] if character != glyph.character)
    return [caption_of(glyph.character), *map(caption_of, others)]


def score_look(
    model: BlipForConditionalGeneration, processor: BlipProcessor, glyphs: list[Glyph], look: str
) -> dict[str, float]:
    """The `SCORES` of the greedy captions of the glyphs' pictures in one look."""
    pictures = [draw_look(glyph, look, 0) for glyph in glyphs]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    said = generate_names(model, processor, pixels)
    names = [true_names(glyph) for glyph in glyphs]
    exact = np.mean([text in known for text, known in zip(said, names, strict=True)])
    own = np.mean([text == known[0] for text, known in zip(said, names, strict=True)])
    return dict(zip(SCORES, (float(exact), float(own), float(cider_d(said, names))), strict=True))


def score_looks(
    model: BlipForConditionalGeneration, processor: BlipProcessor
) -> dict[tuple[str, str], dict[str, float]]:
    """(split, look) -> scores."""
    model.eval()
    drawn = {split: pick_glyphs(split) for split in SPLITS}
    return {(split, look): score_look(model, processor, drawn[split], look) for split in SPLITS for look in LOOKS}


def write_table(scores: dict[tuple[str, str], dict[str, float]]) -> Iterator[str]:
    """One markdown row per split and look."""
    yield f"| split | look | {' | '.join(SCORES)} |"
    yield "|---|---|" + "---|" * len(SCORES)
    for (split, look), row in scores.items():
        yield f"| {split} | {look} | " + " | ".join(f"{row[name]:.3f}" for name in SCORES) + " |"


def write_model_card(
    path: Path,
    model: BlipForConditionalGeneration,
    log: dict[str, Any],
    scores: dict[tuple[str, str], dict[str, float]],
) -> None:
    """The asset's README: what it is, how it was made, what it scores."""
    apart = max(1, len(log["rows"]) // 8)
    shown = log["rows"][apart - 1 :: apart]
    shown = shown if not log["rows"] or shown[-1] is log["rows"][-1] else [*shown, log["rows"][-1]]
    log_rows = [
        f"| {row['step']} | {row['loss']:.4f} | {row['held_out_loss']:.4f} | {row['held_out_true']:.3f} |"
        for row in shown
    ]
    text = CARD.format(
        parameters=model.num_parameters(),
        vocabulary=model.config.text_config.vocab_size,
        pictures=len(list_glyphs()),
        names=sum(len(members) for members in map_alike().values()),
        steps=log["step"],
        **log["settings"],
        seconds=log["seconds"],
        scored=PICTURES,
        scores="\n".join(write_table(scores)),
        log="\n".join(log_rows),
    )
    path.write_text(text)


def main() -> None:
    """Print the table of the stored asset."""
    model = BlipForConditionalGeneration.from_pretrained(ASSET, dtype=torch.float32)
    print("\n".join(write_table(score_looks(model, BlipProcessor.from_pretrained(ASSET)))))


if __name__ == "__main__":
    main()
