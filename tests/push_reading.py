"""Run in a process of its own: run the code that the cards on a hub show, and embed given tensors with what it makes.

Arguments: a safetensors file of inputs, the file to write, and names of repositories. mmtune is not imported, unless a
card says so.
"""

import re
import sys
from pathlib import Path


def main(inputs: str, output: str, *repositories: str) -> None:
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file, save_file

    found = {}
    for repo_id in repositories:
        card = Path(hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
        code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
        assert code is not None, f"the card of {repo_id} shows no code"
        names: dict[str, object] = {}
        exec(code[1], names)
        for name, value in embed(names["model"], load_file(inputs)).items():
            found[f"{repo_id}/{name}"] = value
        assert names["processor"](text=["a word"], return_tensors="pt")["input_ids"].shape[0] == 1
    save_file(found, output)


def embed(model: object, inputs: dict[str, object]) -> dict[str, object]:
    """Normalised embeddings of both sides, and the temperature."""
    import torch

    texts = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with torch.no_grad():
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        text = model.get_text_features(**texts).pooler_output
    sides = {"image": image, "text": text}
    normalised = {name: torch.nn.functional.normalize(value, dim=-1) for name, value in sides.items()}
    return {**normalised, "temperature": model.logit_scale.detach().clone()}


if __name__ == "__main__":
    main(*sys.argv[1:])
