"""From JPEG files of 640 x 480 to what a model takes, on one core: mmtune's ways beside Pillow and the image processor.

    python scripts/benchmarks/image_decoding.py --json scripts/benchmarks/results/image_decoding.json
    python scripts/benchmarks/image_decoding.py --tiny               # does it run at all

- stock: Pillow's `open` and `convert`, then transformers' image processor, one image after the other
- exact: mmtune's default (file read and checked, resized by Pillow, floats looked up in a table)
- fast: `backbone.image_processing: fast` (resized by torch)
- kept: the exact bytes are in memory, as between epochs where images are not changed at random; floats are looked up

Each way makes float32 of the same files in every repeat. Seconds are those of the processor, so that what else runs on
the machine counts little. The last columns are against stock's floats: the largest
difference in grey levels and the share of values that differ.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from mmtune.backbones._dual_encoder import encode_media  # noqa: E402
from mmtune.backbones._pixel_tables import encode_pixels, expand_pixels, pixel_table  # noqa: E402
from mmtune.ground.image_reading import read_image  # noqa: E402
from scripts.benchmarks.made_inputs import save_photo  # noqa: E402
from scripts.benchmarks.paired_timing import compare, publish, table, time_paired  # noqa: E402

Way = Callable[[], Sequence[torch.Tensor]]


def make_ways(files: list[Path], name: str) -> dict[str, Way]:
    """Way -> what makes float32[C, H, W] of each file."""
    import transformers

    kind = getattr(transformers, f"{name}ImageProcessorPil")
    stock, exact, fast = (SimpleNamespace(image_processor=kind()) for _ in range(3))
    fast.image_processor.image_processing = "fast"

    def by_transformers() -> list[torch.Tensor]:
        images = (Image.open(file).convert("RGB") for file in files)
        return [stock.image_processor(images=image, return_tensors="pt")["pixel_values"][0] for image in images]

    def by_mmtune(processor: Any) -> Way:
        return lambda: [encode_media(processor, read_image(file, file.name))["pixel_values"] for file in files]

    images = [encode_pixels(exact, read_image(file, file.name)) for file in files]
    bytes_of_all = {"pixel_values": torch.stack([one["pixel_values"] for one in images if one is not None])}
    return {
        "stock": by_transformers,
        "exact": by_mmtune(exact),
        "fast": by_mmtune(fast),
        "kept": lambda: list(expand_pixels(exact, bytes_of_all)["pixel_values"]),
    }


def differences(ways: dict[str, Way], name: str) -> dict[str, dict[str, float]]:
    """Way -> the largest difference from stock in grey levels, and the share of values that differ."""
    import transformers

    greys = pixel_table(getattr(transformers, f"{name}ImageProcessorPil")())
    assert greys is not None
    level = greys.values.diff(dim=1).mean(dim=1).view(3, 1, 1)  # one grey level in floats
    wanted, seen = torch.stack(list(ways["stock"]())), {}
    for way, make in ways.items():
        off = (torch.stack(list(make())) - wanted).abs() / level
        seen[way] = {"levels": round(float(off.max()), 3), "share": float((off > 0).float().mean())}
    return seen


def measure(num_images: int, repeats: int, name: str) -> dict[str, Any]:
    """Seconds per image of every way in every repeat, ratios and differences."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(num_images)]
        for number, file in enumerate(files):
            save_photo(file, number)
        ways = make_ways(files, name)
        seconds = time_paired(ways, repeats, time.process_time)
        off = differences(ways, name)
        kilobytes = statistics.mean(file.stat().st_size for file in files) / 1000
    each = {way: [one / num_images for one in times] for way, times in seconds.items()}
    ratios = {way: vars(compare(each["stock"], times)) for way, times in each.items()}
    what = {"image_processor": name, "images": num_images, "repeats": repeats, "kilobytes_per_file": round(kilobytes)}
    return {"what": what, "seconds_per_image": each, "times_as_fast": ratios, "difference": off}


def shown(record: dict[str, Any]) -> str:
    """The record as a table."""
    rows = []
    for way, times in record["seconds_per_image"].items():
        ratio, off = record["times_as_fast"][way], record["difference"][way]
        faster = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        milliseconds = f"{statistics.median(times) * 1000:.2f}"
        rows.append((way, milliseconds, faster, f"{off['levels']:.2f}", f"{off['share']:.2%}"))
    heads = (
        "pixels",
        "ms per image",
        "times as fast as stock",
        "largest difference, grey levels",
        "values that differ",
    )
    return table(heads, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="images to tensors on one core")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor", default="CLIP", help="CLIP, Siglip, Blip, ViT, ...: transformers' class")
    parser.add_argument("--json", type=Path, default=None, help="where the record goes")
    parser.add_argument("--tiny", action="store_true", help="4 images, 2 repeats")
    given = parser.parse_args()
    num_images, repeats = (4, 2) if given.tiny else (given.images, given.repeats)
    record = measure(num_images, repeats, given.processor)
    publish(record, given.json, shown(record))


if __name__ == "__main__":
    main()
