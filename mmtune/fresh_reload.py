"""Run in a process of its own: reload model folders with transformers alone and embed given tensors with them.

``python -P fresh_reload.py JOB.json`` where the job lists cases of ``folder``, ``model_class``, ``inputs`` (a
safetensors file of encoded samples) and ``output`` (a safetensors file to write, ``image`` and ``text`` float32[B, D],
L2-normalised). Where a class gives no embeddings, ``whole_forward`` holds the arguments of its forward pass and the
output to write instead, as ``cosines`` float32[B, B]. Beside each output stands ``output + ".json"`` with the names of
missing and unexpected weights.
It must know nothing of this project or of peft, and says so: the job fails if either was imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

FORBIDDEN = ("mmtune", "peft", "bitsandbytes")
"""Packages that a merged model must not need."""


def embed_case(case: dict[str, Any]) -> None:
    """Load one folder in float32 and write its embeddings of the case's inputs."""
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
        embedded = _whole(model, inputs, *case["whole_forward"]) if case.get("whole_forward") else _each(model, inputs)
    save_file(embedded, case["output"])
    problems = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    Path(case["output"] + ".json").write_text(json.dumps(problems), encoding="utf-8")


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
    """The cosines of all images with all texts, from one forward pass.

    Where the config says that texts begin with place-holders for the image (BLIP-2), they are put there: the forward
    pass cuts them off unread.
    """
    import torch

    if getattr(model.config, "image_token_index", None) is not None:
        places = (model.config.num_query_tokens, 0)
        inputs = {n: torch.nn.functional.pad(v, places) if v.dim() == 2 else v for n, v in inputs.items()}
    return {"cosines": model(**inputs, **options)[output].float().contiguous()}


def main(job: str) -> int:
    """Embed every case; 1 when something was imported that must not be needed."""
    for case in json.loads(Path(job).read_text(encoding="utf-8")):
        embed_case(case)
    imported = sorted({name.split(".")[0] for name in sys.modules} & set(FORBIDDEN))
    if imported:
        print(f"the fresh process imported {', '.join(imported)}", file=sys.stderr)
    return 1 if imported else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
