"""An exact batch of 2,048 in micro-batches of 32 beside plain batches of 32: memory and seconds per sample.

    python scripts/benchmarks/large_batch.py --json scripts/benchmarks/results/large_batch.json     # half an hour
    python scripts/benchmarks/large_batch.py --layers all --samples 256
    python scripts/benchmarks/large_batch.py --tiny               # does it run at all

A CLIP of ViT-B/32's size at 224 px with random weights, LoRA on q and v. Both go through mmtune's own step and
optimizer: one step over all samples, or as many steps of 32 as they fill. Pixels travel as bytes and become floats
where a micro-batch is embedded. Each runs in a process of its own; memory is that of the whole process at its highest.

The large batch embeds every sample twice: once for the loss, once for its gradient. With LoRA in the last layers alone
the trunk below them runs once: the second time its states come from the cache, which is empty at the beginning, as in a
first epoch. ``--no-cache`` leaves it out. The batches of 32 take ``SMALL`` samples, which is enough to time them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from scripts.benchmarks.paired_timing import MIB, compare, peak_memory, publish, table, take_turns  # noqa: E402

MICRO = 32
TOKENS = 32
SMALL = 256
LIMITS = {"memory": 1.3, "seconds": 1.4}
RECIPE = """
backbone: {{id: {folder}}}
adapter: {{kind: lora, rank: 8, parts: [vision, text], targets: [q_proj, v_proj], layers: {layers}}}
data: {{kind: glyphs}}
task: {{kind: retrieval, loss: {{kind: infonce}}}}
train:
  {{length: 1 steps, batch: {batch}, micro_batch: 32, learning_rate: 1e-4, schedule: constant,
   trunk_cache: {cache}}}
output: {folder}/run
"""


def make_context(folder: Path, layers: str, batch: int, tiny: bool, cache: bool) -> tuple[Any, Any]:
    """What a step needs, and the optimizer; the family takes pixels as bytes."""
    from mmtune import train_data
    from mmtune.adapters import attach, set_modes
    from mmtune.backbones import load
    from mmtune.backbones._quiet_loading import quiet
    from mmtune.ground.kind_folder import kind
    from mmtune.optimizer_setup import make_optimizer
    from mmtune.recipe_schema import load_recipe
    from mmtune.run_setup import start_accelerator
    from mmtune.trunk_opening import open_stores
    from mmtune.trunk_setup import ask_for_trunk, fuse_layers, plan_trunk
    from scripts.benchmarks.made_inputs import make_clip

    model, processor = make_clip("tiny" if tiny else "base32")
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    del model, processor
    kept = f"{{mode: disk, folder: {folder}/cache}}" if cache else "off"
    text = RECIPE.format(folder=folder, layers=layers, batch=batch, cache=kept)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    backbone = load(recipe.backbone)
    adapted = attach(backbone, recipe.adapter)
    set_modes(adapted)
    context = train_data.make_context(recipe, adapted, kind("tasks", recipe.task), start_accelerator(recipe))
    asked = ask_for_trunk(recipe, "embed", "no", "cpu", print)
    open_stores(plan_trunk(adapted, asked, recipe.data), backbone, asked, {})
    fuse_layers(recipe, adapted)
    return context, make_optimizer(adapted, recipe.train)


def micro_batches(config: Any, num_samples: int, first_key: int = 0) -> Iterator[Any]:
    """Micro-batches of random pixels, bytes, and random words, no two alike, with the keys of states nobody has yet."""
    from mmtune.batch_building import Batch
    from mmtune.trunk_batches import keys_of
    from mmtune.trunk_cuts import MEDIA, TEXT

    side, end = config.vision_config.image_size, config.text_config.eos_token_id
    length = min(TOKENS, config.text_config.max_position_embeddings)
    for first in range(0, num_samples, MICRO):
        draw = torch.Generator().manual_seed(first)
        ids = torch.randint(3, config.text_config.vocab_size - 10, (MICRO, length), generator=draw)
        ids = torch.where(ids == end, 5, ids)
        ids[:, -1] = end
        pixels = torch.randint(0, 256, (MICRO, 3, side, side), dtype=torch.uint8, generator=draw)
        keys = torch.arange(first, first + MICRO)
        inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        names = torch.zeros(MICRO, 2, dtype=torch.int64)
        names[:, 0], names[:, 1] = 1, first_key + keys
        inputs |= {keys_of(side): names.view(torch.uint8) for side in (MEDIA, TEXT)}
        yield Batch(inputs, keys[:, None], keys, [str(int(key)) for key in keys], [])


def run_arm(layers: str, batch: int, num_samples: int, tiny: bool, cache: bool) -> dict[str, float]:
    """Seconds per sample and the peak memory of this process, after one unmeasured step of a micro-batch."""
    from mmtune.contrastive_step import contrastive_step

    with tempfile.TemporaryDirectory() as folder:
        context, optimizer = make_context(Path(folder), "last 1" if tiny else layers, batch, tiny, cache)
        config = context.backbone.model.config
        contrastive_step(context, list(micro_batches(config, MICRO, num_samples)), 0)
        optimizer.step()
        optimizer.zero_grad()
        started, samples = time.perf_counter(), micro_batches(config, num_samples)
        for step in range(num_samples // batch):
            taken = [next(samples) for _ in range(batch // MICRO)]
            contrastive_step(context, taken, 1 + step)
            torch.nn.utils.clip_grad_norm_(list(context.trainable.values()), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = (time.perf_counter() - started) / num_samples
    return {"seconds": seconds, "memory": float(peak_memory())}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Both arms in turn, each in a fresh process."""
    arms = {f"batch {MICRO}": MICRO, f"batch {given.samples}": given.samples}
    seen: dict[str, dict[str, list[float]]] = {arm: {"seconds": [], "memory": []} for arm in arms}
    for _, arm in take_turns(list(arms), given.repeats):
        call = [sys.executable, __file__, "--arm", str(arms[arm]), "--layers", given.layers]
        samples = given.samples if arms[arm] > MICRO else min(SMALL, given.samples)
        call += ["--samples", str(samples), *(["--tiny"] if given.tiny else [])]
        call += [] if given.cache else ["--no-cache"]
        done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
        for key, value in json.loads(done.stdout.splitlines()[-1]).items():
            seen[arm][key].append(value)
    small, large = seen.values()
    ratios = {key: vars(compare(large[key], small[key])) for key in ("seconds", "memory")}
    what = {
        "layers": given.layers,
        "samples": given.samples,
        "micro_batch": MICRO,
        "tiny": given.tiny,
        "cache": given.cache,
    }
    met = {key: ratios[key]["median"] <= limit for key, limit in LIMITS.items()}
    return {"what": what, "arms": seen, "ratios": ratios, "limits": LIMITS, "met": met}


def shown(record: dict[str, Any]) -> str:
    """The record as a table."""
    rows: list[tuple[object, ...]] = []
    for arm, values in record["arms"].items():
        memory = f"{sorted(values['memory'])[len(values['memory']) // 2] / MIB:,.0f}"
        seconds = f"{sorted(values['seconds'])[len(values['seconds']) // 2]:.4f}"
        rows.append((f"{arm}, LoRA layers: {record['what']['layers']}", memory, seconds))
    ratios = record["ratios"]
    rows.append(("large / small", *(f"{ratios[key]['median']:.2f}" for key in ("memory", "seconds"))))
    rows.append(("at most", *(f"{record['limits'][key]:.2f}" for key in ("memory", "seconds"))))
    return table(("", "peak memory, MiB", "seconds per sample"), rows)


def main() -> None:
    """Measure and print, or be one arm."""
    parser = argparse.ArgumentParser(description="an exact batch of 2,048 beside batches of 32")
    parser.add_argument("--samples", type=int, default=2048, help="in the large batch, and in all of the small ones")
    parser.add_argument("--layers", choices=("last 4", "all"), default="last 4")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None, help="where the record goes")
    parser.add_argument("--no-cache", dest="cache", action="store_false", help="run the trunk twice")
    parser.add_argument("--tiny", action="store_true", help="a CLIP of width 32")
    parser.add_argument("--arm", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.samples % MICRO:
        parser.error(f"--samples: {given.samples} is not a multiple of {MICRO}")
    if given.arm is not None:
        print(json.dumps(run_arm(given.layers, given.arm, given.samples, given.tiny, given.cache)))
        return
    record = measure(given)
    publish(record, given.json, shown(record))


if __name__ == "__main__":
    main()
