"""What the pretraining of the builtin models shares: options, a checkpoint to go on from, and the asset's files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

MOST_BYTES = 5_000_000
"""What an asset may weigh: it travels in the package."""


def read_options(text: str, batch: int) -> argparse.Namespace:
    """The command line; ``text`` is the script's docstring, ``batch`` its default."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between two scorings (and checkpoints)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the cache folder")
    parser.add_argument("--export", action="store_true", help="do not train: write the asset from the checkpoint")
    return parser.parse_args()


def save_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer, log: dict[str, Any]) -> None:
    """Replace the checkpoint in the cache folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
    torch.save(state, folder / "checkpoint.pt.partial")
    (folder / "checkpoint.pt.partial").replace(folder / "checkpoint.pt")


def load_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restore weights (and the optimizer), return the log."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    log: dict[str, Any] = state["log"]
    return log


def write_half(folder: Path, model: Any, empty: Any, processor: Any) -> None:
    """Write the asset: weights in float16, config in float32 (so it loads as float32), and the processor's files.

    Args:
        folder: of the asset.
        model: what was trained.
        empty: the same model anew; it is filled and halved.
        processor: its image processor and tokenizer are written, each by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    empty.load_state_dict(model.state_dict())
    empty.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


def finish_asset(folder: Path, steps: int) -> None:
    """Make every file readable for all, and see that the asset is small enough."""
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name}: {size / 1e6:.2f} MB after {steps} steps", flush=True)
    assert size <= MOST_BYTES, "the asset must stay small enough to travel in the package"
