"""Pretrain `builtin:glyph-blip`, the small BLIP captioner in the package, on clean print of every character.

    python scripts/pretrain_glyph_blip.py --steps 6000             # trains, then writes mmtune/assets/glyph_blip
    python scripts/pretrain_glyph_blip.py --export                 # writes the asset from the newest checkpoint
    python scripts/pretrain_glyph_blip.py --steps 8000 --resume    # goes on from it

Pictures, names, draws and the learning rate's shape are those of `pretrain_glyph_clip.py`, and the vision tower begins
as that of `builtin:glyph-clip`, as the first BLIP began as a ViT that knew ImageNet. A run that was resumed before its
last quarter is the run that was asked for `--steps` from the start: batches are functions of (seed, step) alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

from transformers import (  # noqa: E402
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil  # noqa: E402

from mmtune.glyphs.characters import caption_of, list_glyphs  # noqa: E402
from scripts.glyph_assets import finish_asset, load_checkpoint, read_options, save_checkpoint, write_half  # noqa: E402
from scripts.pretrain_glyph_clip import ASSET as CLIP_ASSET  # noqa: E402
from scripts.pretrain_glyph_clip import SIDE, GlyphSet, learning_rate_at  # noqa: E402
from scripts.score_glyph_blip import generate_names, score_looks, write_model_card  # noqa: E402

ASSET = REPOSITORY / "mmtune" / "assets" / "glyph_blip"
CACHE = REPOSITORY / ".cache" / "glyph_blip"
TEXT_LENGTH = 64  # tokens; the longest name has about 20
VOCABULARY = 1280  # word pieces
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")  # ids 0 to 5
PAD, CLASS, END, START = 0, 2, 3, 5  # a caption is [DEC] pieces [SEP], as BLIP has it
HELD_OUT_SCORED = 512  # pictures that are captioned at each scoring


def list_pieces(names: list[str]) -> list[str]:
    """The vocabulary: special tokens, every ASCII character as a piece, and what byte-pair merges of the names make.

    The merges are learned with a mark before each word: the WordPiece trainer numbers its `##` pieces in the order of a
    hash table, another one in every process, and breaks ties by these numbers.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    mark = "\u2581"
    ascii_characters = [chr(point) for point in range(33, 127) if not chr(point).isupper()]
    single = [*ascii_characters, *(f"##{character}" for character in ascii_characters)]
    merging = Tokenizer(models.BPE())
    merging.pre_tokenizer = pre_tokenizers.Metaspace(replacement=mark)
    merging.train_from_iterator(names, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False))
    merged = sorted(merging.get_vocab().items(), key=lambda item: item[1])  # the rarest joins come last
    pieces = (piece[1:] if piece.startswith(mark) else f"##{piece}" for piece, _ in merged if piece != mark)
    return [*SPECIAL, *single, *(piece for piece in pieces if piece not in single)][:VOCABULARY]


def build_tokenizer(names: list[str]) -> PreTrainedTokenizerFast:
    """Word pieces of the names. Words end at white space alone, so the hyphen of `hyphen-minus` survives decoding.

    Any text of printable ASCII has tokens; other letters are unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {piece: index for index, piece in enumerate(list_pieces(names))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLASS), ("[SEP]", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=TEXT_LENGTH,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[DEC]",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(names: list[str]) -> BlipProcessor:
    """The tokenizer and the Pillow image processor: bicubic to 32 x 32, values in [-1, 1]."""
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return BlipProcessor(image_processor=images, tokenizer=build_tokenizer(names))


def build_model() -> BlipForConditionalGeneration:
    """About 2.3 million parameters, the most that fits 5 MB in float16; two thirds of them see, one third writes."""
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": TEXT_LENGTH, "pad_token_id": PAD,
        "bos_token_id": START, "eos_token_id": END, "sep_token_id": END,
    }  # fmt: skip
    vision = {
        "hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 5, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8, "initializer_range": 0.02,
    }  # fmt: skip
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))


@torch.no_grad()
def take_vision(model: BlipForConditionalGeneration, pixels: torch.Tensor) -> None:
    """Give the vision tower the weights of glyph-clip's.

    CLIP normalises the embedded patches before its first layer, BLIP does not. That step is folded into the embedding:
    exactly for the class token, with the mean deviation over `pixels` float32[B, 3, 32, 32] for the patches.
    """
    clip = CLIPModel.from_pretrained(CLIP_ASSET, dtype=torch.float32).vision_model
    old, new, norm = clip.embeddings, model.vision_model.embeddings, clip.pre_layrnorm
    deviation = old(pixels).std(-1, correction=0).mean(0)  # float32[17]
    new.class_embedding.zero_()  # the class token's whole embedding stands in its position
    first = old.class_embedding + old.position_embedding.weight[0]
    positions = old.position_embedding.weight - old.position_embedding.weight.mean(-1, keepdim=True)
    scale = norm.weight / deviation[1:].mean()  # one for all patches, as they share the filter
    new.position_embedding[0] = positions * scale + norm.bias
    new.position_embedding[0, 0] = norm(first)
    filters = old.patch_embedding.weight - old.patch_embedding.weight.mean(0)
    new.patch_embedding.weight.copy_(filters * scale[:, None, None, None])
    new.patch_embedding.bias.zero_()
    model.vision_model.post_layernorm.load_state_dict(clip.post_layernorm.state_dict())
    for ours, theirs in zip(model.vision_model.encoder.layers, clip.encoder.layers, strict=True):
        attention = theirs.self_attn
        for kind in ("weight", "bias"):
            parts = [getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            getattr(ours.self_attn.qkv, kind).copy_(torch.cat(parts))
        ours.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())


def compute_loss(
    model: BlipForConditionalGeneration, data: GlyphSet, indices: np.ndarray, jitter: np.random.Generator | None
) -> torch.Tensor:
    """Mean cross-entropy over the pieces of the names and their ends."""
    texts = data.load_texts(indices)
    shown = texts["input_ids"].clone()
    shown[:, 0] = START
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    pixels = data.load_pixels(indices, jitter)
    return model(pixel_values=pixels, input_ids=shown, attention_mask=texts["attention_mask"], labels=labels).loss


@torch.no_grad()
def score_held_out(model: BlipForConditionalGeneration, data: GlyphSet, processor: BlipProcessor) -> dict[str, float]:
    """Loss and share of held-out pictures whose greedy caption is their name, or that of a character drawn alike."""
    model.eval()
    indices = np.random.default_rng(0).permutation(np.flatnonzero(data.held_out))[:HELD_OUT_SCORED]
    loss = np.mean([compute_loss(model, data, part, None).item() for part in np.array_split(indices, 4)])
    said = generate_names(model, processor, data.load_pixels(indices, None))
    alike_of = {data.names[name]: alike for name, alike in zip(data.name_of, data.alike, strict=True)}
    exact = [text == data.names[data.name_of[index]] for text, index in zip(said, indices, strict=True)]
    true = [alike_of.get(text) == data.alike[index] for text, index in zip(said, indices, strict=True)]
    model.train()
    return {
        "held_out_loss": float(loss),
        "held_out_exact": float(np.mean(exact)),
        "held_out_true": float(np.mean(true)),
    }


def train(
    options: argparse.Namespace, data: GlyphSet, model: BlipForConditionalGeneration, processor: BlipProcessor
) -> dict[str, Any]:
    """Train to `options.steps`; returns (and keeps in the cache) the log: one dict per scoring, and the seconds."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))
    settings = {"batch": options.batch, "learning_rate": options.learning_rate, "seed": options.seed}
    log = {"step": 0, "seconds": 0.0, "rows": [], "settings": settings, "pieces": name_pieces(processor)}
    if options.resume:
        log = go_on(model, processor, optimizer)
        assert log["settings"] == settings, f"the checkpoint was trained with {log['settings']}"
    recent: list[float] = []
    since = time.monotonic()
    model.train()
    for step in range(log["step"], options.steps):
        rate = learning_rate_at(step, options.steps, options.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices = data.draw_batch(options.seed, step, options.batch)
        with torch.autocast("cpu", torch.bfloat16):  # two to three times as fast where the processor knows it
            loss = compute_loss(model, data, indices, np.random.default_rng([options.seed, step, 1]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            now = time.monotonic()
            log["seconds"] += now - since
            since = now
            row = {"step": step + 1, "loss": float(np.mean(recent)), **score_held_out(model, data, processor)}
            log = {**log, "step": step + 1, "rows": [*log["rows"], row]}
            save_checkpoint(CACHE, model, optimizer, log)
            print(json.dumps({**row, "learning_rate": rate, "seconds": round(log["seconds"])}), flush=True)
            recent.clear()
    return log


def name_pieces(processor: BlipProcessor) -> str:
    """A digest of the vocabulary in its order."""
    tokenizer = processor.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest()


def go_on(
    model: BlipForConditionalGeneration, processor: BlipProcessor, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Restore weights (and the optimizer), return the log."""
    log = load_checkpoint(CACHE, model, optimizer)
    assert log["pieces"] == name_pieces(processor), "the checkpoint was trained with other word pieces"
    return log


def export(model: BlipForConditionalGeneration, processor: BlipProcessor, log: dict[str, Any]) -> None:
    """Write the asset: weights in float16, config in float32 (so it loads as float32), processor, model card.

    The scores in the card are those of the stored weights, read back.
    """
    write_half(ASSET, model, build_model(), processor)
    stored = BlipForConditionalGeneration.from_pretrained(ASSET, dtype=torch.float32).eval()
    write_model_card(ASSET / "README.md", stored, log, score_looks(stored, BlipProcessor.from_pretrained(ASSET)))
    finish_asset(ASSET, log["step"])


def main() -> None:
    """Read the options, then train, or export what was trained."""
    options = read_options(__doc__ or "", batch=128)
    torch.manual_seed(options.seed)
    model = build_model()
    glyphs = list_glyphs()
    processor = build_processor(sorted({caption_of(glyph.character) for glyph in glyphs}))
    if options.export:
        log = go_on(model, processor)
    else:
        data = GlyphSet(glyphs)
        data.encode(processor)
        print(f"{len(glyphs)} pictures, {len(data.names)} names, {int(data.held_out.sum())} held out", flush=True)
        take_vision(model, data.load_pixels(data.draw_batch(options.seed, 0, 512), None))
        log = train(options, data, model, processor)
    export(model, processor, log)


if __name__ == "__main__":
    main()
