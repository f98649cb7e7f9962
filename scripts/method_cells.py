"""One cell of the method table: an adapter, a family and a quantization, tried from config.json to the reloaded model.

A cell is refused before anything is loaded, or goes through five stages: it attaches, learns, is saved and restored
bit for bit, merges into the model that it was, and is reloaded by peft or transformers alone.
"""

import copy
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from mmtune.adapter_liveness import JUDGED_AFTER, Liveness
from mmtune.adapters import (
    Adapted,
    attach,
    merge_into,
    merged_names,
    optimizer_groups,
    problems,
    restore,
    save,
    set_modes,
)
from mmtune.adapters._lora_start import has_initial
from mmtune.adapters._modes import is_norm
from mmtune.adapters._storage import ADAPTER_FOLDER
from mmtune.adapters._targets import in_part
from mmtune.backbones import Backbone, Description, describe, load
from mmtune.backbones import Section as BackboneSection
from mmtune.backbones._quiet_loading import quiet
from mmtune.ground.errors import BackboneError
from mmtune.ground.kind_folder import section_union
from mmtune.ground.records import Sample
from mmtune.ground.safe_files import load_tensors, save_tensors
from mmtune.merge_proof import embed, encode_samples, gap
from scripts.method_subjects import loss_of, subject

STAGES = ("attaches", "learns", "saves", "merges", "reloads")
QUANTIZED = ("none", "4bit", "8bit")
ROUNDING = "rounding"
"""Key of a measured number in a record; another machine measures another one."""

EXACT = 2e-5
"""Two float32 computations of one model through a few layers, as a share of the embeddings' range."""

ROUNDED = 0.15
"""LLM.int8 rounds activations: some per cent of the range, up to 0.1 where norms are trained, at width 32; two orders
of the same sums round differently."""

EFFECT = 1e-3
"""An adapter that was moved by 0.05 per weight changes embeddings by far more than this share of their range."""

METHOD = {"targets": ["attention", "mlp"], "layers": "last 1"}
ROWS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", **METHOD, "layers": "all", "rank": 4},
    "lora, use_rslora": {"kind": "lora", **METHOD, "rank": 4, "use_rslora": True},
    "lora, use_dora": {"kind": "lora", **METHOD, "rank": 4, "use_dora": True},
    "lora, init: orthogonal": {"kind": "lora", **METHOD, "rank": 4, "init": "orthogonal"},
    "lora, init: pissa": {"kind": "lora", **METHOD, "rank": 4, "init": "pissa"},
    "lora, init: olora": {"kind": "lora", **METHOD, "rank": 4, "init": "olora"},
    "ia3": {"kind": "ia3", **METHOD},
    "loha": {"kind": "loha", **METHOD, "rank": 4},
    "lokr": {"kind": "lokr", **METHOD, "rank": 4},
    "vera": {"kind": "vera", **METHOD, "rank": 16},
    "oft": {"kind": "oft", **METHOD, "oft_block_size": 8},
    "hira": {"kind": "hira", **METHOD, "rank": 4},
    "randlora": {"kind": "randlora", **METHOD, "rank": 4},
    "fourierft": {"kind": "fourierft", **METHOD, "n_frequency": 64},
    "miss": {"kind": "miss", **METHOD, "rank": 4},
    "peft, WAVEFT": {"kind": "peft", **METHOD, "config": {"peft_type": "WAVEFT", "n_frequency": 64}},
    "layernorm": {"kind": "layernorm"},
    "trainable_tokens": {"kind": "trainable_tokens"},
    "head_only": {"kind": "head_only"},
    "full": {"kind": "full"},
}
"""Row of the table -> the adapter, without its parts."""


@dataclass
class Cell:
    """What was found out.

    Attributes:
        refused: why it was refused before loading.
        stages: the stages it went through.
        failed: what stopped it in the next one.
        rounding: distance of the merged model from the one that was trained in 8 bit, as a share of the range.
    """

    refused: str | None = None
    stages: list[str] = field(default_factory=list)
    failed: str | None = None
    rounding: float | None = None

    def record(self) -> dict[str, Any]:
        """As tests/method_table.json holds it."""
        if self.refused is not None:
            return {"refused": self.refused}
        done: dict[str, Any] = {stage: stage in self.stages for stage in STAGES}
        if self.failed is not None:
            done["failed"] = self.failed
        return done if self.rounding is None else {**done, ROUNDING: round(self.rounding, 4)}


class Drawn:
    """A picture of random colours, or a second of random noise, that is made when it is read."""

    def __init__(self, number: int, modality: str) -> None:
        self.key = self.where = f"drawn {number}"
        self.number, self.modality = number, modality

    def read(self) -> Any:
        """A PIL image, or a sound."""
        generator = np.random.default_rng(self.number)
        if self.modality == "audio":
            from mmtune.ground.sound_reading import Sound

            return Sound(generator.normal(0, 0.1, 8000).astype(np.float32), 8000)
        from PIL import Image

        return Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))


class Twin:
    """A tiny twin on disk, with biases that are not zero, and samples for it.

    Args:
        name: a family that embeds, or one of ``method_subjects.ANSWERING``.
        folder: created.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.subject = subject(name)
        self.folder = self.subject.write(folder)
        tensors = load_tensors(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(0)
        for name in sorted(tensors):
            if name.endswith(".bias") and tensors[name].is_floating_point():
                tensors[name] = tensors[name] + 0.1 * torch.randn(tensors[name].shape, generator=generator)
        save_tensors(folder / "model.safetensors", tensors)
        self._loaded: dict[tuple[str, bool], Backbone] = {}

    def section(self, quantize: str) -> BackboneSection:
        """The backbone's section in a recipe."""
        return BackboneSection.model_validate(
            {"id": str(self.folder), **({} if quantize == "none" else {"quantize": quantize})}
        )

    def described(self, quantize: str) -> Description:
        """What config.json says."""
        return describe(self.section(quantize), ability=self.subject.ability)

    def load(self, quantize: str, *, dequantize: bool = False) -> Backbone:
        """A copy of a loaded one, whose model may be changed."""
        which = (quantize, dequantize and quantize != "none")
        if which not in self._loaded:
            self._loaded[which] = load(self.section(quantize), dequantize=which[1], ability=self.subject.ability)
        loaded = self._loaded[which]
        return replace(loaded, model=copy.deepcopy(loaded.model))

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Six encoded samples, no two alike."""
        backbone = self.load("none")
        words = ("red line", "the other one", "circle", "a long thin letter", "nothing", "theme in tone")
        modality = backbone.traits.modality
        samples = [Sample(f"s{n}", Drawn(n, modality), (f"{text} {n}",)) for n, text in enumerate(words)]
        return encode_samples(backbone, samples)

    def adapter(self, row: str) -> Any:
        """The adapter's section in a recipe: with the parts of this family, and tokens that the samples hold."""
        values = {**ROWS[row], "parts": self.parts(ROWS[row]["kind"])}
        if self.subject.ability and "layers" in values:
            values["layers"] = "all"  # a connector has no list of layers, and the last of a tower may never be read
        if values["kind"] == "trainable_tokens":
            special = self.load("none").processor.tokenizer.all_special_ids
            values["tokens"] = [token for token in self.inputs["input_ids"].unique().tolist() if token not in special]
        return TypeAdapter(section_union("adapters")).validate_python(values)

    def parts(self, kind: str) -> list[str]:
        """The parts that a kind can train: those with what it trains."""
        traits = self.described("none").traits
        if kind == "trainable_tokens":
            return ["text"]
        if kind == "head_only":
            return [part for part in traits.parts if traits.heads.get(part)] or list(traits.parts)[-1:]
        if kind == "full":
            return list(traits.parts)
        if kind == "layernorm":
            names = [name for name, module in self.load("none").model.named_modules() if is_norm(module)]
            return [part for part in traits.parts if any(in_part(name, traits, part) for name in names)]
        return [part for part in traits.parts if part not in traits.made_of]


def try_cell(twin: Twin, row: str, quantize: str) -> Cell:
    """Try one cell; an error of any stage is the finding, so every one is caught."""
    cell = Cell()
    section = twin.adapter(row)
    backbone = twin.section(quantize)
    try:
        found = problems(section, backbone, twin.described(quantize))
    except BackboneError as error:
        found = [str(error).partition(f"{backbone.id!r}: ")[2]]
    if found:
        cell.refused = "; ".join(found)
        return cell
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _go_through(cell, twin, section, quantize, Path(scratch))
        except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, AttributeError, OSError) as error:
            cell.failed = f"{type(error).__name__}: {error}"
    return cell


def _go_through(cell: Cell, twin: Twin, section: Any, quantize: str, folder: Path) -> None:
    backbone = twin.load(quantize)
    base = embed(backbone, twin.inputs)
    adapted = attach(backbone, section)
    wanted = {name for name, value in adapted.model.named_parameters() if value.requires_grad}
    assert wanted == set(adapted.trainable()) != set(), "what is trained is not what was asked for"
    cell.stages.append("attaches")
    _learn(adapted, twin.inputs)
    cell.stages.append("learns")
    _disturb(adapted)
    adapted.model.eval()
    trained = embed(backbone, twin.inputs)
    assert gap(trained, base) > EFFECT, "the adapter changes nothing"
    save(adapted, folder / "saved")
    again = attach(twin.load(quantize), section, seed=7)
    restore(again, folder / "saved")
    restored = embed(again.backbone, twin.inputs)
    assert all(torch.equal(restored[name], trained[name]) for name in trained), "not restored bit for bit"
    cell.stages.append("saves")
    merged = _merge(cell, twin, section, quantize, folder, trained)
    cell.stages.append("merges")
    if adapted.peft_model is None:
        _reload_merged(twin, merged, folder / "merged")
    else:
        _reload_adapter(twin, adapted, quantize, folder / "saved", trained)
    cell.stages.append("reloads")


def _learn(adapted: Adapted, inputs: dict[str, torch.Tensor]) -> None:
    """The first updates as the training loop does them; a part that stays dead raises."""
    torch.manual_seed(0)  # of dropout: what is measured does not hang on the cells before
    optimizer = torch.optim.AdamW(optimizer_groups(adapted, 1e-3, 0.0))
    liveness = Liveness(adapted)
    set_modes(adapted)
    for step in range(1, JUDGED_AFTER + 1):
        optimizer.zero_grad()
        loss_of(adapted.backbone, inputs).backward()
        liveness.after_backward()
        optimizer.step()
        liveness.after_step(step, lambda line: None)
    still = [part for part, life in liveness.lives.items() if not life.num_moved]
    assert not still, f"{', '.join(still)} did not move"


def _disturb(adapted: Adapted) -> None:
    """Move every trained weight far enough that a lost one would be seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in adapted.trainable().values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))


def _merge(
    cell: Cell, twin: Twin, section: Any, quantize: str, folder: Path, trained: dict[str, torch.Tensor]
) -> Backbone:
    """Merge into the dequantized base; gives the merged backbone."""
    base = dict(twin.load(quantize, dequantize=True).model.state_dict())
    adapted = attach(twin.load(quantize, dequantize=True), section)
    restore(adapted, folder / "saved")
    names = set(merged_names(adapted))
    beside = embed(adapted.backbone, twin.inputs)
    merge_into(adapted)
    merged, state = embed(adapted.backbone, twin.inputs), adapted.model.state_dict()
    assert gap(merged, beside) <= EXACT, f"merged differs from adapted by {gap(merged, beside):.1e}"
    assert gap(merged, trained) <= _allowed(quantize), (
        f"merged differs from the model as trained by {gap(merged, trained):.1e}"
    )
    if quantize == "8bit" and twin.subject.ability:
        cell.rounding = gap(merged, trained)
    assert set(state) == set(base), "the merged model is no plain one"
    changed = {name for name in base if not torch.equal(base[name], state[name])}
    assert changed and changed <= names, f"changed without being trained: {sorted(changed - names)}"
    return adapted.backbone


def _reload_merged(twin: Twin, merged: Backbone, folder: Path) -> None:
    """transformers alone reads the merged model back."""
    expected, family = embed(merged, twin.inputs), merged.family
    with quiet():
        getattr(family, "before_saving", lambda model: None)(merged.model)
        merged.model.save_pretrained(folder)  # type: ignore[operator]
        merged.model = type(merged.model).from_pretrained(folder).eval()  # type: ignore[attr-defined]
    getattr(family, "after_loading", lambda model: None)(merged.model)
    assert gap(embed(merged, twin.inputs), expected) <= EXACT, "the merged folder is another model"


def _reload_adapter(
    twin: Twin, adapted: Adapted, quantize: str, folder: Path, trained: dict[str, torch.Tensor]
) -> None:
    """peft alone reads the adapter back; what it does not know (temperature, new projections) is put there by hand."""
    from peft import PeftModel

    plain = twin.load(quantize)
    PeftModel.from_pretrained(plain.model, str(folder / ADAPTER_FOLDER))
    own = dict(plain.model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        for name, value in load_tensors(file).items():
            own[name].data.copy_(value)
    plain.model.eval()
    found = gap(embed(plain, twin.inputs), trained)
    same_sums = not has_initial(adapted.peft_model)  # two adapters are saved as one: 8 bit then rounds otherwise
    assert found <= (EXACT if same_sums else _allowed(quantize)), f"peft alone reloads another model: {found:.1e}"


def _allowed(quantize: str) -> float:
    return ROUNDED if quantize == "8bit" else EXACT
