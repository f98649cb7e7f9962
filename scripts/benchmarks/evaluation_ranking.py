"""Ranking 5,000 images and 25,000 captions: mmtune's way, in slices, beside the full-matrix way; seconds and memory.

    python scripts/benchmarks/evaluation_ranking.py --json scripts/benchmarks/results/evaluation_ranking.json
    python scripts/benchmarks/evaluation_ranking.py --tiny               # does it run at all

Embeddings are random unit vectors of width 512, five captions per image, drawn near their image. The full-matrix way is
the usual one: all similarities at once, then either what is above the best positive in each row is counted, or every
row is sorted, in both directions. All give recall@1, @5, @10 from text to image and back, which must be equal. Each way
runs in a process of its own; seconds are the ranking's alone, memory is the whole process's at its highest.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from scripts.benchmarks.paired_timing import MIB, compare, peak_memory, publish, table, take_turns  # noqa: E402

PER_IMAGE, WIDTH = 5, 512
WAYS = ("text_to_image", "image_to_text")
CUTS = (1, 5, 10)
LIMIT = 1_000_000_000


def make_embeddings(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[I, D] and float32[5 I, D], normalised; captions lie about as far from their image as from the nearest."""
    random = np.random.default_rng(0)
    images = random.standard_normal((num_images, WIDTH), dtype=np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.repeat(images, PER_IMAGE, axis=0)
    noise = random.standard_normal(texts.shape, dtype=np.float32)
    texts += noise * np.float32(0.35)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return images, texts


def with_mmtune(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """As ``mmtune evaluate`` does it."""
    from mmtune.metrics._ranking import Positives
    from mmtune.scored_split import SplitEmbeddings
    from mmtune.scoring_loop import score_embeddings

    num_texts = len(texts)
    split = SplitEmbeddings(
        image_embeds=images,
        text_embeds=texts,
        image_ids=(),
        images=(),
        texts=(),
        text_to_image=Positives(np.arange(num_texts + 1), np.arange(num_texts) // PER_IMAGE),
        image_groups=np.arange(len(images)),
        text_groups=np.arange(num_texts) // PER_IMAGE,
        bad=(),
    )
    values = score_embeddings(split).values
    return {f"{way}_recall@{cut}": values[f"{way}_recall@{cut}"] for way in WAYS for cut in CUTS}


def with_full_matrix(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """All similarities at once, and in every row what is above the best positive counted."""
    similar = texts @ images.T
    own = np.arange(len(texts)) // PER_IMAGE
    places = (similar > similar[np.arange(len(texts)), own][:, None]).sum(axis=1)
    found = {f"text_to_image_recall@{cut}": float((places < cut).mean()) for cut in CUTS}
    back = np.ascontiguousarray(similar.T)
    mine = own[None, :] == np.arange(len(images))[:, None]
    best = np.where(mine, back, -np.inf).max(axis=1)
    places = ((back > best[:, None]) & ~mine).sum(axis=1)
    return found | {f"image_to_text_recall@{cut}": float((places < cut).mean()) for cut in CUTS}


def with_sorting(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """All similarities at once, and every row sorted, as evaluation scripts often do."""
    similar = texts @ images.T
    own = np.arange(len(texts)) // PER_IMAGE
    places = np.argmax(np.argsort(-similar, axis=1) == own[:, None], axis=1)
    found = {f"text_to_image_recall@{cut}": float((places < cut).mean()) for cut in CUTS}
    order = np.argsort(-similar.T, axis=1)
    first = np.argmax(own[order] == np.arange(len(images))[:, None], axis=1)
    return found | {f"image_to_text_recall@{cut}": float((first < cut).mean()) for cut in CUTS}


WAYS_OF_RANKING = {"mmtune": with_mmtune, "full matrix": with_full_matrix, "full matrix, sorted": with_sorting}


def measure(way: str, num_images: int) -> dict[str, Any]:
    """Seconds, scores, and the process's memory before and at its highest."""
    images, texts = make_embeddings(num_images)
    WAYS_OF_RANKING[way](*make_embeddings(10))  # what is imported on the way is no ranking
    before = peak_memory()
    started = time.perf_counter()
    scores = WAYS_OF_RANKING[way](images, texts)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "scores": scores, "before": before, "peak": peak_memory()}


def in_fresh_process(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    threads = str(given.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    command = [sys.executable, __file__, "--way", way, "--images", str(given.images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="ranking in slices beside the full matrix")
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--way", choices=tuple(WAYS_OF_RANKING), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    if given.way:
        print(json.dumps(measure(given.way, given.images)))
        return
    if given.tiny:
        given.images, given.repeats = 50, 2
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS_OF_RANKING}
    for _, way in take_turns(list(runs), given.repeats):
        runs[way].append(in_fresh_process(way, given))
    ours, full = runs["mmtune"], runs["full matrix"]
    longer = compare([one["seconds"] for one in runs["full matrix, sorted"]], [one["seconds"] for one in ours])
    ratio = compare([one["seconds"] for one in full], [one["seconds"] for one in ours])
    others = [one for way in runs if way != "mmtune" for one in runs[way]]
    worst = max(abs(ours[0]["scores"][name] - value) for one in others for name, value in one["scores"].items())
    rows = [
        [way, *(f"{one:.2f}" for one in spread([r["seconds"] for r in them])), f"{most(them, 'peak') / MIB:,.0f}",
         f"{most(them, 'before') / MIB:,.0f}"]
        for way, them in runs.items()
    ]  # fmt: skip
    shown = table(("way", "s (median)", "least", "most", "peak MiB", "MiB before the ranking"), rows)
    shown += f"\n\nfull matrix / mmtune: {ratio}, sorted {longer}; largest difference of a score {worst:.1e}"
    record = {"runs": runs, "images": given.images, "captions": given.images * PER_IMAGE, "width": WIDTH}
    record |= {
        "ratio": vars(ratio),
        "ratio_sorted": vars(longer),
        "difference": worst,
        "limit": LIMIT,
        "threads": given.threads,
    }
    publish(record, given.json, shown)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least, most."""
    return float(np.median(values)), min(values), max(values)


def most(runs: list[dict[str, Any]], key: str) -> float:
    """The largest of a figure."""
    return max(run[key] for run in runs)


if __name__ == "__main__":
    main()
