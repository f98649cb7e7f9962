"""Run in a process of its own: reload model folders with transformers alone and embed given tensors with them.

``python -P fresh_reload.py JOB.json`` where the job lists cases of ``folder``, ``model_class``, ``inputs`` (a
safetensors file of encoded samples) and ``output`` (a safetensors file to write, ``image`` and ``text`` float32[B, D],
L2-normalised). Beside each output stands ``output + ".json"`` with the names of missing and unexpected weights.
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
    import inspect

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
    embedded = {}
    with torch.no_grad():
        for name, method in (("image", model.get_image_features), ("text", model.get_text_features)):
            wanted = set(inspect.signature(method).parameters)
            features = method(**{key: value for key, value in inputs.items() if key in wanted}).pooler_output
            embedded[name] = torch.nn.functional.normalize(features.float(), dim=-1).contiguous()
    save_file(embedded, case["output"])
    problems = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    Path(case["output"] + ".json").write_text(json.dumps(problems), encoding="utf-8")


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
