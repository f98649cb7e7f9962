"""Tiny encoders, alone or paired: real classes, random weights that are always the same, real tokenizers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.backbones._dual_encoder import spread_weights
from mmtune.backbones._encoder_pair import draw, tower_config
from mmtune.backbones._encoder_table import TABLES, TEXT

if TYPE_CHECKING:
    from torch import nn

WIDTH, POSITIONS, SIZE = 32, 32, 32
TOWER = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def tiny_dual_encoder(vision: str, text: str) -> "tuple[nn.Module, Any]":
    """Two tiny encoders with their projections as one model, and its processor."""
    import transformers

    image_tower, pictures = tiny_encoder(vision)
    text_tower, tokenizer = tiny_encoder(text)
    config = transformers.VisionTextDualEncoderConfig(
        vision_config=tower_config(image_tower.config.to_dict(), "vision"),
        text_config=tower_config(text_tower.config.to_dict(), "text"),
        projection_dim=16,
    )
    model = transformers.VisionTextDualEncoderModel(config, vision_model=image_tower, text_model=text_tower)
    draw(model, ("visual_projection.weight", "text_projection.weight"))
    processor = transformers.VisionTextDualEncoderProcessor(image_processor=pictures, tokenizer=tokenizer)
    return model, processor


def tiny_encoder(model_type: str) -> tuple[Any, Any]:
    """One encoder, and its image processor or its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel, CLIPVisionModel

    part = "text" if model_type in TEXT else "vision"
    own = TABLES[part][model_type].tiny
    companion = tiny_tokenizer(model_type) if part == "text" else tiny_pictures()
    if part == "text":
        settings: dict[str, Any] = {"vocab_size": len(companion), "pad_token_id": companion.pad_token_id}
        settings |= {"max_position_embeddings": POSITIONS}
        settings |= {"eos_token_id": companion.sep_token_id or companion.eos_token_id}
    else:
        settings = {"image_size": SIZE, "patch_size": 8}
    shared = TOWER if TABLES[part][model_type].layers else {}
    if model_type.startswith("dinov2"):
        shared = {key: value for key, value in TOWER.items() if key != "intermediate_size"}
    config = AutoConfig.for_model(model_type, **{**shared, **settings, **own})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPVisionModel(config) if model_type == "clip_vision_model" else AutoModel.from_config(config)
    spread_weights(model, seed=1 if part == "text" else 0)
    return model.eval(), companion


def tiny_pair(vision: str, text: str, folder: Path) -> dict[str, str]:
    """Write two tiny encoders as a hub would hold them; the keys ``vision`` and ``text`` of a backbone section."""
    from mmtune.backbones._quiet_loading import quiet

    written = {}
    for part, model_type in (("vision", vision), ("text", text)):
        with quiet():
            for each in tiny_encoder(model_type):
                each.save_pretrained(folder / part)
        written[part] = str(folder / part)
    return written


def tiny_pictures() -> Any:
    """An image processor that makes squares of 32 pixels."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def tiny_tokenizer(model_type: str) -> Any:
    """BERT's WordPiece over letters, RoBERTa's byte pairs where positions count from the padding id, or CLIP's."""
    from transformers import BertTokenizer, CLIPTokenizer, RobertaTokenizer

    from mmtune.backbones.clip import tiny_vocabulary

    if model_type == "clip_text_model":
        vocab, merges = tiny_vocabulary()
        return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)
    if TEXT[model_type].offset:
        from tokenizers.pre_tokenizers import ByteLevel

        merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("o", "n")]
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), *map("".join, merges), "<mask>"]
        return RobertaTokenizer(
            vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=POSITIONS
        )
    letters = [chr(code) for code in range(33, 127)] + ["the", "##he", "##in", "##er", "##on"]
    letters = list(dict.fromkeys(letter.lower() for letter in letters))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters if len(one) == 1)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=POSITIONS)
