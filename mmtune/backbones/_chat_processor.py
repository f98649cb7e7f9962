"""Processors of chat models, for images: the repository's own class, without its video half where torchvision lacks."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmtune.backbones._family import Description

IMAGES_ONLY = (
    "its video half needs torchvision, which does not import here: images are read as always, videos are not read"
)
"""What is said of a processor that was loaded without its video half."""

CLASS_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Where a repository names its processor class, in the order in which transformers looks."""


def load_processor(description: Description) -> Any:
    """The processor that the repository names, around its tokenizer and its Pillow image processor.

    Raises:
        ValueError: transformers has no class of that name.
    """
    import transformers

    folder, trust = str(description.folder), description.section.trust_remote_code
    default = description.traits.processor_classes[description.config["model_type"]]
    name = _named_class(description.folder) or default
    made: Any = getattr(transformers, name, None)
    if made is None:
        raise ValueError(f"transformers has no processor class {name!r}")
    has_video = "video_processor" in made.get_attributes()
    if has_video and not _has_torchvision():
        made = without_video(made)
    options: dict[str, Any] = {"trust_remote_code": trust, "local_files_only": True}
    parts: dict[str, Any] = {
        "image_processor": transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder, **options),
    }
    if has_video:
        parts["video_processor"] = None if not _has_torchvision() else _video_processor(folder, options)
    values, _ = made.get_processor_dict(folder, local_files_only=True)
    return _construct(made, parts, {**values, **_llava_sizes(values, made, folder, options)})


def _llava_sizes(values: dict[str, Any], made: Any, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """What says how many tokens an image is, from config.json: LLaVA's first repositories do not say it beside the
    processor, as its model counted them itself then."""
    if made.__name__ not in ("LlavaProcessor", "LlavaNextProcessor") or values.get("patch_size") is not None:
        return {}
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **options)
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(config.vision_config.model_type == "clip_vision_model"),  # its class token
    }


def without_video(processor_class: type) -> type:
    """The class (same name, same methods) for images only: neither asks for a video processor nor holds one.

    transformers' video processors need torchvision, and a class that lists one among its attributes cannot be
    constructed without it. Construct with ``video_processor=None`` where the class has no default for it. What the
    class saves lacks the video half, so files of a repository are copied and never saved again from it.
    """
    kept = [name for name in processor_class.get_attributes() if name != "video_processor"]  # type: ignore[attr-defined]

    def get_attributes(cls: Any) -> list[str]:
        return list(kept)

    own = {"get_attributes": classmethod(get_attributes), "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class,), own)


def notes(processor: Any) -> list[str]:
    """What a run says of a processor once: that its video half was left out, where it was."""
    own = type(processor)
    whole: Any = own.__mro__[1]
    left_out = "video_processor" in _attributes(whole) and "video_processor" not in _attributes(own)
    return [f"{own.__name__}: {IMAGES_ONLY}"] if left_out else []


def _attributes(processor_class: Any) -> list[str]:
    return list(processor_class.get_attributes()) if hasattr(processor_class, "get_attributes") else []


def _has_torchvision() -> bool:
    """Whether transformers may use it: present is not enough, it must import."""
    if find_spec("torchvision") is None:
        return False
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        return False
    return True


def _video_processor(folder: str, options: dict[str, Any]) -> Any:
    import transformers

    return transformers.AutoVideoProcessor.from_pretrained(folder, **options)


def _named_class(folder: Path) -> str | None:
    for name in CLASS_FILES:
        file = folder / name
        if file.is_file():
            named = json.loads(file.read_text(encoding="utf-8")).get("processor_class")
            if named:
                return str(named).removesuffix("Fast")
    return None


def _construct(made: Any, parts: dict[str, Any], values: dict[str, Any]) -> Any:
    """An object of the class: its parts, and of the other values those that it takes."""
    import inspect

    taken = inspect.signature(made.__init__).parameters
    own = {key: value for key, value in values.items() if key in taken and key not in parts}
    return made(**{name: part for name, part in parts.items() if name in taken}, **own)
