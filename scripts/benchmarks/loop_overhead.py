"""What mmtune's loop costs beside a hand-written one: samples per second of both, over one model, in one process.

    python scripts/benchmarks/loop_overhead.py --batch 32 --rounds 7
    python scripts/benchmarks/loop_overhead.py --tiny             # does it run at all

LoRA in attention and mlp of all layers of a CLIP of ViT-B/32's size with random weights. Both loops train the same peft
model on the same decoded tensors and take turns, `--steps` steps each; the ratio is the median over the rounds' ratios.
mmtune's time holds all that its loop does for a step: loader, collating, exact batch, checks, logging. Saving is left
out, since the hand-written loop does not save.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from mmtune import train_loop  # noqa: E402
from mmtune.adapter_liveness import JUDGED_AFTER, Liveness  # noqa: E402
from mmtune.adapters import Adapted, attach, set_modes  # noqa: E402
from mmtune.backbones import Backbone, load, tiny_folder  # noqa: E402
from mmtune.bad_samples import Quarantine  # noqa: E402
from mmtune.batch_building import Encoded, EncodedPairs, Layout  # noqa: E402
from mmtune.ground.kind_folder import kind  # noqa: E402
from mmtune.ground.run_log import RunLog  # noqa: E402
from mmtune.optimizer_setup import make_optimizer, make_schedule  # noqa: E402
from mmtune.recipe_schema import Recipe, load_recipe  # noqa: E402
from mmtune.run_setup import start_accelerator  # noqa: E402
from mmtune.train_data import make_context  # noqa: E402

NEVER = 10**9
RECIPE = """
backbone: {{id: {folder}}}
adapter: {{kind: lora, rank: 8, parts: [vision, text], targets: [attention, mlp], layers: all}}
data: {{kind: glyphs}}
task: {{kind: retrieval, loss: {{kind: infonce}}}}
train: {{length: 1000000 steps, batch: {batch}, learning_rate: 1e-5, schedule: constant, precision: {precision}}}
output: {output}
"""


class DecodedPairs(EncodedPairs):
    """Pairs whose tensors are ready, in the place of a source."""

    def __init__(self, backbone: Backbone, task: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.family, self.processor, self.task = backbone.family, backbone.processor, task
        self.rows = [
            Encoded(str(row), {name: tensor[row] for name, tensor in inputs.items()}, row, (row,), False)
            for row in range(len(inputs["input_ids"]))
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> Encoded:
        return self.rows[place[1]]


def hand_written(model: Any, batches: Iterator[dict[str, torch.Tensor]], recipe: Recipe) -> Callable[[int], None]:
    """The loop a person would write: at most 40 lines, no checks, no log."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.train.learning_rate, betas=recipe.train.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    device = parameters[0].device
    bf16 = recipe.train.precision == "bf16"

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            inputs = {name: tensor.to(device) for name, tensor in next(batches).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(**inputs).logits_per_text
                labels = torch.arange(len(logits), device=device)
                loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=4.6052)
            loss.item()

    return run


def with_mmtune(trainer: train_loop.Trainer) -> Callable[[int], None]:
    """mmtune's own loop, a few steps further at a time, without saving."""

    def run(num_steps: int) -> None:
        trainer.cadence = replace(trainer.cadence, total=trainer.state.step + num_steps)
        with patch.object(train_loop, "save_checkpoint"):
            train_loop.train(trainer)

    return run


def make_backbone(recipe: Recipe, tiny: bool) -> Backbone:
    """A CLIP with random weights: ViT-B/32's sizes are the defaults of transformers' CLIPConfig."""
    from transformers import CLIPConfig, CLIPModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load(recipe.backbone, device=device)
    if not tiny:
        torch.manual_seed(0)
        backbone.model = CLIPModel(CLIPConfig()).to(device).eval().requires_grad_(False)
    return backbone


def write_recipe(folder: Path, batch: int, precision: str) -> Path:
    """The recipe that both loops follow."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, batch=batch, precision=precision, output=folder / "run"))
    return path


def make_inputs(config: Any, num_rows: int) -> dict[str, torch.Tensor]:
    """Random decoded samples: pixels and 32 text tokens each, the last one the end of the text."""
    side, tokens = config.vision_config.image_size, min(32, config.text_config.max_position_embeddings)
    ids = torch.randint(3, config.text_config.vocab_size - 10, (num_rows, tokens))
    ids[:, -1] = config.text_config.eos_token_id
    pixels = torch.randn(num_rows, 3, side, side)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def make_trainer(recipe: Recipe, adapted: Adapted, inputs: dict[str, torch.Tensor], run: Path) -> train_loop.Trainer:
    """mmtune's loop with everything it calls, as `fit` builds it."""
    task, accelerator, log = kind("tasks", recipe.task), start_accelerator(recipe), RunLog(run)
    pairs = DecodedPairs(adapted.backbone, task, inputs)
    optimizer = make_optimizer(adapted, recipe.train)
    return train_loop.Trainer(
        recipe=recipe,
        run=run,
        adapted=adapted,
        context=make_context(recipe, adapted, task, accelerator),
        pairs=pairs,
        layout=Layout(len(pairs), recipe.train.batch, recipe.train.batch, 1, recipe.seed),
        optimizer=optimizer,
        schedule=make_schedule(optimizer, recipe.train, warmup_steps=0, total_steps=NEVER),
        accelerator=accelerator,
        cadence=train_loop.Cadence(total=0, log=10, save=0, evaluate=0),
        log=log,
        liveness=Liveness(adapted),
        validate=None,
        quarantine=Quarantine(run, recipe.data.max_bad_fraction, {"train": len(pairs)}, log.line),
    )


def timed(run: Callable[[int], None], num_steps: int) -> float:
    """Seconds per step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(num_steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / num_steps


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="mmtune's loop beside a hand-written one")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1, help="steps of each loop per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tiny", action="store_true", help="a CLIP of width 32 instead")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_folder("clip", folder)
        recipe = load_recipe(write_recipe(folder, given.batch, given.precision))
        backbone = make_backbone(recipe, given.tiny)
        adapted = attach(backbone, recipe.adapter)
        inputs = make_inputs(backbone.model.config, 4 * given.batch)
        trainer = make_trainer(recipe, adapted, inputs, folder / "run")
        set_modes(adapted)
        parts = [tensor.split(given.batch) for tensor in inputs.values()]
        batches = [dict(zip(inputs, rows, strict=True)) for rows in zip(*parts, strict=True)]
        loops = {
            "hand-written": hand_written(backbone.model, itertools.cycle(batches), recipe),
            "mmtune": with_mmtune(trainer),
        }
        loops["mmtune"](JUDGED_AFTER + 1)  # beyond the steps that are watched
        loops["hand-written"](1)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(given.rounds):
            for loop in list(loops) if number % 2 else reversed(list(loops)):
                seconds[loop].append(timed(loops[loop], given.steps))
    for loop, times in seconds.items():
        print(f"{loop:>12}: {given.batch / statistics.median(times):9.2f} samples/s (median of {len(times)} rounds)")
    ratios = [hand / ours for hand, ours in zip(seconds["hand-written"], seconds["mmtune"], strict=True)]
    print(f"mmtune / hand-written: {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
