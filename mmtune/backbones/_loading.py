"""Load a backbone so that nothing is missing, added or guessed."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _hub_files as hub
from mmtune.backbones._attention import attention_options
from mmtune.backbones._describing import describe
from mmtune.backbones._family import Backbone, Description, Family, Section
from mmtune.backbones._image_limits import limit_images
from mmtune.backbones._pixel_tables import set_image_processing
from mmtune.ground.errors import BackboneError
from mmtune.ground.library_notes import silence_library_notes

if TYPE_CHECKING:
    import torch
    from torch import nn


def load(
    section: Section,
    *,
    device: str = "cpu",
    dequantize: bool = False,
    dtype: "torch.dtype | str | None" = None,
    ability: str | Sequence[str] = "",
) -> Backbone:
    """Load weights and processor. The model is in eval mode, nothing requires a gradient.

    Args:
        section: which backbone, and how it is held.
        device: where it goes.
        dequantize: load a quantized section as always, then turn its layers back into plain float32 linear layers
            that hold exactly the quantized values; the whole model is float32 then.
        dtype: instead of ``section.dtype``.
        ability: what the task uses of it, as for ``describe``.

    Raises:
        BackboneError: files, weights, parts or processor are not what the family says.
    """
    import torch

    silence_library_notes()
    description = describe(section, ability=ability)
    files = hub.weight_files(description)
    processor = _load_processor(description)
    dtype = dtype if dtype is not None else section.dtype
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    family, traits = description.family, description.traits
    model, fresh = (_load_pair if description.encoders else _load_model)(description, files, device, dtype)
    if hasattr(family, "after_loading"):
        family.after_loading(model)
    _check_parts(model, traits, description.num_layers)
    if section.quantize is not None:
        from mmtune.backbones import _quantization

        _quantization.check(model, traits)
        _quantization.keep_packing(model)
        if dequantize:
            _quantization.dequantize(model)
    _limit_text(family, model, processor)
    try:
        family.check(model, processor)
    except BackboneError as error:
        raise BackboneError(f"backbone {section.name!r}: {error}") from error
    model.requires_grad_(False).eval()
    weight_hash = _hash_files(files, [model.get_parameter(name).shape for name in fresh])
    return Backbone(model, processor, family, description, weight_hash, section, fresh)


def load_processor(section: Section, *, ability: str | Sequence[str] = "") -> Backbone:
    """A backbone without weights: its processor is as ``load`` gives it, its ``model`` has a ``config`` and no more.

    Raises:
        BackboneError: config.json or the processor cannot be had.
    """
    import transformers

    silence_library_notes()
    description = describe(section, ability=ability)
    processor = _load_processor(description)
    if description.encoders:
        config = transformers.VisionTextDualEncoderConfig.from_dict(description.config)
    else:
        trust = section.trust_remote_code
        config = transformers.AutoConfig.from_pretrained(
            str(description.folder), local_files_only=True, trust_remote_code=trust
        )
    model: Any = SimpleNamespace(config=config)
    _limit_text(description.family, model, processor)
    return Backbone(model, processor, description.family, description, "", section)


def original_weight_names(description: Description) -> set[str]:
    """The names of the weights in the backbone's own files; of a pair, those of the model that it becomes.

    Raises:
        BackboneError: as ``load`` where the files cannot be had.
    """
    if description.encoders:
        from mmtune.backbones import _encoder_pair

        return _encoder_pair.weight_names(description)
    names: set[str] = set()
    for file in hub.weight_files(description):
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="np") as opened:
                names.update(opened.keys())
        else:
            import torch

            names.update(torch.load(file, map_location="meta", weights_only=True, mmap=True))
    return names


def _load_processor(description: Description) -> Any:
    """The processor as the family loads it, from files that were all fetched before."""
    from mmtune.backbones._quiet_loading import quiet

    hub.component_files(description)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts are encoded one by one; else it warns at each fork
    with quiet():
        try:
            if description.encoders:
                from mmtune.backbones import _encoder_pair

                processor = _encoder_pair.load_processor(description)
            else:
                processor = getattr(description.family, "load_processor", image_and_text_processor)(description)
                limit_images(processor, description.section.image, description.traits)
            set_image_processing(processor, description)
            return processor
        except (OSError, ValueError, ImportError) as error:
            raise BackboneError(f"backbone {description.id!r}: its processor does not load: {error}") from error


def image_and_text_processor(description: Description) -> Any:
    """The family's processor class around the repository's tokenizer and its Pillow image processor."""
    import transformers

    folder, trust = str(description.folder), description.section.trust_remote_code
    options = {"trust_remote_code": trust, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    pictures = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
    made = getattr(transformers, description.traits.processor_classes[description.config["model_type"]])
    return made(image_processor=pictures, tokenizer=tokenizer)


def _load_pair(
    description: Description, files: list[Path], device: str, dtype: "torch.dtype"
) -> tuple[Any, tuple[str, ...]]:
    """As ``_load_model`` for two encoders; the names are those of the projections and of a pooler that was lacking."""
    from mmtune.backbones import _encoder_pair

    return _encoder_pair.load_pair(description, device, dtype)


def _load_model(
    description: Description, files: list[Path], device: str, dtype: "torch.dtype"
) -> tuple[Any, tuple[str, ...]]:
    """The model, and the names of its freshly drawn parameters: none, a checkpoint holds them all."""
    import pickle

    import transformers
    from safetensors import SafetensorError

    from mmtune.backbones._quiet_loading import quiet

    family = description.traits
    options: dict[str, Any] = {"dtype": dtype, **attention_options(description.section, device)}
    if description.section.quantize is not None:
        from mmtune.backbones import _quantization

        options |= _quantization.load_options(description.section, family, dtype, device)
    with quiet():
        try:
            model, report = getattr(transformers, family.auto_class).from_pretrained(
                str(description.folder),
                use_safetensors=files[0].suffix == ".safetensors",
                weights_only=True,
                local_files_only=True,
                trust_remote_code=description.section.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them; _check_weights refuses them
                **options,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
            raise BackboneError(f"backbone {description.id!r} does not load: {error}") from error
    _check_weights(description.id, family, report)
    return model if description.section.quantize is not None else model.to(device), ()


def _check_weights(name: str, family: Family, report: dict[str, Any]) -> None:
    """Every weight was there, with its shape, and none was left over."""
    missing = _not_matching(report["missing_keys"], family.new_weights)
    unexpected = _not_matching(report["unexpected_keys"], family.ignored_weights)
    shapes = [f"{key} is {tuple(have)} in the file, {tuple(want)} in the model" for key, have, want in _shapes(report)]
    problems = []
    if missing:
        problems.append(f"the files lack weights that the model needs: {_some(missing)}")
    if unexpected:
        problems.append(f"the files hold weights that the model does not have: {_some(unexpected)}")
    if shapes:
        problems.append(f"weights have other shapes than config.json says: {_some(shapes)}")
    if problems:
        raise BackboneError(f"backbone {name!r} (family {family.name}): " + "; ".join(problems))


def _shapes(report: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return sorted(report.get("mismatched_keys") or [])


def _not_matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns))


def _some(names: list[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _check_parts(model: "nn.Module", family: Family, num_layers: dict[str, int]) -> None:
    """The family's paths lead to modules of the loaded model, and the towers are as deep as config.json says."""
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    wanted = [*family.parts.values(), *family.layers.values(), *(h for heads in family.heads.values() for h in heads)]
    wanted += [family.head] if family.head else []
    problems = [_nearest(path, modules) for path in wanted if path not in modules]
    problems += [_nearest(name, parameters) for name in family.temperature if name not in parameters]
    for part, path in family.layers.items():
        found = len(list(modules[path].children())) if path in modules else num_layers[part]
        if found != num_layers[part]:
            problems.append(f"{path} has {found} layers, config.json says {num_layers[part]}")
    if problems:
        raise BackboneError(
            f"family {family.name!r} does not fit the loaded {type(model).__name__}: " + "; ".join(problems)
        )


def _nearest(path: str, there: dict[str, Any]) -> str:
    near = difflib.get_close_matches(path, there, n=3, cutoff=0.4)
    return f"there is no {path!r}" + (f" (nearest: {', '.join(near)})" if near else "")


def _limit_text(family: ModuleType, model: "nn.Module", processor: Any) -> None:
    """The tokenizer cuts at the text tower's limit, whatever the tokenizer's own files say."""
    limit = int(getattr(family, "text_limit", _positions_of_the_text_tower)(model.config))
    processor.tokenizer.model_max_length = min(limit, processor.tokenizer.model_max_length)


def _positions_of_the_text_tower(config: Any) -> int:
    return int(config.text_config.max_position_embeddings)


def _hash_files(files: list[Path], fresh: "list[torch.Size]") -> str:
    """sha256 over the files' bytes in the order of their names, then what is drawn for ``fresh`` (float32), hex."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    if fresh:
        from mmtune.backbones import _encoder_pair

        for values in _encoder_pair.drawn(fresh):
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()
