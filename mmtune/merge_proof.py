"""The proof that a merged folder is the adapted model: real samples, a fresh process, and every tensor compared.

Letters: B samples, D embedding width.
"""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import CheckpointError, DataError
from mmtune.ground.records import Sample
from mmtune.ground.safe_files import read_json, save_tensors, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.backbones import Backbone

    Embedded = dict[str, Tensor]

NUM_SAMPLES = 32
"""Samples that are embedded for the proof."""

TOLERANCE = 1e-5
"""Largest difference of embeddings, as a share of their range, between two float32 computations of one model."""

ROUNDING = {"float32": TOLERANCE, "bfloat16": 8 * 2.0**-7, "float16": 8 * 2.0**-10}
"""What rounding the weights to a number format may cost: eight of its steps, as a share of the embeddings' range."""


@dataclass(frozen=True)
class Case:
    """A folder to reload: the encoded samples to embed with it, and how transformers finds and calls its class."""

    folder: Path
    inputs: "Mapping[str, Tensor]"
    model_class: str
    trust_remote_code: bool = False
    whole_forward: tuple[Mapping[str, Any], str] | None = None


def encode_samples(backbone: "Backbone", samples: Sequence[Sample], count: int = NUM_SAMPLES) -> "dict[str, Tensor]":
    """The first ``count`` samples whose image or sound can be read, each with its first caption, encoded and padded.

    Raises:
        DataError: not one image can be read.
    """
    encoded, reason = [], "there is no sample"
    for sample in samples:
        try:
            image = sample.media.read()
        except DataError as error:
            reason = str(error)
            continue
        pixels = backbone.family.encode_media(backbone.processor, image)
        encoded.append({**pixels, **backbone.family.encode_text(backbone.processor, sample.captions[0])})
        if len(encoded) == count:
            break
    if not encoded:
        raise DataError(f"the merge needs real samples to be proven with, and none can be read: {reason}")
    padded: dict[str, Tensor] = backbone.family.pad(backbone.processor, encoded)
    return padded


def embed(backbone: "Backbone", inputs: "Mapping[str, Tensor]") -> "Embedded":
    """Embeddings ``image`` and ``text`` float32[B, D] of encoded samples; where transformers' class gives no
    embeddings, the ``cosines`` float32[B, B] of all images with all texts.
    """
    import torch

    from mmtune.losses._cosines import cosines

    with torch.no_grad():
        image = backbone.family.embed_media(backbone.model, inputs)
        text = backbone.family.embed_text(backbone.model, inputs)
    image, text = image.float().cpu(), text.float().cpu()
    if backbone.traits.whole_forward is not None:
        return {"cosines": cosines(image, text)}
    return {"image": image, "text": text}


def gap(one: "Embedded", reference: "Embedded") -> float:
    """Largest difference of two sets of embeddings, as a share of the reference's range (largest minus smallest)."""
    worst = 0.0
    for name, expected in reference.items():
        if one[name].shape != expected.shape or not bool(one[name].isfinite().all()):
            return float("inf")
        span = float(expected.max() - expected.min())
        worst = max(worst, float((one[name] - expected).abs().max()) / max(span, 1e-12))
    return worst


def reload_elsewhere(cases: Sequence[Case], scratch: Path) -> "list[Embedded]":
    """Reload every folder in one fresh process with transformers alone and give its embeddings.

    Raises:
        CheckpointError: the process fails, needs this project or peft, or misses weights.
    """
    from mmtune.ground.safe_files import load_tensors

    job = []
    for number, case in enumerate(cases):
        save_tensors(scratch / f"inputs-{number}.safetensors", case.inputs)
        job.append(
            {
                "folder": str(case.folder.resolve()),
                "model_class": case.model_class,
                "trust_remote_code": case.trust_remote_code,
                "whole_forward": case.whole_forward,
                "inputs": str(scratch / f"inputs-{number}.safetensors"),
                "output": str(scratch / f"outputs-{number}.safetensors"),
            }
        )
    write_json(scratch / "job.json", job)
    _run_alone(scratch / "job.json")
    embedded = []
    for entry in job:
        output = str(entry["output"])
        problems = {key: names for key, names in read_json(Path(output + ".json")).items() if names}
        if problems:
            raise CheckpointError(f"the merged folder does not load cleanly: {json.dumps(problems)}")
        embedded.append(load_tensors(Path(output)))
    return embedded


def _run_alone(job: Path) -> None:
    """``-P`` keeps the script's own folder off the path of imports, where our names could shadow others'."""
    script = Path(__file__).resolve().with_name("fresh_reload.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(job)], capture_output=True, text=True, env=environment, cwd=job.parent
    )
    if done.returncode:
        raise CheckpointError(
            "a fresh process with transformers alone could not use the merged folder:\n" + done.stderr.strip()[-2000:]
        )


def compare_tensors(
    written: "Mapping[str, Tensor]",
    expected: "Mapping[str, Tensor]",
    base: "Mapping[str, Tensor]",
    trained: Collection[str],
) -> dict[str, Any]:
    """Hold every tensor of the folder against what was merged and against the base, all in the folder's dtype.

    Gives counts for the report, and ``trained_but_equal_to_base`` (trained to no effect, or lost in rounding).

    Raises:
        CheckpointError: a tensor is missing or added, is not the merged one, or changed without being trained.
    """
    import torch

    problems = [f"{name} is missing" for name in sorted(set(expected) - set(written))]
    problems += [f"{name} is not of the model" for name in sorted(set(written) - set(expected))]
    equal = []
    for name in sorted(set(written) & set(expected)):
        if not torch.equal(written[name], expected[name].to(written[name].dtype)):
            problems.append(f"{name} is not the merged tensor")
        unchanged = torch.equal(written[name], base[name].to(written[name].dtype))
        if name in trained and unchanged:
            equal.append(name)
        elif name not in trained and not unchanged:
            problems.append(f"{name} was not trained, yet differs from the base")
    problems += [f"{name} was trained and is not there" for name in sorted(set(trained) - set(written))]
    if problems:
        shown = "\n  ".join(problems[:20])
        raise CheckpointError(f"the merged folder does not hold what was trained:\n  {shown}")
    return {
        "total": len(written),
        "trained": len(trained),
        "changed": len(trained) - len(equal),
        "trained_but_equal_to_base": equal,
    }


def check_weight_names(folder: Path, original: Collection[str], ignored: Collection[str]) -> dict[str, list[str]]:
    """Weights in the folder bear the names of the original checkpoint; those the family ignores may be gone.

    Raises:
        CheckpointError: names were lost or added.
    """
    import re

    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            names |= set(opened.keys())
    dropped = {name for name in set(original) - names if any(re.fullmatch(pattern, name) for pattern in ignored)}
    lost, added = sorted(set(original) - names - dropped), sorted(names - set(original))
    if lost or added:
        raise CheckpointError(
            f"the merged weights are named otherwise than the original's: lost {lost[:5]}, added {added[:5]}"
        )
    return {"dropped_buffers": sorted(dropped)}
