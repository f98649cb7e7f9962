"""Run in a process of its own: reload model folders with transformers alone and run given tensors through them.

``python -P fresh_reload.py JOB.json`` where the job lists cases of ``folder``, ``model_class``, ``inputs`` (a
safetensors file of encoded samples), ``ability`` and ``output`` (a safetensors file to write), which holds for

- ``embed``: ``image`` and ``text`` float32[B, D], L2-normalised; where a class gives no embeddings, ``whole_forward``
  holds the arguments of its forward pass and the output to write instead, as ``cosines`` float32[B, B];
- ``match`` and ``classify``: that output as ``log_odds`` float32[B] or ``answers`` float32[B, C];
- ``generate``: ``logits`` float32[N, V] of the places that carry a label, from what reaches the layer at ``head``.

Beside each output stands ``output + ".json"`` with the names of missing and unexpected weights.
It must know nothing of this project or of peft, and says so: the job fails if either was imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

FORBIDDEN = ("mmtune", "peft", "bitsandbytes")
"""Packages that a merged model must not need."""


def embed_case(case: dict[str, Any]) -> None:
    """Load one folder in float32 and write what it makes of the case's inputs."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    model, report = getattr(transformers, case["model_class"]).from_pretrained(
        case["folder"],
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=case["trust_remote_code"],
        output_loading_info=True,
    )
    model.eval()
    inputs = load_file(case["inputs"])
    with torch.no_grad():
        made = _outputs(model, inputs, case)
    save_file({name: value.contiguous() for name, value in made.items()}, case["output"])
    problems = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    Path(case["output"] + ".json").write_text(json.dumps(problems), encoding="utf-8")


def _outputs(model: Any, inputs: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    if case.get("ability") == "generate":
        return _labelled(model, inputs, case["head"])
    if not case.get("whole_forward"):
        return _each(model, inputs)
    options, name = case["whole_forward"]
    if case.get("ability") == "match":
        scores = model(**_with_places(model, inputs), **options)[name].float()
        return {"log_odds": scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores[:, 0]}
    if case.get("ability") == "classify":
        return {"answers": model(**inputs, **options)[name].float()}
    return _whole(model, inputs, options, name)


class _HeadReached(Exception):
    """The forward pass need not go on: the logits of all places could fill the memory."""


def _labelled(model: Any, inputs: dict[str, Any], path: str) -> dict[str, Any]:
    """The logits at the places that carry a label; the head's input is caught on its way."""
    head, labels = model.get_submodule(path), inputs["labels"]
    caught: list[Any] = []

    def stop(module: Any, arguments: tuple[Any, ...]) -> None:
        caught.append(arguments[0])
        raise _HeadReached

    handle = head.register_forward_pre_hook(stop)
    try:
        model(**{name: value for name, value in inputs.items() if name != "labels"})
    except _HeadReached:
        pass
    finally:
        handle.remove()
    states = caught[0][:, -labels.shape[1] :]  # GIT's head passes over the image too, which stands before the words
    return {"logits": head(states[labels != -100]).float()}


def _each(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The embeddings of the images (or sounds, under the same name) and of the texts."""
    import inspect

    import torch

    embedded = {}
    modality = "image" if hasattr(model, "get_image_features") else "audio"
    for name, method in (("image", getattr(model, f"get_{modality}_features")), ("text", model.get_text_features)):
        wanted = set(inspect.signature(method).parameters)
        features = method(**{key: value for key, value in inputs.items() if key in wanted}).pooler_output
        embedded[name] = torch.nn.functional.normalize(features.float(), dim=-1).contiguous()
    return embedded


def _whole(model: Any, inputs: dict[str, Any], options: dict[str, Any], output: str) -> dict[str, Any]:
    """The cosines of all images with all texts, from one forward pass."""
    return {"cosines": model(**_with_places(model, inputs), **options)[output].float().contiguous()}


def _with_places(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Where the config says that texts begin with place-holders for the image (BLIP-2), they are put there.

    The forward pass cuts their ids off unread; their attention mask, which matching keeps, is the queries' own.
    """
    import torch

    if getattr(model.config, "image_token_index", None) is None:
        return inputs
    places = (model.config.num_query_tokens, 0)
    pad = torch.nn.functional.pad
    return {n: pad(v, places, value=int("mask" in n)) if v.dim() == 2 else v for n, v in inputs.items()}


def main(job: str) -> int:
    """Run every case; 1 when something was imported that must not be needed."""
    for case in json.loads(Path(job).read_text(encoding="utf-8")):
        embed_case(case)
    imported = sorted({name.split(".")[0] for name in sys.modules} & set(FORBIDDEN))
    if imported:
        print(f"the fresh process imported {', '.join(imported)}", file=sys.stderr)
    return 1 if imported else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
