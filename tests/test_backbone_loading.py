"""Loading a backbone: nothing is missing, added or guessed, and what is wrong is named."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mmtune.backbones import Section, component_files, describe, load, original_weight_names
from mmtune.ground.errors import BackboneError


@pytest.fixture
def copied(tiny_clip_folder, tmp_path):
    return Path(shutil.copytree(tiny_clip_folder, tmp_path / "copied"))


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def as_pickle(folder, content=None):
    import torch
    from safetensors.torch import load_file

    torch.save(content or load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_weights_without_safetensors_need_permission(copied):
    safe = load(Section(id=str(copied)))
    names = original_weight_names(safe.description)
    as_pickle(copied)
    with pytest.raises(BackboneError, match="allow_pickle: true"):
        load(Section(id=str(copied)))
    pickled = load(Section(id=str(copied), allow_pickle=True))
    for name, parameter in safe.model.named_parameters():
        assert parameter.equal(pickled.model.get_parameter(name))
    assert pickled.weight_hash == hashlib.sha256((copied / "pytorch_model.bin").read_bytes()).hexdigest()
    assert original_weight_names(pickled.description) == names == set(safe.model.state_dict())


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm-was-done"),))


def test_a_pickle_that_runs_code_is_refused(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    as_pickle(copied, content={"logit_scale": Harmful()})
    with pytest.raises(BackboneError, match="does not load"):
        load(Section(id=str(copied), allow_pickle=True))
    assert not (tmp_path / "harm-was-done").exists()


def test_safetensors_are_preferred_where_both_exist(copied):
    import torch

    torch.save({"logit_scale": torch.tensor(1.0)}, copied / "pytorch_model.bin")
    backbone = load(Section(id=str(copied), allow_pickle=True))
    assert backbone.weight_hash == hashlib.sha256((copied / "model.safetensors").read_bytes()).hexdigest()


def test_missing_unexpected_and_misshapen_weights_are_named(copied):
    def damage(weights):
        del weights["visual_projection.weight"]
        weights["vision_model.adapter.weight"] = weights["text_projection.weight"].clone()

    change_weights(copied, damage)
    with pytest.raises(BackboneError) as caught:
        load(Section(id=str(copied)))
    assert "lack weights that the model needs: visual_projection.weight" in str(caught.value)
    assert "does not have: vision_model.adapter.weight" in str(caught.value)


def test_weights_of_another_shape_are_named(copied):
    change_weights(
        copied, lambda weights: weights.update({"text_projection.weight": weights["text_projection.weight"][:5]})
    )
    with pytest.raises(
        BackboneError, match=r"text_projection.weight is \(5, 32\) in the file, \(16, 32\) in the model"
    ):
        load(Section(id=str(copied)))


def test_position_ids_of_old_checkpoints_are_ignored(copied):
    import torch

    change_weights(
        copied, lambda weights: weights.update({"text_model.embeddings.position_ids": torch.arange(32)[None]})
    )
    description = load(Section(id=str(copied))).description
    assert "text_model.embeddings.position_ids" in original_weight_names(description)


def test_new_weights_of_a_family_may_be_missing(copied, monkeypatch):
    import dataclasses

    from mmtune.backbones import clip

    change_weights(copied, lambda weights: weights.pop("logit_scale"))
    with pytest.raises(BackboneError, match="needs: logit_scale"):
        load(Section(id=str(copied)))
    monkeypatch.setattr(clip, "FAMILY", dataclasses.replace(clip.FAMILY, new_weights=(r"logit_scale",)))
    load(Section(id=str(copied)))


def test_sharded_weights_load_and_a_missing_shard_is_named(tiny_clip_folder, copied):
    whole = load(Section(id=str(tiny_clip_folder)))
    (copied / "model.safetensors").unlink()
    whole.model.save_pretrained(copied, max_shard_size="100KB")
    shards = sorted(copied.glob("model-*.safetensors"))
    sharded = load(Section(id=str(copied)))
    assert len(shards) > 1 and sharded.model.logit_scale.equal(whole.model.logit_scale)
    assert sharded.weight_hash == hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert original_weight_names(sharded.description) == original_weight_names(whole.description)
    shards[0].unlink()
    with pytest.raises(BackboneError, match=f"lists {shards[0].name}, which are missing"):
        load(Section(id=str(copied)))


def test_damaged_weights_are_an_error_not_a_traceback(copied):
    (copied / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(BackboneError, match="does not load"):
        load(Section(id=str(copied)))


def test_a_config_without_family_lists_the_families(changed_copy, tiny_clip_folder):
    folder = changed_copy(tiny_clip_folder, model_type="clop")
    with pytest.raises(BackboneError, match=r"'clop'.*clip \(clip\);.*siglip \(siglip, siglip2\).*nearest: clip"):
        describe(Section(id=str(folder)))
    (folder / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"says no model_type.*; clip \(clip\)"):
        describe(Section(id=str(folder)))
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="not readable as JSON"):
        describe(Section(id=str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match="has no config.json"):
        describe(Section(id=str(folder)))


def test_a_checkpoint_that_is_stored_quantized_is_refused(changed_copy, tiny_clip_folder):
    folder = changed_copy(tiny_clip_folder, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(BackboneError, match="stored quantized"):
        describe(Section(id=str(folder)))


def test_a_renamed_module_fails_with_the_nearest_names(tiny_clip_folder, monkeypatch):
    import dataclasses

    from mmtune.backbones import clip

    renamed = dataclasses.replace(
        clip.FAMILY,
        layers={**clip.FAMILY.layers, "vision": "vision_model.encoder.blocks"},
        temperature=("logit_scales",),
    )
    monkeypatch.setattr(clip, "FAMILY", renamed)
    with pytest.raises(BackboneError) as caught:
        load(Section(id=str(tiny_clip_folder)))
    assert "no 'vision_model.encoder.blocks' (nearest: vision_model.encoder" in str(caught.value)
    assert "no 'logit_scales' (nearest: logit_scale" in str(caught.value)


def test_a_processor_that_is_missing_is_named(copied):
    for file in copied.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(BackboneError, match="processor does not load"):
        load(Section(id=str(copied)))


def test_old_preprocessor_files_load(copied):
    """``size: 224`` as a number and ``feature_extractor_type``, as in the first CLIP repositories."""
    (copied / "processor_config.json").unlink()
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    (copied / "preprocessor_config.json").write_text(json.dumps(old))
    processor = load(Section(id=str(copied))).processor
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    assert processor.image_processor.size["shortest_edge"] == 32


def test_pillow_is_used_even_where_torchvision_is_there(tiny_clip_folder, monkeypatch):
    import transformers.models.auto.image_processing_auto as auto

    monkeypatch.setattr(auto, "is_torchvision_available", lambda: True)
    assert auto._resolve_backend(None, None, "CLIPImageProcessor") == "torchvision"
    assert load(Section(id=str(tiny_clip_folder))).record()["image_processor"] == "CLIPImageProcessorPil"


def test_loading_prints_nothing(tiny_clip_folder, capfd):
    load(Section(id=str(tiny_clip_folder)))
    assert capfd.readouterr() == ("", "")


def test_sentencepiece_tokenizers_of_siglip_1_load(tiny_siglip_folder, tmp_path):
    """Trained here on a few words: the class that SigLIP 1 repositories name."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="extra 'siglip' is not installed")
    import io

    from transformers import SiglipTokenizer

    folder = Path(shutil.copytree(tiny_siglip_folder, tmp_path / "siglip1"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    written = io.BytesIO()
    words = [
        f"{one} {two}" for one in ["the", "lion", "on", "line", "corner", "cat"] for two in ["a", "photo", "of", "over"]
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=written,
        vocab_size=50,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    (folder / "words.model").write_bytes(written.getvalue())
    SiglipTokenizer(str(folder / "words.model"), model_max_length=16).save_pretrained(folder)
    backbone = load(Section(id=str(folder)))
    assert isinstance(backbone.processor.tokenizer, SiglipTokenizer)
    ids = backbone.family.encode_text(backbone.processor, "The lion, on a line!")["input_ids"]
    assert len(ids) == 16 and ids[-1] == backbone.processor.tokenizer.pad_token_id
    assert (folder / "spiece.model") in component_files(backbone.description)


def test_a_family_that_the_recipe_names_must_be_the_one_that_answers(tiny_clip_folder: Path) -> None:
    assert describe(Section(id=str(tiny_clip_folder), family="clip")).family.FAMILY.name == "clip"
    with pytest.raises(BackboneError, match="family 'siglip', but model_type 'clip' of its config.json belongs to"):
        describe(Section(id=str(tiny_clip_folder), family="siglip"))


def test_the_family_file_that_the_message_shows_works_once_its_fields_are_filled_in(tmp_path, monkeypatch):
    import types

    from mmtune.backbones import tiny_folder
    from mmtune.ground.kind_folder import kinds

    section = Section(id=str(tiny_folder("chinese_clip", tmp_path / "twin")))
    expected = load(section)
    monkeypatch.delitem(kinds("backbones"), "chinese_clip")
    with pytest.raises(BackboneError) as caught:
        load(section)
    assert "in mmtune/backbones/chinese_clip.py" in str(caught.value) and len(str(caught.value).splitlines()) < 25
    written = str(caught.value).partition(":\n\n")[2]
    family = types.ModuleType("written")
    monkeypatch.setitem(kinds("backbones"), "chinese_clip", family)
    exec(written, family.__dict__)
    with pytest.raises(AttributeError, match="ChineseClipProcessor"):
        load(section)
    written = written.replace("ChineseClipProcessor", "ChineseCLIPProcessor")
    exec(written, family.__dict__)
    with pytest.raises(BackboneError, match=r"'text_model.encoder.layers' \(nearest: .*text_model.encoder.layer\b"):
        load(section)
    exec(written.replace("text_model.encoder.layers", "text_model.encoder.layer"), family.__dict__)
    found = load(section)
    ids = found.family.pad(found.processor, [found.family.encode_text(found.processor, "a cat")])
    assert found.family.embed_text(found.model, ids).equal(expected.family.embed_text(expected.model, ids))
