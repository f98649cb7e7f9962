"""Families: the tiny twin of each, compared with what transformers itself computes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtune.backbones import Section, describe, load, tiny_folder
from mmtune.ground.errors import BackboneError, DataError
from mmtune.ground.kind_folder import kinds

TEXTS = ("a cat", "the lion on the line in the corner, over and over and over again", "é", "Two Words")
EMBED = {name: family for name, family in kinds("backbones").items() if "embed" in family.FAMILY.abilities}
IMAGES = {name: family for name, family in EMBED.items() if family.FAMILY.modality == "image"}
TWINS = [(name, one) for name, family in IMAGES.items() for one in family.FAMILY.model_types]


def pictures(count=4, size=(50, 40)):
    from PIL import Image

    numbers = np.random.default_rng(0)
    shape = (size[1], size[0], 3)
    return [Image.fromarray(numbers.integers(0, 255, shape, dtype=np.uint8)) for _ in range(count)]


def batch_of(backbone, images=None, texts=TEXTS):
    family, processor = backbone.family, backbone.processor
    images = images if images is not None else pictures(len(texts))
    encoded = [
        {**family.encode_media(processor, image), **family.encode_text(processor, text)}
        for image, text in zip(images, texts, strict=True)
    ]
    return family.pad(processor, encoded)


@pytest.fixture(scope="module", params=TWINS, ids=[one for _, one in TWINS])
def twin(request, tmp_path_factory):
    name, model_type = request.param
    folder = tmp_path_factory.mktemp("twins") / model_type
    return load(Section(id=str(tiny_folder(name, folder, model_type=model_type))))


@pytest.fixture(scope="module")
def clip(tiny_clip_folder):
    return load(Section(id=str(tiny_clip_folder)))


def test_every_family_has_the_functions_and_declares_what_it_can_do():
    always = ["pad", "num_layers", "check", "tiny"]
    functions = {
        "embed": ["encode_media", "encode_text", "num_tokens", "embed_media", "embed_text", "temperature"],
        "generate": ["encode_turns", "encode_prompt", "generate"],
        "match": ["encode_media", "encode_text", "match"],
        "classify": ["encode_media", "encode_text", "classify", "answers_of"],
    }
    for name, family in kinds("backbones").items():
        assert family.FAMILY.name == name
        abilities = family.FAMILY.abilities
        assert abilities and abilities <= set(functions)
        wanted = [*always, *(function for ability in abilities for function in functions[ability])]
        assert [function for function in wanted if not callable(getattr(family, function, None))] == []
        assert set(family.FAMILY.layers) <= set(family.FAMILY.parts) == set(family.FAMILY.heads)


def logits_of_transformers(twin, batch):
    """What transformers' own forward pass computes; where it stops at the cosine, times the temperature."""
    if twin.traits.whole_forward is None:
        return twin.model(**batch).logits_per_image
    options, name = twin.traits.whole_forward
    if getattr(twin.model.config, "image_token_index", None) is not None:
        batch = {key: with_places(twin, value) if value.dim() == 2 else value for key, value in batch.items()}
    return twin.model(**batch, **options)[name] * twin.family.temperature(twin.model)[0].exp()


def with_places(twin, ids):
    """BLIP-2's forward pass wants, and cuts off again, a place-holder for every query before the text."""
    import torch

    places = torch.full((len(ids), twin.model.config.num_query_tokens), twin.model.config.image_token_index)
    return torch.cat([places, ids], dim=1)


def test_embeddings_are_those_of_transformers(twin):
    import torch

    from mmtune.losses._cosines import cosines

    batch = batch_of(twin)
    with torch.no_grad():
        image, text = twin.family.embed_media(twin.model, batch), twin.family.embed_text(twin.model, batch)
        log_scale, bias = twin.family.temperature(twin.model)
        expected = logits_of_transformers(twin, batch)
        logits = cosines(image, text) * log_scale.exp() + (0 if bias is None else bias)
    # One matrix product in float32 on logits near 10: a few units in the last place.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(image.shape[:-1]), rtol=1e-6, atol=1e-6)
    # The twin tells different inputs apart, else the comparison above would mean nothing.
    for embeds in (torch.nn.functional.normalize(image.flatten(1)), text):
        assert (embeds @ embeds.T - torch.eye(4)).max() < 0.995


def test_encoding_is_that_of_the_reloaded_processor(twin):
    """AutoProcessor on the saved twin gives the same pixels and ids: what others will run after a merge."""
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(twin.description.folder)
    image = pictures(1)[0]
    padding = {"padding": "max_length", "padding_side": "right", "truncation": True}
    theirs = processor(images=[image], text=["two words"], **padding)
    ours = twin.family.encode_text(twin.processor, "Two Words")["input_ids"].tolist()
    places = getattr(processor, "num_query_tokens", None) or 0  # BLIP-2's place-holders for the image
    assert ours == theirs["input_ids"][0][places:][: len(ours)]
    pixels = twin.family.encode_media(twin.processor, image)["pixel_values"]
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, torch.as_tensor(np.asarray(theirs["pixel_values"][0])))


def test_text_is_cut_at_the_towers_limit_and_keeps_its_end(twin):
    config, tokenizer = twin.model.config, twin.processor.tokenizer
    limit = getattr(twin.family, "text_limit", lambda config: config.text_config.max_position_embeddings)(config)
    long = "over " * 200
    ids = twin.family.encode_text(twin.processor, long)["input_ids"]
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    assert len(ids) == limit and ids[-1] == end
    assert twin.family.num_tokens(twin.processor, long) > limit
    assert twin.family.num_tokens(twin.processor, "on") < limit


def test_pad_takes_images_or_texts_alone(twin):
    family, processor = twin.family, twin.processor
    images = family.pad(processor, [family.encode_media(processor, image) for image in pictures(2)])
    texts = family.pad(processor, [family.encode_text(processor, text) for text in TEXTS])
    assert "input_ids" not in images and len(images["pixel_values"]) == 2
    assert "pixel_values" not in texts and texts["input_ids"].shape[0] == len(TEXTS)


@pytest.mark.parametrize("size", [(50, 1), (3, 50), (1, 1), (1, 400)])
def test_images_of_odd_shapes_are_encoded(twin, size):
    pixels = twin.family.encode_media(twin.processor, pictures(1, size)[0])["pixel_values"]
    assert pixels.shape == twin.family.encode_media(twin.processor, pictures(1)[0])["pixel_values"].shape


def test_a_sliver_is_bad_data_and_not_the_end_of_memory(clip):
    with pytest.raises(DataError, match="image of 1 x 60000 pixels is too long and thin"):
        clip.family.encode_media(clip.processor, pictures(1, (1, 60_000))[0])


def test_twins_are_the_same_every_time(twin, tmp_path):
    from safetensors.numpy import load_file

    again = tiny_folder(twin.family.FAMILY.name, tmp_path / "again", model_type=twin.description.config["model_type"])
    one, two = load_file(twin.description.folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    assert load(Section(id=str(again))).weight_hash == twin.weight_hash


def test_transformers_alone_loads_a_twin(twin):
    import torch
    import transformers

    model = getattr(transformers, twin.traits.auto_class).from_pretrained(twin.description.folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.model.get_parameter(name))


def test_the_loaded_model_is_frozen_and_in_eval_mode(twin):
    assert not any(parameter.requires_grad for parameter in twin.model.parameters())
    assert not any(module.training for module in twin.model.modules())
    assert twin.record()["image_processor"].endswith("Pil")
    assert twin.description.num_layers == dict.fromkeys(twin.traits.parts, 2)


def test_temperature_is_live(twin):
    import torch

    twin.model.requires_grad_(True)
    log_scale, bias = twin.family.temperature(twin.model)
    assert log_scale.dim() == 0 and (bias is None or bias.dim() == 0)
    (log_scale * 2 + (0 if bias is None else bias * 3)).backward()
    names = twin.family.FAMILY.temperature
    # The parameter is the log scale itself, or, where the family has to clamp it in its own way, ALIGN's divisor.
    first = -2.0 / twin.model.temperature.item() if hasattr(twin.family, "clamp_temperature") else 2.0
    expected = [first, 3.0][: len(names)]
    assert [twin.model.get_parameter(name).grad.item() for name in names] == pytest.approx(expected, rel=1e-6)
    twin.model.zero_grad()
    twin.model.requires_grad_(False)
    assert isinstance(twin.model.get_parameter(names[0]), torch.nn.Parameter)


def test_clip_padding_changes_no_embedding(clip):
    import torch

    together = batch_of(clip)
    alone = [clip.family.pad(clip.processor, [clip.family.encode_text(clip.processor, text)]) for text in TEXTS]
    assert len({one["input_ids"].shape[1] for one in alone}) > 1
    with torch.no_grad():
        expected = torch.cat([clip.family.embed_text(clip.model, one) for one in alone])
        embeds = clip.family.embed_text(clip.model, together)
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-5)  # float32, another order of summation


def test_clip_under_a_wrong_end_token_depends_on_padding(clip, tiny_clip_folder, changed_copy):
    """The negation: with the old ``eos_token_id: 2`` and a padding id above the end token, padding would be read."""
    from mmtune.backbones.clip import check

    changed_copy(tiny_clip_folder, text_config={"eos_token_id": 2})  # the end token is the largest id: harmless
    folder = changed_copy(tiny_clip_folder, text_config={"eos_token_id": 2}, name="padded")
    clip_with_padding = load(Section(id=str(folder)))
    clip_with_padding.processor.tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    with pytest.raises(BackboneError, match="set eos_token_id in config.json to 519"):
        check(clip_with_padding.model, clip_with_padding.processor)
    with pytest.raises(BackboneError, match="do not belong together"):
        load(Section(id=str(changed_copy(tiny_clip_folder, text_config={"eos_token_id": 517}, name="other"))))


def test_siglip_reads_the_last_position(tiny_siglip_folder):
    """Padded to full length the embedding is the trained one; padded to the longest text it would be another."""
    import torch

    backbone = load(Section(id=str(tiny_siglip_folder)))
    full = backbone.family.pad(backbone.processor, [backbone.family.encode_text(backbone.processor, "a cat")])
    assert full["input_ids"].shape[1] == 16
    with torch.no_grad():
        embeds = backbone.family.embed_text(backbone.model, full)
        short = backbone.family.embed_text(backbone.model, {"input_ids": full["input_ids"][:, :6]})
    assert (embeds - short).abs().max() > 0.05


def test_siglip_lowercases_whatever_the_tokenizer_does(tiny_siglip_folder):
    """SigLIP 2 with a fixed resolution ships a plain Gemma tokenizer: cased, and padding on the left."""
    import torch

    backbone = load(Section(id=str(tiny_siglip_folder)))
    tokenizer = backbone.processor.tokenizer
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.padding_side = "left"
    assert tokenizer("The Line")["input_ids"] != tokenizer("the line")["input_ids"]
    upper, lower = (backbone.family.encode_text(backbone.processor, text)["input_ids"] for text in ("The", "the"))
    assert torch.equal(upper, lower) and upper[-1] == tokenizer.pad_token_id


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_embeddings_have_float32_at_least(tiny_clip_folder, dtype):
    import torch

    backbone = load(Section(id=str(tiny_clip_folder)), dtype=dtype)
    with torch.no_grad():
        embeds = backbone.family.embed_media(backbone.model, batch_of(backbone))
    assert embeds.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    # 8 bits of mantissa through a few layers; normalised in float32, so the length is exact.
    expected = load(Section(id=str(tiny_clip_folder)))
    with torch.no_grad():
        reference = expected.family.embed_media(expected.model, batch_of(expected))
    torch.testing.assert_close(embeds.to(torch.float32), reference, rtol=0, atol=0.05 if "16" in dtype else 1e-5)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4, dtype=embeds.dtype), rtol=1e-6, atol=1e-6)


def test_peft_injected_models_embed_through_the_same_functions(clip, tiny_clip_folder):
    import peft
    import torch

    backbone = load(Section(id=str(tiny_clip_folder)))
    names = [f"vision_model.encoder.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False), backbone.model)
    batch = batch_of(backbone)
    with torch.no_grad():
        changed, same = backbone.family.embed_media(backbone.model, batch), clip.family.embed_media(clip.model, batch)
        assert (changed - same).abs().max() > 1e-3
        assert torch.equal(backbone.family.embed_text(backbone.model, batch), clip.family.embed_text(clip.model, batch))


def test_tiny_folder_names_what_there_is(tmp_path):
    with pytest.raises(BackboneError, match="no backbone family 'klip'; there are .*clip, .*siglip"):
        tiny_folder("klip", tmp_path)
    with pytest.raises(BackboneError, match="it has clip"):
        tiny_folder("clip", tmp_path, model_type="siglip")


def test_describing_imports_no_torch(tiny_clip_folder):
    code = (
        "import sys; from mmtune.backbones import Section, describe; "
        f"print(describe(Section(id={str(tiny_clip_folder)!r})).num_layers); "
        "print(sorted({'torch', 'transformers', 'peft', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout.splitlines() == ["{'vision': 2, 'text': 2}", "[]"], done.stderr


def test_old_configs_are_described(changed_copy, tiny_clip_folder):
    """``text_config_dict`` replaces ``text_config`` wholly, as in transformers; absent values are the defaults."""
    folder = changed_copy(tiny_clip_folder, text_config_dict={"num_hidden_layers": 7}, vision_config_dict={})
    assert describe(Section(id=str(folder))).num_layers == {"vision": 12, "text": 7}


def test_the_builtin_backbone_loads():
    backbone = load(Section(id="builtin:glyph-clip"))
    assert backbone.family.FAMILY.name == "clip" and backbone.description.commit is None
    with pytest.raises(BackboneError, match="no builtin backbone 'glif-clip'; there is glyph-blip, glyph-clip"):
        describe(Section(id="builtin:glif-clip"))
