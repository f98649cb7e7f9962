"""Processors of chat models: the repository's class and files, without videos where torchvision is missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_chat_spans import HERE

from mmtune.backbones import Section, chat, component_files, load
from mmtune.backbones import _chat_processor as loading
from mmtune.ground.errors import BackboneError, DataError
from mmtune.ground.records import Turn

WITH_VIDEO = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm")
LIMITED = {
    "llava_next": {"longest_edge": 32},
    "llava_onevision": {"longest_edge": 32},
    "qwen2_vl": {"max_pixels": 512},
    "qwen2_5_vl": {"max_pixels": 512},
    "qwen3_vl": {"max_pixels": 512},
    "idefics3": {"longest_edge": 32},
    "smolvlm": {"longest_edge": 32},
    "internvl": {"max_patches": 1},
}
"""Settings under which a large picture takes fewer tokens; models that are not named take images of one size alone."""

ASKED = (Turn("user", (HERE, "What is it?")),)


def large(width: int = 120, height: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def tokens_of(backbone: Any, image: Image.Image) -> int:
    encoded = chat.encode_prompt(backbone.processor, ASKED, [image])
    return int(chat.image_tokens(backbone.processor, encoded).sum())


@pytest.mark.parametrize("model_type", chat.FAMILY.model_types)
def test_it_is_the_class_that_the_repository_names(chat_backbone: Callable[[str], Any], model_type: str) -> None:
    backbone = chat_backbone(model_type)
    processor = backbone.processor
    assert type(processor).__name__ == backbone.traits.processor_classes[model_type]
    assert type(processor.image_processor).__name__.endswith("Pil") and processor.tokenizer.is_fast
    notes = chat.notes(processor)
    assert bool(notes) == (model_type in WITH_VIDEO) and len(notes) <= 1 and notes == backbone.notes
    assert not notes or "torchvision" in notes[0] and "images are read as always" in notes[0]


def test_the_files_name_the_class(chat_backbone: Callable[[str], Any], tmp_path: Path) -> None:
    """A checkpoint of one model type may have the processor of another: Pixtral's, in LLaVA's classes."""
    folder = chat_backbone("llava").description.folder
    shutil.copytree(folder, tmp_path / "other")
    file = next(tmp_path / "other" / name for name in loading.CLASS_FILES if (folder / name).is_file())
    values = {**json.loads(file.read_text()), "processor_class": "NoSuchProcessor"}
    file.write_text(json.dumps(values))
    with pytest.raises(BackboneError, match="its processor does not load: .*no processor class 'NoSuchProcessor'"):
        load(Section(id=str(tmp_path / "other")))


def test_the_processors_own_values_are_read(chat_backbone: Callable[[str], Any]) -> None:
    llava, idefics = (chat_backbone(name).processor for name in ("llava", "idefics3"))
    assert (llava.patch_size, llava.num_additional_image_tokens) == (8, 1) and idefics.image_seq_len == 1
    assert llava.vision_feature_select_strategy == "default"


def test_without_video_is_the_same_class_for_images(chat_backbone: Callable[[str], Any]) -> None:
    from transformers import Qwen2_5_VLProcessor

    processor = chat_backbone("qwen2_5_vl").processor
    assert isinstance(processor, Qwen2_5_VLProcessor) and type(processor) is not Qwen2_5_VLProcessor
    assert "video_processor" in Qwen2_5_VLProcessor.get_attributes(), "the class itself is as it was"
    assert type(processor).get_attributes() == ["image_processor", "tokenizer"]
    with pytest.raises(ImportError):
        Qwen2_5_VLProcessor.from_pretrained(chat_backbone("qwen2_5_vl").description.folder)


def test_a_video_processor_is_loaded_where_torchvision_imports(
    chat_backbone: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the choice is looked at: what is loaded then needs torchvision itself."""
    asked = []
    monkeypatch.setattr(loading, "_has_torchvision", lambda: True)
    monkeypatch.setattr(loading, "_video_processor", lambda folder, options: asked.append(folder))
    monkeypatch.setattr(loading, "_construct", lambda made, parts, values: (made, parts))
    made, parts = chat.load_processor(chat_backbone("qwen2_5_vl").description)
    assert "video_processor" in made.get_attributes() and "video_processor" in parts and len(asked) == 1
    chat.load_processor(chat_backbone("llava").description)
    assert len(asked) == 1, "LLaVA's has no video half"


def test_files_of_the_processor_are_there_to_be_copied(chat_backbone: Callable[[str], Any]) -> None:
    for name in chat.FAMILY.model_types:
        names = {path.name for path in component_files(chat_backbone(name).description)}
        assert "tokenizer.json" in names and names & set(loading.CLASS_FILES)
        assert ("chat_template.jinja" in names) == (name not in ("paligemma", "florence2"))


@pytest.mark.parametrize("model_type", LIMITED)
def test_limits_on_images_limit_their_tokens(
    chat_backbone: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    backbone = chat_backbone(model_type)
    limited = load(Section(id=str(backbone.description.folder), image=LIMITED[model_type]))
    if model_type == "llava_next":  # the twin's own are two tiles each
        for one in (limited, backbone):
            monkeypatch.setattr(one.processor.image_processor, "image_grid_pinpoints", [[32, 64], [64, 32], [64, 64]])
    image = large(120, 110) if model_type == "llava_next" else large()
    few, many = (tokens_of(one, image) for one in (limited, backbone))
    assert 0 < few < many
    assert tokens_of(backbone, image) == many, "the other processor is as it was"


def test_smallest_sizes_make_more_tokens(chat_backbone: Callable[[str], Any]) -> None:
    folder = str(chat_backbone("qwen2_5_vl").description.folder)
    small = large(20, 16)
    wide = load(Section(id=folder, image={"min_pixels": 1024, "max_pixels": 2048}))
    assert tokens_of(wide, small) > tokens_of(chat_backbone("qwen2_5_vl"), small)
    with pytest.raises(BackboneError, match="min_pixels is 4096, and max_pixels is 1024"):
        load(Section(id=folder, image={"min_pixels": 4096, "max_pixels": 1024}))


@pytest.mark.parametrize("model_type", chat.FAMILY.model_types)
def test_sizes_that_a_model_does_not_know_are_refused(chat_backbone: Callable[[str], Any], model_type: str) -> None:
    from mmtune.backbones import describe

    backbone = chat_backbone(model_type)
    known = ", ".join(backbone.traits.image_words)
    words = f"this model has no max_pixel; it has {known}" if known else "takes images of one size alone; write null"
    assert bool(known) == (model_type in LIMITED)
    with pytest.raises(BackboneError, match=words):
        describe(Section(id=str(backbone.description.folder), image={"max_pixel": 512}))


def test_families_without_size_words_refuse_them(tiny_clip_folder: Path) -> None:
    with pytest.raises(BackboneError, match="image: max_pixels: this model takes images of one size alone"):
        load(Section(id=str(tiny_clip_folder), image={"max_pixels": 512}))
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Section(id=str(tiny_clip_folder), image={"max_pixels": 0})


def test_images_that_a_processor_refuses_are_bad_data(chat_backbone: Callable[[str], Any]) -> None:
    with pytest.raises(DataError, match="Qwen2_5_VLProcessor refuses the sample: absolute aspect ratio"):
        chat.encode_prompt(chat_backbone("qwen2_5_vl").processor, ASKED, [large(900, 2)])


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])
def test_the_first_repositories_say_in_config_json_what_an_image_takes(
    chat_backbone: Callable[[str], Any], model_type: str, tmp_path: Path
) -> None:
    """They have no processor_config.json, or one without a patch size."""
    whole = chat_backbone(model_type)
    shutil.copytree(whole.description.folder, tmp_path / "first")
    file = tmp_path / "first" / "processor_config.json"
    values = json.loads(file.read_text())
    for key in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
        del values[key]
    file.write_text(json.dumps(values))
    first = load(Section(id=str(tmp_path / "first")))
    assert tokens_of(first, large()) == tokens_of(whole, large()) > 0
