"""Backbones in 4 and 8 bit on the CPU: which layers, that they stay as loaded, and what dequantizing gives."""

import logging

import pytest

from mmtune.backbones import Section, load, tiny_folder
from mmtune.ground.errors import BackboneError

pytest.importorskip("bitsandbytes")

TWINS = [("clip", "clip"), ("siglip", "siglip"), ("siglip", "siglip2")]
BITS = ["4bit", "8bit"]


@pytest.fixture(scope="module", params=TWINS, ids=[one for _, one in TWINS])
def folder(request, tmp_path_factory):
    name, model_type = request.param
    return tiny_folder(name, tmp_path_factory.mktemp("quantized") / model_type, model_type=model_type)


def batch_of(backbone):
    import numpy as np
    from PIL import Image

    numbers = np.random.default_rng(1)
    images = [Image.fromarray(numbers.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
    family, processor = backbone.family, backbone.processor
    texts = ("the lion", "on a line", "é")
    return family.pad(
        processor,
        [
            {**family.encode_media(processor, i), **family.encode_text(processor, t)}
            for i, t in zip(images, texts, strict=True)
        ],
    )


def embeds_of(backbone):
    import torch

    batch = batch_of(backbone)
    with torch.no_grad():
        return torch.cat([backbone.family.embed_media(backbone.model, batch), embed_text(backbone, batch)], dim=-1)


def embed_text(backbone, batch):
    return backbone.family.embed_text(backbone.model, batch)


def tower_layers():
    for tower in ("vision_model", "text_model"):
        for layer in range(2):
            block = f"{tower}.encoder.layers.{layer}"
            yield from (f"{block}.self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
            yield from (f"{block}.mlp.{name}" for name in ("fc1", "fc2"))


@pytest.mark.parametrize("quantize", BITS)
def test_exactly_the_towers_layers_are_quantized(folder, quantize):
    import torch

    model = load(Section(id=str(folder), quantize=quantize)).model
    kind = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantize]
    found = {name for name, module in model.named_modules() if type(module).__name__ == kind}
    assert found == set(tower_layers())
    plain = load(Section(id=str(folder))).model
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight") not in found:
            assert torch.equal(model.get_parameter(name), parameter), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("quantize", BITS)
def test_a_layer_too_many_or_too_few_is_found(folder, quantize):
    import dataclasses

    import torch

    from mmtune.backbones._quantization import check

    backbone = load(Section(id=str(folder), quantize=quantize))
    family = backbone.family.FAMILY
    kept = dataclasses.replace(family, full_precision=(*family.full_precision, "text_model.encoder.layers.1"))
    with pytest.raises(BackboneError, match="text_model.encoder.layers.1.mlp.fc1 was quantized, but the family keeps"):
        check(backbone.model, kept)
    backbone.model.set_submodule("vision_model.encoder.layers.0.mlp.fc1", torch.nn.Linear(32, 64))
    with pytest.raises(BackboneError, match="vision_model.encoder.layers.0.mlp.fc1 was not quantized"):
        check(backbone.model, family)


def test_4bit_equals_its_dequantization_and_differs_from_the_original(folder):
    import torch

    section = Section(id=str(folder), quantize="4bit")
    quantized, plain = load(section), load(section, dequantize=True)
    # bitsandbytes' 4-bit product in float32 is that of the dequantized weights: float32 rounding remains.
    torch.testing.assert_close(embeds_of(quantized), embeds_of(plain), rtol=0, atol=1e-5)
    assert (embeds_of(plain) - embeds_of(load(Section(id=str(folder))))).abs().max() > 0.05


def test_8bit_is_near_its_dequantization_but_rounds_activations(folder):
    section = Section(id=str(folder), quantize="8bit")
    quantized, plain = load(section), load(section, dequantize=True)
    gap = (embeds_of(quantized) - embeds_of(plain)).abs().max()
    assert 1e-4 < gap < 0.05  # LLM.int8: 1 to 4 % of the range, which is below 1 here
    weight = "vision_model.encoder.layers.0.mlp.fc1.weight"
    original = load(Section(id=str(folder))).model.get_parameter(weight)
    error = (plain.model.get_parameter(weight) - original).abs()
    # A row's step is its largest value / 127: half a step from rounding, and 127 / 2**11 of a step because
    # bitsandbytes reads the weights as float16 first.
    step = original.abs().amax(dim=1, keepdim=True) / 127
    assert (error <= (0.5 + 127 / 2**11) * step * 1.001).all()
    assert error.max() > 0.3 * step.min()


@pytest.mark.parametrize("quantize", BITS)
def test_a_dequantized_model_is_an_ordinary_float32_one(folder, quantize, tmp_path):
    import torch
    from transformers import AutoModel

    backbone = load(Section(id=str(folder), quantize=quantize, dtype="bfloat16"), dequantize=True)
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    kinds = {type(module).__name__ for module in backbone.model.modules()}
    assert not kinds & {"Linear4bit", "Linear8bitLt"}
    assert not any(module.training for module in backbone.model.modules())
    backbone.model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    assert not hasattr(again.config, "quantization_config")


@pytest.mark.parametrize("quantize", BITS)
def test_forward_leaves_quantized_weights_as_they_were(folder, quantize):
    """bitsandbytes would repack 4-bit weights in eval mode on CPUs with avx512_bf16, and round their scales."""
    import torch

    from mmtune.backbones._quantization import dequantize

    section = Section(id=str(folder), quantize=quantize)
    backbone, fresh = load(section), load(section)
    before = {name: parameter.data.clone() for name, parameter in backbone.model.named_parameters()}
    first = embeds_of(backbone)
    assert torch.equal(embeds_of(backbone), first)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter.data, before[name]), name
    dequantize(backbone.model)
    dequantize(fresh.model)
    for name, parameter in fresh.model.named_parameters():
        assert torch.equal(parameter, backbone.model.get_parameter(name)), name
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in load(section).model.modules())


@pytest.mark.parametrize("quantize", BITS)
def test_gradients_reach_what_lies_below_quantized_layers(folder, quantize):
    backbone = load(Section(id=str(folder), quantize=quantize))
    batch = batch_of(backbone)
    first = backbone.model.get_parameter("text_model.embeddings.token_embedding.weight").requires_grad_(True)
    embed_text(backbone, batch)[:, 0].sum().backward()
    assert first.grad.abs().max() > 0


def test_8bit_says_nothing_per_layer(folder, caplog, capfd):
    with caplog.at_level(logging.WARNING, logger="bitsandbytes"):
        embeds_of(load(Section(id=str(folder), quantize="8bit")))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_without_bitsandbytes_the_message_says_what_to_install(tiny_clip_folder, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)
    )
    with pytest.raises(BackboneError, match="pip install bitsandbytes"):
        load(Section(id=str(tiny_clip_folder), quantize="4bit"))


@pytest.mark.parametrize("double", [True, False])
def test_scales_are_held_in_8_bit_unless_the_recipe_says_otherwise(folder, double):
    import torch

    options = {} if double else {"double_quantization": False}
    section = Section(id=str(folder), quantize="4bit", **options)
    quantized, plain = load(section), load(section, dequantize=True)
    states = [
        module.weight.quant_state for module in quantized.model.modules() if type(module).__name__ == "Linear4bit"
    ]
    assert states and all(state.nested is double and state.quant_type == "nf4" for state in states)
    torch.testing.assert_close(embeds_of(quantized), embeds_of(plain), rtol=0, atol=1e-5)


def test_4bit_layers_compute_in_what_the_recipe_says(folder):
    import torch

    def computes(**options):
        model = load(Section(id=str(folder), quantize="4bit", **options)).model
        return {module.compute_dtype for module in model.modules() if type(module).__name__ == "Linear4bit"}

    assert computes() == {torch.float32}
    assert computes(dtype="bfloat16") == {torch.bfloat16}
    assert computes(dtype="bfloat16", compute_dtype="float32") == {torch.float32}


@pytest.mark.parametrize("quantize", [None, "8bit"])
@pytest.mark.parametrize("words", [{"compute_dtype": "bfloat16"}, {"double_quantization": False}])
def test_words_about_4_bit_without_it_are_refused(quantize, words):
    with pytest.raises(ValueError, match=f"{next(iter(words))} says how 4-bit layers .* write quantize: 4bit"):
        Section(id="x", quantize=quantize, **words)


def test_what_no_file_holds_is_exact_after_dequantizing(tmp_path):
    """Gemma scales its words by a buffer that is rounded where the model is loaded in bfloat16."""
    folder = tiny_folder("chat", tmp_path / "paligemma", model_type="paligemma")
    section = Section(id=str(folder), dtype="bfloat16", quantize="4bit")
    name = "model.language_model.embed_tokens.embed_scale"
    exact = dict(load(Section(id=str(folder))).model.named_buffers())[name]
    rounded = dict(load(section).model.named_buffers())[name]
    assert rounded.float() != exact and dict(load(section, dequantize=True).model.named_buffers())[name] == exact
