"""How many text tokens one image costs, by model and by the limits that `backbone.image` sets.

    python scripts/count_image_tokens.py [--width 1024 --height 768]

Image processors of transformers at the published sizes cut and resize an empty picture; tokens follow from what they
give: patches over the merger's window, or tiles times the tokens of a tile. No model and no tokenizer is needed.
"""

import argparse
from typing import Any

from PIL import Image

ROWS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    # model, counted how, image processor's own values, limits as a recipe writes them
    ("LLaVA-1.5", "fixed", {"tokens": 576}, {}),
    ("PaliGemma 224, Gemma 3", "fixed", {"tokens": 256}, {}),
    ("Qwen2.5-VL", "qwen2_vl", {"patch_size": 14}, {}),
    ("Qwen2.5-VL", "qwen2_vl", {"patch_size": 14}, {"max_pixels": 501760}),
    ("Qwen2.5-VL", "qwen2_vl", {"patch_size": 14}, {"max_pixels": 200704}),
    ("Qwen3-VL", "qwen2_vl", {"patch_size": 16}, {}),
    ("Qwen3-VL", "qwen2_vl", {"patch_size": 16}, {"max_pixels": 501760}),
    ("Idefics3", "idefics3", {"tile": 364, "tokens": 169, "longest_edge": 1456}, {}),
    ("Idefics3", "idefics3", {"tile": 364, "tokens": 169, "longest_edge": 1456}, {"longest_edge": 728}),
    ("SmolVLM2", "idefics3", {"tile": 512, "tokens": 64, "longest_edge": 2048}, {}),
    ("SmolVLM2", "idefics3", {"tile": 512, "tokens": 64, "longest_edge": 2048}, {"longest_edge": 512}),
    ("InternVL 3", "internvl", {"tokens": 256}, {}),
    ("InternVL 3", "internvl", {"tokens": 256}, {"max_patches": 1}),
]
MERGE = 2
"""Patches along one side that the merger of Qwen's models joins into one token."""


def count(kind: str, own: dict[str, Any], limits: dict[str, Any], picture: Image.Image) -> int:
    """Tokens of the picture."""
    if kind == "fixed":
        return int(own["tokens"])
    if kind == "qwen2_vl":
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        side = own["patch_size"] * MERGE
        size = {"shortest_edge": 4 * side * side, "longest_edge": limits.get("max_pixels", 16384 * side * side)}
        reader: Any = Qwen2VLImageProcessorPil(size=size, merge_size=MERGE, **own)
        grid = reader(picture, return_tensors="pt")["image_grid_thw"][0]
        return int(grid.prod()) // MERGE**2
    if kind == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        edge = limits.get("longest_edge", own["longest_edge"])
        tile = {"longest_edge": own["tile"]}
        reader = Idefics3ImageProcessorPil(size={"longest_edge": edge}, max_image_size=tile)
        return int(reader(picture, return_tensors="pt")["pixel_values"].shape[1]) * int(own["tokens"])
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    patches = limits.get("max_patches", 12)
    reader = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=patches > 1)
    reader.max_patches = patches
    return int(reader(picture, return_tensors="pt")["pixel_values"].shape[0]) * int(own["tokens"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    given = parser.parse_args()
    picture = Image.new("RGB", (given.width, given.height))
    print(f"| model | `backbone.image` | tokens of a {given.width} x {given.height} image |\n|---|---|---|")
    for model, kind, own, limits in ROWS:
        words = ", ".join(f"{name}: {value}" for name, value in limits.items())
        print(f"| {model} | {f'`{{{words}}}`' if words else '-'} | {count(kind, own, limits, picture):,} |")


if __name__ == "__main__":
    main()
