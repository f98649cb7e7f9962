"""Adapters, inputs and finished runs for the tests: small, random, always the same."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import TypeAdapter

from mmtune.adapters import Adapted, attach
from mmtune.backbones import Backbone, Section, load
from mmtune.ground.kind_folder import section_union
from mmtune.ground.records import Sample
from mmtune.losses._cosines import cosines

BOTH = ["vision", "text"]
LORA: dict[str, Any] = {"kind": "lora", "parts": BOTH, "targets": ["attention", "mlp"], "rank": 4}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {**LORA, "use_dora": True, "layers": "last 1"},
    "lora_per_part": {**LORA, "rank": {"vision": 4, "text": 2}, "alpha": {"vision": 8, "text": 6}, "use_rslora": True},
    "lora_gaussian": {**LORA, "targets": ["q_proj"], "init": "gaussian", "dropout": 0.1},
    "lora_pissa": {**LORA, "targets": ["q_proj"], "init": "pissa"},
    "head_only": {"kind": "head_only", "parts": BOTH},
    "layernorm": {"kind": "layernorm", "parts": BOTH},
    "trainable_tokens": {"kind": "trainable_tokens", "tokens": ["e", 8, "n"]},
    "full": {"kind": "full", "parts": ["text"]},
}
"""One of each way to adapt."""

SECTIONS: TypeAdapter[Any] = TypeAdapter(section_union("adapters"))


def section(**values: Any) -> Any:
    """An adapter section as a recipe would hold it."""
    return SECTIONS.validate_python(values)


def backbone_of(folder: Path, **options: Any) -> Backbone:
    """A tiny backbone, freshly loaded."""
    return load(Section(id=str(folder), **options))


def disturb(adapted: Adapted, seed: int = 0) -> Adapted:
    """Move every trained weight, as training would: B is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.trainable().values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    return adapted


def adapted_of(folder: Path, values: dict[str, Any], **options: Any) -> Adapted:
    """A tiny backbone with a disturbed adapter, in eval mode."""
    return disturb(attach(backbone_of(folder, **options), section(**values)))


class DrawnImage:
    """An image of random colours that is made when it is read."""

    def __init__(self, number: int) -> None:
        self.key = self.where = f"drawn {number}"
        self.number = number

    def read(self) -> Image.Image:
        pixels = torch.randint(0, 256, (3072,), generator=torch.Generator().manual_seed(self.number))
        return Image.frombytes("RGB", (32, 32), bytes(pixels.tolist()))


def samples(count: int = 6) -> list[Sample]:
    """Images with captions, no two alike."""
    words = ("red line", "the other one", "circle", "a long thin letter", "nothing", "theme in tone")
    return [Sample(f"s{n}", DrawnImage(n), (f"{words[n % len(words)]} {n}",)) for n in range(count)]


def inputs_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The samples, encoded and padded."""
    from mmtune.merge_proof import encode_samples

    return encode_samples(backbone, samples())


def embeddings(backbone: Backbone, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Both embeddings of the inputs, one tensor."""
    with torch.no_grad():
        image = backbone.family.embed_media(backbone.model, inputs)
        text = backbone.family.embed_text(backbone.model, inputs)
    return torch.cat([image.flatten(0, -2), text])


def train_steps(adapted: Adapted, optimizer: Any, inputs: dict[str, torch.Tensor], steps: int) -> None:
    """A few steps that pull the embeddings of pairs together, with the temperature in the loss."""
    backbone = adapted.backbone
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(backbone, inputs).backward()
        optimizer.step()


def loss_of(backbone: Backbone, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A contrastive loss of the inputs; the temperature and its bias take part."""
    image = backbone.family.embed_media(backbone.model, inputs)
    text = backbone.family.embed_text(backbone.model, inputs)
    scale, bias = backbone.family.temperature(backbone.model)
    logits = cosines(image, text) * scale.exp() + (0 if bias is None else bias)
    return torch.nn.functional.softplus(-logits * (2 * torch.eye(len(logits)) - 1)).mean()


RETRIEVAL: dict[str, Any] = {"kind": "retrieval", "loss": {"kind": "infonce"}}


def make_run(run: Path, backbone: dict[str, Any], adapter: dict[str, Any], task: dict[str, Any] = RETRIEVAL) -> Path:
    """A run folder with one checkpoint, as training would leave it, without the training."""
    from mmtune.ground.safe_files import write_json
    from mmtune.optimizer_setup import make_optimizer
    from mmtune.recipe_schema import recipe_from_json, resolved_json
    from mmtune.run_checkpoint import TrainState, save_checkpoint
    from mmtune.tasks import abilities_of

    recipe = recipe_from_json(
        {
            "backbone": backbone,
            "adapter": adapter,
            "data": {"kind": "glyphs", "characters": 60},
            "task": task,
            "train": {"length": "4 steps", "batch": 8, "learning_rate": 1e-3},
            "output": str(run),
        }
    )
    write_json(run / "recipe.resolved.json", resolved_json(recipe))
    loaded = load(recipe.backbone, ability=abilities_of(recipe.task))
    adapted = disturb(attach(loaded, recipe.adapter, seed=recipe.seed))
    write_json(run / "manifest.json", {"backbone": loaded.record(), "best_checkpoint": None})
    save_checkpoint(run, adapted, make_optimizer(adapted, recipe.train), TrainState(step=1), keep=1)
    return run
