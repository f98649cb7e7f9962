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
from mmtune.ground.records import Sample, Turn
from mmtune.ground.safe_files import read_json, save_tensors, write_json
from mmtune.token_states import token_states

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.backbones import Backbone

    Embedded = dict[str, Tensor]

NUM_SAMPLES = 32
"""Samples that are embedded for the proof."""

COMPARED = {"embed": "embeddings", "generate": "logits", "match": "log odds", "classify": "logits"}
"""Ability -> what of two models is compared."""

NUM_SPOKEN, NUM_LABELS = 8, 16
"""Samples for the proof of a model that generates, and label tokens of each: vocabularies are large."""

NO_LABEL = -100

TOLERANCE = 1e-5
"""Largest difference of embeddings, as a share of their range, between two float32 computations of one model."""

ROUNDING = {"float32": TOLERANCE, "bfloat16": 8 * 2.0**-7, "float16": 8 * 2.0**-10}
"""What rounding the weights to a number format may cost: eight of its steps, as a share of the embeddings' range."""


@dataclass(frozen=True)
class Case:
    """A folder to reload: the encoded samples to run through it, and how transformers finds and calls its class."""

    folder: Path
    inputs: "Mapping[str, Tensor]"
    model_class: str
    trust_remote_code: bool = False
    whole_forward: tuple[Mapping[str, Any], str] | None = None
    ability: str = "embed"
    head: str = ""


def case_of(backbone: "Backbone", folder: Path, inputs: "Mapping[str, Tensor]") -> Case:
    """The case of a folder that holds the backbone's model."""
    traits, trust = backbone.traits, backbone.section.trust_remote_code
    return Case(folder, inputs, traits.auto_class, trust, traits.whole_forward, ability_of(backbone), traits.head)


def ability_of(backbone: "Backbone") -> str:
    """The ability that the backbone is used for; where no task says it, to embed, or what it has."""
    there = backbone.traits.abilities
    return backbone.description.ability or ("embed" if "embed" in there else sorted(there)[0])


def encode_samples(backbone: "Backbone", samples: Sequence[Sample], count: int | None = None) -> "dict[str, Tensor]":
    """The first ``count`` samples (null: enough) that can be read, each with its first text, encoded and padded.

    Raises:
        DataError: not one of them can be read.
    """
    speaks = ability_of(backbone) == "generate"
    count = count or (NUM_SPOKEN if speaks else NUM_SAMPLES)
    encoded: list[dict[str, Tensor]] = []
    reason = "there is no sample"
    for sample in samples:
        try:
            one = (_encode_spoken if speaks else _encode_pair)(backbone, sample)
        except DataError as error:
            reason = str(error)
            continue
        if not encoded or _goes_with(one, encoded[0]):
            encoded.append(one)
        if len(encoded) == count:
            break
    if not encoded:
        raise DataError(f"the merge needs real samples to be proven with, and none can be read: {reason}")
    padded: dict[str, Tensor] = backbone.family.pad(backbone.processor, encoded)
    return padded


def _goes_with(one: "Mapping[str, Tensor]", first: "Mapping[str, Tensor]") -> bool:
    """Questions that an encoder reads must be equally long: transformers' BLIP shows the decoder their padding."""
    return "decoder_input_ids" not in first or len(one["input_ids"]) == len(first["input_ids"])


def _encode_pair(backbone: "Backbone", sample: Sample) -> "dict[str, Tensor]":
    """The image or sound with the sample's question, or its first caption."""
    pixels = backbone.family.encode_media(backbone.processor, sample.media.read())
    text = _first(sample, (sample.question, *sample.captions))
    return {**pixels, **backbone.family.encode_text(backbone.processor, text)}


def _first(sample: Sample, texts: Sequence[str]) -> str:
    found = next((text for text in texts if text), None)
    if found is None:
        raise DataError(f"{sample.media.where}: there is no text to prove the merge with")
    return found


def _encode_spoken(backbone: "Backbone", sample: Sample) -> "dict[str, Tensor]":
    """The sample's conversation, or its question and answer, or a prompt and its caption; the first labels of it."""
    turns = sample.turns
    if not turns:
        asked = sample.question or backbone.traits.caption_prompt
        said = _first(sample, (*sample.answers, *sample.captions))
        turns = (Turn("user", (sample.media, asked) if asked else (sample.media,)), Turn("assistant", (said,)))
    images = [media.read() for turn in turns for media in turn.media]
    encoded: dict[str, Tensor] = backbone.family.encode_turns(backbone.processor, turns, images)
    labels = encoded["labels"].clone()
    labels[(labels != NO_LABEL).cumsum(0) > NUM_LABELS] = NO_LABEL
    return {**encoded, "labels": labels}


def embed(backbone: "Backbone", inputs: "Mapping[str, Tensor]") -> "Embedded":
    """What the model makes of encoded samples, in float32, by what it is used for.

    - to embed: ``image`` and ``text`` [B, D]; where transformers' class gives no embeddings, the ``cosines`` [B, B] of
      all images with all texts;
    - to match: ``log_odds`` [B]; to classify: ``answers`` [B, C];
    - to generate: ``logits`` [N, V] of the places that carry a label.
    """
    import torch

    ability = ability_of(backbone)
    with torch.no_grad():
        if ability == "match":
            return {"log_odds": backbone.family.match(backbone.model, inputs).float().cpu()}
        if ability == "classify":
            return {"answers": backbone.family.classify(backbone.model, inputs).float().cpu()}
        if ability == "generate":
            states = token_states(backbone, inputs)
            head = backbone.model.get_submodule(backbone.traits.head)
            # The layer alone, as in the fresh process: what some classes do to logits after it has no weights.
            return {"logits": head.forward(states[inputs["labels"] != NO_LABEL]).float().cpu()}
    return _embeddings(backbone, inputs)


def _embeddings(backbone: "Backbone", inputs: "Mapping[str, Tensor]") -> "Embedded":
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
    """Reload every folder in one fresh process with transformers alone and give what it makes of the case's inputs.

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
                "ability": case.ability,
                "head": case.head,
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


def check_weight_names(
    folder: Path, original: Collection[str], ignored: Collection[str], tied: Collection[str] = ()
) -> dict[str, list[str]]:
    """Weights in the folder bear the names of the original checkpoint; those the family ignores may be gone.

    Args:
        folder: the merged folder.
        original: the names in the backbone's own files.
        ignored: patterns of names that the family ignores.
        tied: names in the model of weights that are one weight (a head, and the embeddings that it is). Some
            checkpoints hold them twice, or under the other name; transformers saves them once.

    Raises:
        CheckpointError: names were lost or added.
    """
    import re

    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            names |= set(opened.keys())
    gone = set(original) - names
    dropped = {name for name in gone if any(re.fullmatch(pattern, name) for pattern in ignored)}
    twice = {name for name in gone - dropped if any(_ends_alike(name, other) for other in tied)}
    new = {name for name in names - set(original) if not (twice and any(_ends_alike(name, other) for other in tied))}
    lost, added = sorted(gone - dropped - twice), sorted(new)
    if lost or added:
        raise CheckpointError(
            f"the merged weights are named otherwise than the original's: lost {lost[:5]}, added {added[:5]}"
        )
    return {"dropped_buffers": sorted(dropped), **({"dropped_ties": sorted(twice)} if twice else {})}


def _ends_alike(name: str, other: str) -> bool:
    """Whether two names are of one weight: old checkpoints have other beginnings (``language_model.lm_head``)."""
    return f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}")
