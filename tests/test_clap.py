"""CLAP: its twin against transformers' own forward pass, windows of long sounds, and what is trained in its towers."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adapter_examples import backbone_of, section
from sound_files import tone

from mmtune.adapters import attach, set_modes
from mmtune.backbones import Backbone, Section, describe, load, tiny_folder
from mmtune.backbones.clap import encode_drawn, encode_media
from mmtune.ground.errors import BackboneError, RecipeError
from mmtune.ground.seeding import generator_for
from mmtune.ground.sound_reading import Sound

TEXTS = ("a dog", "the line of the inner ocean, over and over", "é", "Two Words")

ROUNDING = 1e-5
"""Two orders of summation in float32, on embeddings of length 1 and logits near 10."""

TWIN_RATE, HEARD = 8000, 8000
"""Samples per second of the twin, and the longest sound it hears whole, in samples."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("clap", tmp_path_factory.mktemp("clap") / "tiny")


@pytest.fixture(scope="module")
def fused_folder(folder: Path) -> Path:
    """A twin of the checkpoints with fusion, which look at four pictures of a long sound."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    made = folder.with_name("fused")
    config = ClapConfig.from_pretrained(folder)
    config.audio_config.enable_fusion = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(config)
    model.save_pretrained(made)
    load(Section(id=str(folder))).processor.save_pretrained(made)
    ClapFeatureExtractor.from_pretrained(folder, truncation="fusion").save_pretrained(made)
    (made / "processor_config.json").unlink()
    return made


@pytest.fixture(scope="module")
def clap(folder: Path) -> Backbone:
    return load(Section(id=str(folder)))


@pytest.fixture(scope="module")
def fused(fused_folder: Path) -> Backbone:
    return load(Section(id=str(fused_folder)))


def sound(number: int = 1, seconds: float = 0.6, rate: int = TWIN_RATE) -> Sound:
    return Sound(tone(number, seconds, rate).astype(np.float32), rate)


def batch_of(backbone: Backbone, sounds: list[Sound] | None = None) -> dict[str, torch.Tensor]:
    sounds = sounds or [sound(1), sound(2, 1.7), sound(3, 0.2, 44_100), sound(4, 1.0, 11_025)]
    pairs = zip(sounds, TEXTS, strict=False)
    encode = backbone.family.encode_text
    encoded = [{**encode_media(backbone.processor, one), **encode(backbone.processor, text)} for one, text in pairs]
    return dict(backbone.family.pad(backbone.processor, encoded))


@pytest.mark.parametrize("which", ["clap", "fused"])
def test_embeddings_are_those_of_transformers(which: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(which)
    batch = batch_of(backbone)
    with torch.no_grad():
        audio, text = (
            backbone.family.embed_media(backbone.model, batch),
            backbone.family.embed_text(backbone.model, batch),
        )
        expected = backbone.model(**batch)
    scale, bias = backbone.family.temperature(backbone.model)
    assert bias is None
    torch.testing.assert_close(audio @ text.T * scale.exp(), expected.logits_per_audio, rtol=1e-5, atol=ROUNDING)
    if which == "clap":  # it tells different inputs apart, else the comparison would mean nothing
        for embeds in (audio, text):
            assert (embeds @ embeds.T - torch.eye(4)).max() < 0.995


def test_encoding_is_that_of_the_reloaded_processor(clap: Backbone) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(clap.description.folder)
    short = sound(seconds=0.3)
    theirs = processor(audio=short.waveform, text=["two words"], sampling_rate=TWIN_RATE, return_tensors="pt")
    ours = encode_media(clap.processor, short)
    assert ours["input_features"].dtype == torch.float32 and set(ours) == {"input_features"}
    assert torch.equal(ours["input_features"], theirs["input_features"][0].float())
    ids = clap.family.encode_text(clap.processor, "two words")["input_ids"]
    assert ids.tolist() == theirs["input_ids"][0].tolist()


def test_a_long_sound_is_heard_in_the_middle_and_in_training_where_the_draw_says(clap: Backbone) -> None:
    long = sound(seconds=2.5)
    spare = len(long.waveform) - HEARD

    def window(first: int) -> torch.Tensor:
        cut = Sound(long.waveform[first : first + HEARD], TWIN_RATE)
        return encode_media(clap.processor, cut)["input_features"]

    def drawn(epoch: int) -> torch.Tensor:
        return encode_drawn(clap.processor, long, generator_for(3, "encode", epoch, "id"))["input_features"]

    assert torch.equal(encode_media(clap.processor, long)["input_features"], window((spare + 1) // 2))
    np.random.seed(0)
    first = drawn(0)
    np.random.seed(1)
    assert torch.equal(drawn(0), first), "numpy's global generator has no say in it"
    place = int(generator_for(3, "encode", 0, "id").random(3)[0] * (spare + 1))
    assert torch.equal(first, window(place)) and not torch.equal(first, window(place + 200))
    assert not torch.equal(drawn(1), first)
    short = sound(seconds=1.0)
    generator = generator_for(3, "encode", 0, "id")
    assert torch.equal(encode_drawn(clap.processor, short, generator)["input_features"], window_of(clap, short))


def window_of(backbone: Backbone, short: Sound) -> torch.Tensor:
    return encode_media(backbone.processor, short)["input_features"]


def test_fusion_is_that_of_transformers_for_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 mel bands, which transformers shrinks to whatever the extractor makes."""
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(sampling_rate=TWIN_RATE, hop_length=128, max_length_s=1, frequency_max=4000)
    assert extractor.truncation == "fusion"
    for seconds in (1.02, 2.5):
        draws = iter(generator_for(7, "x").random(3))
        monkeypatch.setattr(np.random, "choice", lambda there, draws=draws: there[int(next(draws) * len(there))])
        long = sound(seconds=seconds)
        theirs = extractor(long.waveform, sampling_rate=TWIN_RATE, return_tensors="pt")
        ours = encode_drawn(SimpleNamespace(feature_extractor=extractor), long, generator_for(7, "x"))
        assert ours["is_longer"].tolist() == [True] == theirs["is_longer"][0].tolist()
        assert torch.equal(ours["input_features"], theirs["input_features"][0].float())
    other = encode_drawn(SimpleNamespace(feature_extractor=extractor), long, generator_for(8, "x"))
    assert torch.equal(other["input_features"][0], ours["input_features"][0])
    assert not torch.equal(other["input_features"][1], ours["input_features"][1])


def test_a_short_sound_is_not_longer_and_its_company_changes_nothing(fused: Backbone) -> None:
    """transformers calls one random sound of a batch longer where none is."""
    short, long = sound(1, 0.5), sound(2, 2.5)
    encoded = encode_media(fused.processor, short)
    assert encoded["is_longer"].tolist() == [False]
    assert all(torch.equal(picture, encoded["input_features"][0]) for picture in encoded["input_features"])
    together, alone = batch_of(fused, [short, long]), batch_of(fused, [short])
    with torch.no_grad():
        both = fused.family.embed_media(fused.model, together)
        one = fused.family.embed_media(fused.model, alone)
        flipped = fused.family.embed_media(fused.model, {**alone, "is_longer": torch.tensor([[True]])})
    torch.testing.assert_close(both[:1], one, rtol=0, atol=ROUNDING)
    assert (flipped - one).abs().max() > 10 * ROUNDING


def test_a_merge_without_a_recipe_is_proven_on_made_up_tones(clap: Backbone) -> None:
    from mmtune.merge_building import open_samples
    from mmtune.merge_proof import NUM_SAMPLES, embed, encode_samples

    samples, where = open_samples(None, "audio")
    embeds = embed(clap, encode_samples(clap, samples))["image"]
    assert where == "made-up tones" and len(embeds) == NUM_SAMPLES
    assert (embeds @ embeds.T - torch.eye(NUM_SAMPLES)).max() < 1 - ROUNDING


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantized_twin_keeps_its_projections_and_embeds_about_the_same(
    folder: Path, clap: Backbone, quantize: Any
) -> None:
    backbone = load(Section(id=str(folder), quantize=quantize))
    plain = {name for name, module in backbone.model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == {f"{part}_projection.linear{n}" for part in ("audio", "text") for n in (1, 2)}
    with torch.no_grad():
        embeds = backbone.family.embed_media(backbone.model, batch_of(backbone))
        expected = clap.family.embed_media(clap.model, batch_of(clap))
    assert 0.5 < float((embeds * expected).sum(dim=-1).min()) < 1 - ROUNDING  # of one direction, and not the same


def test_a_hair_too_long_fits_as_it_is(fused: Backbone) -> None:
    """Less than one frame too long: no room to move a window."""
    encoded = encode_media(fused.processor, Sound(np.zeros(HEARD + 5, dtype=np.float32), TWIN_RATE))
    assert encoded["is_longer"].tolist() == [False] and encoded["input_features"].shape == (4, 63, 16)


def test_the_text_limit_leaves_out_the_positions_that_are_never_used(clap: Backbone) -> None:
    ids = clap.family.encode_text(clap.processor, "over " * 100)["input_ids"]
    assert len(ids) == 32 == clap.model.config.text_config.max_position_embeddings - 2 and ids[-1] == 2
    with torch.no_grad():
        clap.family.embed_text(clap.model, {"input_ids": ids[None]})
        with pytest.raises((IndexError, RuntimeError)):
            clap.family.embed_text(clap.model, {"input_ids": torch.cat([ids, ids[:1]])[None]})


def test_company_changes_no_audio_embedding(clap: Backbone) -> None:
    batch = batch_of(clap)
    with torch.no_grad():
        together = clap.family.embed_media(clap.model, batch)
        alone = [clap.family.embed_media(clap.model, {"input_features": one[None]}) for one in batch["input_features"]]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=ROUNDING)


def test_padding_changes_no_text_embedding_and_without_its_mask_it_would(clap: Backbone) -> None:
    together = batch_of(clap)
    alone = clap.family.encode_text(clap.processor, TEXTS[0])
    with torch.no_grad():
        embeds = clap.family.embed_text(clap.model, together)[:1]
        expected = clap.family.embed_text(clap.model, {key: value[None] for key, value in alone.items()})
        unmasked = clap.family.embed_text(clap.model, {"input_ids": together["input_ids"]})[:1]
    torch.testing.assert_close(embeds, expected, rtol=0, atol=ROUNDING)
    assert (unmasked - expected).abs().max() > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_embeds_in_float32(folder: Path, clap: Backbone, dtype: str) -> None:
    backbone = load(Section(id=str(folder)), dtype=dtype)
    with torch.no_grad():
        embeds = backbone.family.embed_media(backbone.model, batch_of(backbone))
        expected = clap.family.embed_media(clap.model, batch_of(clap))
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds, expected, rtol=0, atol=0.1)  # 8 bits of mantissa on decibels near -30


LORA: dict[str, Any] = {"kind": "lora", "parts": ["audio", "text"], "rank": 2}

STAGE = "audio_model.audio_encoder.layers.1.blocks."
ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
MLP = ("intermediate.dense", "output.dense")


@pytest.mark.parametrize(("word", "names"), [("attention", ATTENTION), ("mlp", MLP)])
def test_targets_are_found_in_the_swin_blocks_of_the_chosen_stages(
    folder: Path, word: str, names: tuple[str, ...]
) -> None:
    adapted = attach(backbone_of(folder), section(**LORA, targets=[word], layers="last 1"))
    hit = {name.split(".lora_A")[0] for name in adapted.trainable() if ".lora_A" in name}
    text = {f"text_model.encoder.layer.1.{name}" for name in names}
    assert hit == text | {f"{STAGE}{block}.{name}" for block in (0, 1) for name in names}


def test_layers_of_the_audio_part_are_its_stages(folder: Path) -> None:
    description = describe(Section(id=str(folder)))
    assert description.num_layers == {"audio": 2, "text": 2} and description.traits.modality == "audio"
    assert description.family.num_layers({}) == {"audio": 4, "text": 12}
    with pytest.raises(RecipeError, match="'last 3' asks for more than the 2 layers there are"):
        attach(backbone_of(folder), section(**LORA, targets=["attention"], layers="last 3"))


def test_one_temperature_is_trained_and_the_other_stays(folder: Path) -> None:
    adapted = attach(backbone_of(folder), section(**LORA, targets=["mlp"]))
    assert "logit_scale_a" in adapted.trainable() and "logit_scale_t" not in adapted.trainable()
    log_scale, _ = adapted.backbone.family.temperature(adapted.model)
    assert log_scale.item() == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize("kind", [{**LORA, "targets": ["attention"]}, {"kind": "full", "parts": ["audio"]}])
def test_the_batch_norm_never_moves_and_frozen_text_has_no_dropout(folder: Path, kind: dict[str, Any]) -> None:
    adapted = attach(backbone_of(folder), section(**kind))
    set_modes(adapted)
    model, norm = adapted.model, adapted.model.audio_model.audio_encoder.batch_norm  # type: ignore[union-attr]
    assert not norm.training
    before = {name: value.clone() for name, value in model.named_buffers()}
    batch = batch_of(adapted.backbone)
    one = adapted.backbone.family.embed_media(model, batch)
    one.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    dropouts = [module.training for name, module in model.text_model.named_modules() if "dropout" in name]  # type: ignore[union-attr]
    assert any(dropouts) == (kind["kind"] == "lora")
    assert any(module.training for module in model.audio_model.modules())  # type: ignore[union-attr]
    norm.train()  # the negation: on batch statistics an embedding depends on its neighbours, and the buffers move
    adapted.backbone.family.embed_media(model, batch)
    assert not torch.equal(norm.running_mean, before["audio_model.audio_encoder.batch_norm.running_mean"])


def test_what_does_not_belong_together_is_refused(
    folder: Path, fused_folder: Path, changed_copy: Callable[..., Path]
) -> None:
    cases = {
        "'rand_trunc', and it says 'fusion'": (fused_folder, {"audio_config": {"enable_fusion": False}}),
        "truncation: 'fusion', and it says 'rand_trunc'": (folder, {"audio_config": {"enable_fusion": True}}),
        "positions are counted from it, but the tokenizer pads with id 1": (
            folder,
            {"text_config": {"pad_token_id": 5}},
        ),
        "makes 16 mel bands, audio_config.num_mel_bins is 8": (folder, {"audio_config": {"num_mel_bins": 8}}),
    }
    for number, (message, (source, changes)) in enumerate(cases.items()):
        with pytest.raises(BackboneError, match=message):
            check_only(changed_copy(source, name=f"case{number}", **changes), source)


def check_only(changed: Path, source: Path) -> None:
    """The family's own check, on the weights of ``source`` under the config of ``changed``."""
    from transformers import ClapConfig

    backbone = load(Section(id=str(source)))
    backbone.model.config = ClapConfig.from_pretrained(changed)
    backbone.family.check(backbone.model, backbone.processor)
