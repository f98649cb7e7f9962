"""What states are kept under: a hash of everything that they are a function of.

A *fingerprint* says which trunk it is: its weights, how they are held and computed with, and how inputs are prepared.
A *key* says which input: an image's pixels, a text's tokens. Where one bit of either differs, nothing is found; so what
is found is never stale.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mmtune.shown_media import ShownMedia, content_hash
from mmtune.trunk_cuts import MEDIA, Cut

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)
"""Stands where an input is not kept: it is new every time."""

FORMAT = 1
"""Goes up when states are kept in another way or computed by other rules."""

PACKAGES = ("torch", "transformers", "bitsandbytes", "pillow", "numpy")
"""Their versions may change a bit of what is computed."""

VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "name_or_path")
"""What a config says that changes nothing that is computed."""


def about_trunk(backbone: Any, cut: Cut, *, precision: str, device: "torch.device | str") -> dict[str, Any]:
    """What states are a function of beside their inputs, as plain JSON values; ``fingerprint`` hashes it.

    Args:
        backbone: loaded.
        cut: where its trunk ends.
        precision: of the forward passes: ``no``, ``bf16`` or ``fp16``.
        device: where they run: a GPU rounds in another way than a CPU.
    """
    import torch

    versions = {name: _version(name) for name in (*PACKAGES, "mmtune")}
    if cut.kind == "pixels":
        preparation = hash_json(without_volatile(_preparation(backbone)))
        about = {"format": FORMAT, "backbone": backbone.section.name, "family": backbone.traits.name}
        about |= {"kind": cut.kind, "cut": str(cut), "side": cut.side}
        return {**about, "preparation": preparation, "versions": versions}
    held = backbone.section.model_dump(include={"dtype", "quantize", "double_quantization", "compute_dtype"})
    held["code"] = backbone.section.revision if backbone.section.trust_remote_code else None
    held["attention"] = getattr(backbone.model.config, "_attn_implementation", None)
    about = {
        "format": FORMAT,
        "backbone": backbone.section.name,
        "family": backbone.traits.name,
        "class": type(backbone.model).__name__,
        "side": cut.side,
        "kind": cut.kind,
        "cut": str(cut),
        "part": cut.part,
        "depth": cut.depth,
        "held": held,
        "precision": precision,
        "device": torch.device(device).type,
        "weights": hash_weights(backbone.model, cut.roots),
        "config": hash_json(without_volatile(backbone.model.config.to_dict())),
        "versions": versions,
    }
    if cut.side == MEDIA:
        about["preparation"] = hash_json(without_volatile(_preparation(backbone)))
    return about


def fingerprint(about: Mapping[str, Any]) -> str:
    """32 hex digits: the name of the trunk's folder. The backbone's name has no say: equal weights are one trunk."""
    named = ("backbone", "family") if about["kind"] == "pixels" else ("backbone",)
    return hash_json({key: value for key, value in about.items() if key not in named})


def hash_weights(model: "nn.Module", roots: Iterable[str]) -> str:
    """Hash of every weight and buffer at or under the paths, hex."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for root in sorted(roots):
        for name, value in sorted(_tensors_at(model, root).items()):
            digest.update(f"{root} {name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(tensor_bytes(value))
    return digest.hexdigest()


def _tensors_at(model: "nn.Module", path: str) -> "dict[str, Tensor]":
    """Weights and buffers at a path, the buffers that are not saved among them."""
    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    one = getattr(parent, name)
    if not hasattr(one, "state_dict"):
        return {"": one.detach()}
    saved = {key: value for key, value in one.state_dict().items() if hasattr(value, "detach")}
    return {**dict(one.named_buffers()), **saved}


def tensor_bytes(value: "Tensor") -> Any:
    """The bytes of a tensor of any dtype, as something that has a buffer."""
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def hash_json(value: Any) -> str:
    """Hash of plain values, hex; what is no JSON counts by its text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()


def without_volatile(value: Any) -> Any:
    """A config without what says nothing about what is computed, at any depth."""
    if isinstance(value, dict):
        return {str(key): without_volatile(one) for key, one in value.items() if key not in VOLATILE}
    return [without_volatile(one) for one in value] if isinstance(value, list | tuple) else value


def _preparation(backbone: Any) -> dict[str, Any]:
    """How an image or a sound becomes tensors."""
    processor = backbone.processor
    reader = getattr(processor, "image_processor", None) or processor.feature_extractor
    return {
        "class": type(reader).__name__,
        **reader.to_dict(),
        "limits": backbone.section.image,
        "how": backbone.section.image_processing,
    }


def _version(package: str) -> str:
    if package == "mmtune":
        import mmtune

        return mmtune.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# --- keys of inputs


def media_key(shown: "Iterable[ShownMedia]", contents: Iterable[bytes]) -> bytes:
    """The key of what a sample shows: the hashes of its images' contents, in their order, each with its view.

    Where one of them is changed at random every time, that is ``NO_KEY``.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for one, content in zip(shown, contents, strict=True):
        if one.view is None:
            return NO_KEY
        digest.update(content)
        digest.update(f"{len(one.view)} {one.view}".encode("utf-8", "surrogatepass"))
    return digest.digest()


def recall_contents(shown: "Iterable[ShownMedia]", memory: Any) -> list[bytes] | None:
    """What was read at the references before, if nothing changed there since; None where one is not known."""
    found = []
    for one in shown:
        stamp = getattr(one.reference, "content_stamp", lambda: None)()
        content = memory.recall(stamp) if stamp is not None else None
        if content is None:
            return None
        found.append(content)
    return found


def read_content(shown: ShownMedia, memory: Any) -> tuple[Any, bytes]:
    """The image or sound unchanged, and the hash of what it is, which is remembered.

    Raises:
        DataError: it cannot be read.
    """
    stamp = getattr(shown.reference, "content_stamp", lambda: None)()  # before reading: what is read may be newer
    media = shown.reference.read()
    content = content_hash(media)
    if stamp is not None:
        memory.remember(stamp, content)
    return media, content


def tokens_key(encoded: "Mapping[str, Tensor]") -> bytes:
    """The key of a text: its tokens, and what stands beside them."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name, value in sorted(encoded.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest.digest()
