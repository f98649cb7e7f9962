"""Describe a backbone from config.json alone, and load it so that nothing is missing, added or guessed."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.backbones import _hub_files as hub
from mmtune.backbones._family import Backbone, Description, Family, Section
from mmtune.ground.errors import BackboneError
from mmtune.ground.kind_folder import kinds
from mmtune.ground.library_notes import silence_library_notes

if TYPE_CHECKING:
    import torch
    from torch import nn


def describe(section: Section) -> Description:
    """Read config.json (of a hub backbone, that one file is fetched); no torch, no transformers, no weights.

    Raises:
        BackboneError: the backbone cannot be found or read, or no family answers for its model type.
    """
    folder, commit = hub.locate(section)
    config = hub.read_config(folder, section.id)
    model_type = config.get("model_type")
    families = kinds("backbones")
    family = next((one for one in families.values() if model_type in one.FAMILY.model_types), None)
    if family is None:
        known = "; ".join(f"{name} ({', '.join(one.FAMILY.model_types)})" for name, one in families.items())
        raise BackboneError(
            f"backbone {section.id!r}: config.json says model_type {model_type!r}, for which no family answers. "
            f"Families (model types): {known}"
        )
    if section.family not in (None, family.FAMILY.name):
        raise BackboneError(
            f"backbone {section.id!r}: the recipe says family {section.family!r}, but model_type {model_type!r} of its "
            f"config.json belongs to family {family.FAMILY.name!r}"
        )
    _refuse_config(section, config)
    return Description(section.id, folder, commit, config, family, family.num_layers(config), section)


def pinned(description: Description) -> Section:
    """The section with the commit that was found as its revision: loading it again gives the same files."""
    if description.commit is None:
        return description.section
    return description.section.model_copy(update={"revision": description.commit})


def load(
    section: Section, *, device: str = "cpu", dequantize: bool = False, dtype: "torch.dtype | str | None" = None
) -> Backbone:
    """Load weights and processor. The model is in eval mode, nothing requires a gradient.

    Args:
        section: which backbone, and how it is held.
        device: where it goes.
        dequantize: load a quantized section as always, then turn its layers back into plain float32 linear layers
            that hold exactly the quantized values; the whole model is float32 then.
        dtype: instead of ``section.dtype``.

    Raises:
        BackboneError: files, weights, parts or processor are not what the family says.
    """
    import torch

    silence_library_notes()
    description = describe(section)
    files = hub.weight_files(description)
    processor = _load_processor(description)
    dtype = dtype if dtype is not None else section.dtype
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = _load_model(description, files, device, dtype)
    family = description.family
    _check_parts(model, family.FAMILY, description.num_layers)
    if section.quantize is not None:
        from mmtune.backbones import _quantization

        _quantization.check(model, family.FAMILY)
        _quantization.keep_packing(model)
        if dequantize:
            _quantization.dequantize(model)
    _limit_text(model, processor)
    try:
        family.check(model, processor)
    except BackboneError as error:
        raise BackboneError(f"backbone {section.id!r}: {error}") from error
    model.requires_grad_(False).eval()
    return Backbone(model, processor, family, description, _hash_files(files), section)


def original_weight_names(description: Description) -> set[str]:
    """The names of the weights in the backbone's own files.

    Raises:
        BackboneError: as ``load`` where the files cannot be had.
    """
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


def _refuse_config(section: Section, config: dict[str, Any]) -> None:
    if "quantization_config" in config:
        raise BackboneError(
            f"backbone {section.id!r} is stored quantized: give the full-precision repository it was made from "
            f"and backbone.quantize"
        )
    foreign = sorted(ref for ref in (config.get("auto_map") or {}).values() if "--" in str(ref))
    if section.trust_remote_code and foreign:
        raise BackboneError(
            f"backbone {section.id!r} takes its code from another repository, which its commit does not pin: "
            f"{', '.join(foreign)}"
        )


def _load_processor(description: Description) -> Any:
    """The family's processor, made of the repository's tokenizer and its Pillow image processor."""
    import transformers

    from mmtune.backbones._quiet_loading import quiet

    hub.component_files(description)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts are encoded one by one; else it warns at each fork
    folder, trust = str(description.folder), description.section.trust_remote_code
    options = {"trust_remote_code": trust, "local_files_only": True}
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            pictures = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        except (OSError, ValueError, ImportError) as error:
            raise BackboneError(f"backbone {description.id!r}: its processor does not load: {error}") from error
        family: Family = description.family.FAMILY
        made = getattr(transformers, family.processor_classes[description.config["model_type"]])
        return made(image_processor=pictures, tokenizer=tokenizer)


def _load_model(description: Description, files: list[Path], device: str, dtype: "torch.dtype") -> Any:
    import pickle

    import transformers
    from safetensors import SafetensorError

    from mmtune.backbones._quiet_loading import quiet

    family: Family = description.family.FAMILY
    options: dict[str, Any] = {"dtype": dtype}
    if description.section.quantize is not None:
        from mmtune.backbones import _quantization

        options |= _quantization.load_options(description.section.quantize, family, dtype, device)
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
    return model if description.section.quantize is not None else model.to(device)


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


def _limit_text(model: "nn.Module", processor: Any) -> None:
    """The tokenizer cuts at the text tower's limit, whatever the tokenizer's own files say."""
    config: Any = model.config
    limit = int(config.text_config.max_position_embeddings)
    processor.tokenizer.model_max_length = min(limit, processor.tokenizer.model_max_length)


def _hash_files(files: list[Path]) -> str:
    """sha256 over the files' bytes in the order of their names, hex."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
