"""CLAP: sounds and texts. A Swin transformer over mel spectrograms (HTS-AT), RoBERTa, and a two-layer projection each.

Sounds longer than the model hears (ten seconds) are cut to a window, or, by checkpoints with fusion, shown as a whole
at low resolution together with three windows. transformers draws the windows from numpy's global generator; here they
are a function of (seed, epoch, sample) in training and the middle ones otherwise. Shorter sounds are repeated.

The layers of the part ``audio`` are its stages (four in the published checkpoints, of 2, 2, 6 and 2 blocks), since each
works at half the resolution of the one before.

Source: Wu et al. 2023, https://arxiv.org/abs/2211.06687; LAION-AI/CLAP; transformers ``ClapModel``.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.backbones import _bert_text
from mmtune.backbones._bert_text import encode_text
from mmtune.backbones._dual_encoder import embed_text, normalise, num_tokens, spread_weights
from mmtune.backbones._family import Description, Family
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmtune.ground.sound_reading import Sound

__all__ = [
    "FAMILY",
    "check",
    "embed_media",
    "embed_text",
    "encode_drawn",
    "encode_media",
    "encode_text",
    "load_processor",
    "num_layers",
    "num_tokens",
    "pad",
    "temperature",
    "text_limit",
    "tiny",
]

FAMILY = Family(
    name="clap",
    model_types=("clap",),
    abilities=frozenset({"embed"}),
    parts={"audio": "audio_model", "text": "text_model"},
    layers={"audio": "audio_model.audio_encoder.layers", "text": "text_model.encoder.layer"},
    heads={"audio": ("audio_projection",), "text": ("text_projection",)},
    full_precision=("audio_projection", "text_projection"),
    temperature=("logit_scale_a",),
    processor_classes={"clap": "ClapProcessor"},
    targets={
        "mlp": {
            "audio": r"audio_model\..*\.blocks\.\d+\.(intermediate|output)\.dense",
            "text": r"text_model\.encoder\.layer\.\d+\.(intermediate|output)\.dense",
        }
    },
    new_weights=(r".*\.(position_ids|token_type_ids|num_batches_tracked)",),
    ignored_weights=(r".*\.(position_ids|token_type_ids)",),
    stems={"text": ("text_model.embeddings",)},
    sides={"media": ("audio",), "text": ("text",)},
    modality="audio",
)

SOUND_KEYS = ("input_features", "is_longer")

STAGES = (2, 2, 6, 2)
"""Blocks per stage where config.json is silent."""

MIDDLE = (0.5, 0.5, 0.5)
"""Where the windows lie when nothing is drawn."""


def num_layers(config: Mapping[str, Any]) -> dict[str, int]:
    """Stages of the audio tower, layers of the text tower."""
    audio, text = config.get("audio_config") or {}, config.get("text_config") or {}
    return {"audio": len(audio.get("depths") or STAGES), "text": int(text.get("num_hidden_layers", 12))}


def load_processor(description: Description) -> Any:
    """A ClapProcessor of the repository's feature extractor and tokenizer."""
    import transformers

    folder, trust = str(description.folder), description.section.trust_remote_code
    options = {"trust_remote_code": trust, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return transformers.ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def text_limit(config: Any) -> int:
    """RoBERTa counts positions from the padding id on, so that many of them are never used."""
    return int(config.text_config.max_position_embeddings) - int(config.text_config.pad_token_id) - 1


def encode_media(processor: Any, sound: "Sound") -> "dict[str, Tensor]":
    """One sound, always the same: the middle window of a long one.

    Returns:
        ``{"input_features": float32[C, frames, mels]}``, C 1; with fusion C is 4 and ``is_longer`` bool[1] says whether
        the four differ.
    """
    return _encode(processor.feature_extractor, sound, MIDDLE)


def encode_drawn(processor: Any, sound: "Sound", generator: np.random.Generator) -> "dict[str, Tensor]":
    """One sound for training: of a long one, windows that are drawn. Takes three numbers from the generator always."""
    return _encode(processor.feature_extractor, sound, tuple(generator.random(3)))


def _encode(extractor: Any, sound: "Sound", places: tuple[float, ...]) -> "dict[str, Tensor]":
    """Encode with windows at ``places``, each in [0, 1): from the first possible place to the last."""
    import torch

    waveform = sound.at(extractor.sampling_rate)
    heard, is_fused = extractor.nb_max_samples, extractor.truncation == "fusion"
    if is_fused and len(waveform) > heard:
        features, is_longer = _fuse(extractor, waveform, places)
    else:
        first = int(places[0] * (len(waveform) - heard + 1)) if len(waveform) > heard else 0
        made = extractor(waveform[first : first + heard], sampling_rate=extractor.sampling_rate, return_tensors="np")
        features, is_longer = made["input_features"][0], False
    encoded = {"input_features": torch.from_numpy(np.asarray(features, dtype=np.float32))}
    return {**encoded, "is_longer": torch.tensor([is_longer])} if is_fused else encoded


def _fuse(extractor: Any, waveform: np.ndarray, places: tuple[float, ...]) -> tuple[np.ndarray, bool]:
    """The four pictures of a long sound, float32[4, frames, mels]: all of it shrunk, and a window of each third.

    A sound shorter than one frame beyond the limit fits as it is, four times, and is not longer.
    """
    import torch
    from transformers.audio_utils import spectrogram, window_function

    mels = spectrogram(
        waveform,
        window_function(extractor.fft_window_size, "hann"),
        frame_length=extractor.fft_window_size,
        hop_length=extractor.hop_length,
        power=2.0,
        mel_filters=extractor.mel_filters,
        log_mel="dB",
    ).T
    frames = extractor.nb_max_samples // extractor.hop_length + 1
    if len(mels) <= frames:
        return np.stack([mels] * 4), False
    thirds = np.array_split(np.arange(len(mels) - frames + 1), 3)
    starts = [third[int(place * len(third))] if len(third) else 0 for third, place in zip(thirds, places, strict=True)]
    whole = torch.from_numpy(np.ascontiguousarray(mels))[None, None]
    shrunk = torch.nn.functional.interpolate(whole, size=(frames, mels.shape[1]), mode="bilinear", align_corners=False)
    return np.stack([shrunk[0, 0].numpy(), *(mels[start : start + frames] for start in starts)]), True


def pad(processor: Any, encoded: "Sequence[Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """Encoded samples (sounds, texts or both in one dict each) as one batch; text padded to the longest of them."""
    import torch

    keys = [key for key in SOUND_KEYS if encoded and key in encoded[0]]
    sounds = {key: torch.stack([one[key] for one in encoded]) for key in keys}
    return {**sounds, **_bert_text.pad(processor, encoded)}


def embed_media(model: "nn.Module", batch: "Mapping[str, Tensor]") -> "Tensor":
    """Embeddings float[B, D] of ``batch["input_features"]`` float[B, C, frames, mels], L2-normalised."""
    weights: Tensor = model.audio_model.audio_encoder.batch_norm.weight  # type: ignore[assignment, union-attr]
    inputs = {"input_features": batch["input_features"].to(weights.dtype)}
    if "is_longer" in batch:
        inputs["is_longer"] = batch["is_longer"]
    return normalise(model.get_audio_features(**inputs).pooler_output)  # type: ignore[operator]


def temperature(model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """The live log scale float[] of both directions, and no bias.

    CLAP's own loss uses ``logit_scale_a`` for both directions; ``logit_scale_t`` belongs to a second loss that the
    published checkpoints were not trained with, and stays as it is. transformers scales ``logits_per_audio`` by the
    first and ``logits_per_text`` by the second, so only ``logits_per_audio`` follows training; rankings need neither.

    Source: LAION-AI/CLAP ``ClipLoss`` without ``mlp_loss``.
    """
    return model.logit_scale_a, None  # type: ignore[return-value]


def check(model: "nn.Module", processor: Any) -> None:
    """See that features, tokens and towers belong together.

    Raises:
        BackboneError: the text tower's padding or first token is not the tokenizer's, or the feature extractor makes
            other spectrograms than the audio tower was built for.
    """
    _bert_text.check(model, processor)
    config: Any = model.config
    extractor, tokenizer, audio = processor.feature_extractor, processor.tokenizer, config.audio_config
    if tokenizer.pad_token_id != config.text_config.pad_token_id:
        raise BackboneError(
            f"text_config.pad_token_id is {config.text_config.pad_token_id} and positions are counted from it, but "
            f"the tokenizer pads with id {tokenizer.pad_token_id}: config.json and tokenizer do not belong together"
        )
    wanted = "fusion" if audio.enable_fusion else "rand_trunc"
    if extractor.truncation != wanted:
        raise BackboneError(
            f"audio_config.enable_fusion is {audio.enable_fusion}, for which preprocessor_config.json has to say "
            f"truncation: {wanted!r}, and it says {extractor.truncation!r}"
        )
    if extractor.feature_size != audio.num_mel_bins:
        raise BackboneError(
            f"the feature extractor makes {extractor.feature_size} mel bands, audio_config.num_mel_bins is "
            f"{audio.num_mel_bins}: preprocessor_config.json and config.json do not belong together"
        )


def tiny(model_type: str = "clap") -> "tuple[nn.Module, Any]":
    """A ClapModel with two stages of two blocks that hears one second at 8 kHz: random weights, always the same."""
    import torch
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    tokenizer = tiny_tokenizer(32)
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    text |= {"vocab_size": len(tokenizer), "max_position_embeddings": 34, "bos_token_id": 0, "eos_token_id": 2}
    audio = {"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [2, 2], "num_attention_heads": [2, 4]}
    audio |= {"num_hidden_layers": 2, "num_mel_bins": 16, "spec_size": 32, "window_size": 4, "aff_block_r": 4}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(config)
    spread_weights(model, seed=0)
    with torch.no_grad():  # decibels centred, as a trained checkpoint has them; else all sounds nearly coincide
        model.audio_model.audio_encoder.batch_norm.running_mean.fill_(-30.0)
        model.audio_model.audio_encoder.batch_norm.running_var.fill_(100.0)
    extractor = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=128,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=4000,
        truncation="rand_trunc",
    )
    return model, ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer)


def tiny_tokenizer(length: int) -> Any:
    """A RobertaTokenizer over bytes and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("o", "n"), ("l", "e")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), *map("".join, merges), "<mask>"]
    return RobertaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=length
    )
