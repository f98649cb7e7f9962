"""What LoRA costs over the bare backbone: forward and backward of CLIP's image tower with stock peft and fused layers.

    python scripts/benchmarks/lora_overhead.py --json scripts/benchmarks/results/lora_overhead.json
    python scripts/benchmarks/lora_overhead.py --tiny                    # does it run at all

``bare`` is the frozen tower with a gradient for its inputs, so that it goes forward and backward through every layer,
as training under LoRA in all layers must; ``peft`` has LoRA in the queries and values of all layers; ``fused`` runs
mmtune's layers in their place. All three see the same pixels; steps take turns.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

import torch  # noqa: E402

from scripts.benchmarks.paired_timing import compare, publish, read_arguments, table, time_paired  # noqa: E402

TARGETS = ("q_proj", "v_proj")


def make_model(tiny: bool) -> Any:
    """CLIP with random weights, frozen; ViT-B/32's sizes are the defaults of its configuration."""
    from transformers import CLIPConfig, CLIPModel

    from mmtune.backbones import clip

    torch.manual_seed(0)
    model = clip.tiny()[0] if tiny else CLIPModel(CLIPConfig())
    return model.eval().requires_grad_(False)


def with_lora(model: Any, layers: str = "all", rank: int = 8) -> Any:
    """The same object with peft's LoRA in the queries and values, both factors away from zero."""
    import peft

    own = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in TARGETS]
    if layers != "all":
        own = [name for name in own if f".layers.{layers}." in name]
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=own), model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def make_inputs(config: Any, rows: int, tokens: int = 32) -> dict[str, torch.Tensor]:
    """Random pixels and texts of one length, the last token the end of the text."""
    side, words = config.vision_config.image_size, config.text_config
    tokens = min(tokens, words.max_position_embeddings)
    ids = torch.randint(3, words.vocab_size - 10, (rows, tokens), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = words.eos_token_id
    pixels = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def through_layers(model: Any, pixels: torch.Tensor, lowest_has_gradient: bool) -> torch.Tensor:
    """The pooled output of the image tower; the states under its first layer have a gradient if asked for."""
    tower = model.vision_model
    states = tower.pre_layrnorm(tower.embeddings(pixels)).detach().requires_grad_(lowest_has_gradient)
    for layer in tower.encoder.layers:
        states = layer(states, attention_mask=None)
        states = states[0] if isinstance(states, tuple) else states
    return tower.post_layernorm(states[:, 0])


def fused_step(model: Any, pixels: torch.Tensor) -> Callable[[], None] | None:
    """A step through mmtune's own layers, or None where they do not fit."""
    from mmtune.backbones import clip
    from mmtune.fused_layers import fused_layers, why_not_fused
    from mmtune.trunk_cuts import standing_in

    backbone: Any = SimpleNamespace(model=model, family=clip, traits=clip.FAMILY)
    if reason := why_not_fused(backbone, "vision", 0):
        print(f"fused layers: {reason}", file=sys.stderr)
        return None
    made = fused_layers(backbone, "vision", 0)

    def step() -> None:
        with standing_in(model, made):
            through_layers(model, pixels, False).square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def measure(given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every way."""
    bare, tuned = make_model(given.tiny), with_lora(make_model(given.tiny))
    pixels = make_inputs(bare.config, given.batch)["pixel_values"]

    def step(model: Any, lowest: bool) -> None:
        through_layers(model, pixels, lowest).square().mean().backward()
        model.zero_grad(set_to_none=True)

    arms: dict[str, Callable[[], Any]] = {"bare": lambda: step(bare, True), "peft": lambda: step(tuned, False)}
    fused = fused_step(tuned, pixels)
    if fused is not None:
        arms["fused"] = fused
    return time_paired(arms, given.repeats)


def main() -> None:
    """Measure and print."""
    given = read_arguments("LoRA over the bare backbone", 32)
    seconds = measure(given)
    ratios = {name: compare(times, seconds["bare"]) for name, times in seconds.items()}
    rows = [[name, f"{min(times):.3f}", str(ratios[name])] for name, times in seconds.items()]
    shown = table(("layers", "least s per step", "times the bare backbone (range)"), rows)
    record = {"seconds": seconds, "ratios": {name: vars(one) for name, one in ratios.items()}, "batch": given.batch}
    publish(record, given.json, shown)


if __name__ == "__main__":
    main()
