"""Tiny processors and samples for the tests of what `mmtune show` shows; no weights are read."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

from adapter_examples import DrawnImage

from mmtune.backbones import Backbone, Section, load_processor, tiny_folder
from mmtune.ground.kind_folder import kinds
from mmtune.ground.records import NoMedia, Sample, Turn
from mmtune.sample_views import SampleView, Viewing, view_samples
from mmtune.sources import OpenedSplit

SPEAKERS = {
    "blip_captioning": ("blip", "blip", "BlipForConditionalGeneration"),
    "blip_answering": ("blip", "blip", "BlipForQuestionAnswering"),
    "git": ("git", "git", None),
    "llava": ("chat", "llava", None),
    "qwen2_5_vl": ("chat", "qwen2_5_vl", None),
    "smolvlm": ("chat", "smolvlm", None),
    "florence2": ("chat", "florence2", None),
    "instructblip": ("instructblip", "instructblip", None),
}
"""Every way in which labels and images can stand: shifted or not, images as tokens, in tiles, or beside the text."""

OTHERS = {
    "blip_matching": ("blip", "blip", "BlipForImageTextRetrieval"),
    "vilt": ("vilt", "vilt", None),
    "siglip": ("siglip", "siglip", None),
}
"""Those that say nothing."""

HAS_IMAGE_TOKENS = {"llava", "qwen2_5_vl", "smolvlm", "florence2", "instructblip"}
NASTY = "the <script>alert(1)</script> line"
CAPTIONS = ("a red line", NASTY, "two of them")


@cache
def reader(name: str) -> Backbone:
    """A tiny backbone without its weights, which are not even on the disk."""
    family, model_type, architecture = {**SPEAKERS, **OTHERS}[name]
    folder = tiny_folder(family, Path(mkdtemp()) / name, model_type=model_type, architecture=architecture)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return load_processor(Section(id=str(folder)))


def recipe(task: str, **values: Any) -> Any:
    """What showing reads of a recipe."""
    section, data = kinds("tasks")[task].Section(kind=task, **values), kinds("sources")["glyphs"].Section(kind="glyphs")
    return SimpleNamespace(task=section, data=data, seed=0, backbone=SimpleNamespace(name="tiny"))


def captioned() -> list[Sample]:
    """Images with a caption each."""
    return [Sample(f"s{n}", DrawnImage(n), (caption,)) for n, caption in enumerate(CAPTIONS)]


def talks() -> list[Sample]:
    """A conversation of two rounds, one about two images, one in words alone."""
    one, two = DrawnImage(0), DrawnImage(1)
    said = [
        (Turn("user", (one, "what is it?")), Turn("assistant", ("a line",)))
        + (Turn("user", ("sure?",)), Turn("assistant", ("yes",))),
        (Turn("user", (one, "and", two, "?")), Turn("assistant", ("two lines",))),
        (Turn("user", ("hi\nthere",)), Turn("assistant", ("hello",))),
    ]
    media = [one, one, NoMedia("words", "talks.jsonl:3")]
    return [Sample(f"t{n}", media[n], turns=turns) for n, turns in enumerate(said)]


def viewed(backbone: Backbone, samples: list[Sample], of: Any, split: str = "test", number: int = 10) -> Viewing:
    """The samples as shown, in the order of their ids."""
    viewing = view_samples(of, backbone, OpenedSplit(samples, (), len(samples)), split, number)
    viewing.samples.sort(key=lambda view: view.id)
    return viewing


def trained_text(view: SampleView) -> str:
    """What is coloured as trained on."""
    return "".join(one.text for stream in view.streams for one in stream.tokens if one.kind == "trained")
