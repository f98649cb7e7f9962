"""The story of ``predict``: images, sounds or texts in; embeddings with ids out, or what a model says about them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.embedding_files import EmbeddingStore, paths_for
from mmtune.embedding_input import EmbeddingInput, InputKind, list_input
from mmtune.ground.errors import DataError, TrainingError
from mmtune.ground.records import MEDIA_WORDS, BadItem, printable

if TYPE_CHECKING:
    import numpy as np

    from mmtune.backbones import Backbone
    from mmtune.model_loading import Target

SAVE_SECONDS = 10.0
"""How much work an interruption may cost."""

NUM_SHOWN = 10


@dataclass(frozen=True)
class Prediction:
    """What was written.

    Attributes:
        output: the ``.npy``, float32[N, D], rows L2-normalised; or the ``.jsonl`` with an answer per line.
        ids: the JSON list of the N ids; of answers the same ``.jsonl``, which has them.
        manifest: model, input, counts and what was bad.
        num_rows: N.
        bad: what could not be read, with its reason.
    """

    output: Path
    ids: Path
    manifest: Path
    num_rows: int
    bad: tuple[BadItem, ...]


def predict(
    model: str | Path,
    source: str | Path | Sequence[str | Path],
    *,
    output: str | Path,
    kind: InputKind | None = None,
    column: str | None = None,
    images: str | Path | None = None,
    ask: str | None = None,
    ask_column: str | None = None,
    batch: int = 32,
    workers: int = 0,
    device: str | None = None,
) -> Prediction:
    """Embed images, sounds or texts; or say what a model that generates, matches or classifies says about images.

    An interrupted prediction goes on where it stopped; a finished one says so.

    Args:
        model: run, checkpoint, peft adapter, model folder, hub id or ``builtin:NAME``.
        source: a folder of images or sounds, a glob, a table (JSON lines, CSV, TSV) or a ``.txt``; or several
            files of images or sounds.
        output: the ``.npy``, of answers the ``.jsonl``; ``.ids.json`` and ``.manifest.json`` go beside it.
        kind: ``image``, ``audio`` or ``text``; None: what the source holds.
        column: the table's column, where it is not called ``image``, ``file_name``, ``audio``, ``text``, ``caption``.
        images: folder that a table's paths start from, where it is not the table's own.
        ask: what is asked about every image: a question, a text to match, or what asks for a caption.
        ask_column: the table's column with that.
        batch: items per forward pass.
        workers: processes that read and encode.
        device: None: the GPU where there is one.

    Raises:
        DataError: nothing to embed, or ``output`` holds something else.
        CheckpointError, BackboneError: the model cannot be used.
        TrainingError: an embedding is not finite.
    """
    from mmtune.backbones import describe
    from mmtune.evaluation_setup import device as best_device
    from mmtune.model_loading import load_model, resolve

    target = resolve(model)
    traits = describe(target.backbone).traits
    if target.recipe is not None and target.recipe.task.kind != "retrieval" or "embed" not in traits.abilities:
        from mmtune.answer_prediction import predict_answers

        if kind not in (None, traits.modality):
            raise DataError(f"kind {kind}: family {traits.name} says something about {MEDIA_WORDS[traits.modality]}")
        given = list_input(
            source, traits.modality, column=column, images=images, ask_column=ask_column, modality=traits.modality
        )
        return Prediction(*predict_answers(model, target, given, output, ask, batch, workers, device or best_device()))
    if ask is not None or ask_column is not None:
        raise DataError(f"nothing can be asked: family {traits.name} embeds (leave out what asks)")
    paths = paths_for(output)
    given = list_input(source, kind, column=column, images=images, modality=traits.modality)
    if given.kind not in (traits.modality, "text"):
        able = f"{MEDIA_WORDS[traits.modality]} and texts"
        raise DataError(f"{_named(source)}: holds {MEDIA_WORDS[given.kind]}, and family {traits.name} embeds {able}")
    backbone = load_model(model, device=device or best_device())
    store = EmbeddingStore(paths, _identity(backbone, target, given), len(given.items))
    if store.note:
        print(store.note, flush=True)
    if store.finished:
        print(printable(f"{paths.embeddings} is finished: nothing to do"), flush=True)
    else:
        _fill(store, backbone, given, batch, workers)
        store.finish(
            given.ids, {"model": str(model), "source": _named(source), "bad": [asdict(one) for one in given.bad]}
        )
    bad = (*given.bad, *store.failed.values())
    _report(bad)
    num_rows = store.num_items - len(store.failed)
    said = f"{paths.embeddings}: {num_rows} {given.kind} embeddings, {len(bad)} left out; ids in {paths.ids}"
    print(printable(said), flush=True)
    return Prediction(paths.embeddings, paths.ids, paths.manifest, num_rows, bad)


def _named(source: str | Path | Sequence[str | Path]) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return f"{source[0]} and {len(source) - 1} more" if len(source) > 1 else str(source[0])


def _identity(backbone: "Backbone", target: "Target", given: EmbeddingInput) -> dict[str, str]:
    """What the embeddings are a function of."""
    from mmtune.model_loading import model_identity

    return {**model_identity(backbone, target), "kind": given.kind, "input": given.fingerprint}


def _fill(store: EmbeddingStore, backbone: "Backbone", given: EmbeddingInput, batch: int, workers: int) -> None:
    """Embed what is missing, in order, and save every few seconds."""
    started = saved = time.monotonic()
    first = store.num_done
    for places, rows, failed in _embedded(backbone, given, first, batch, workers):
        store.put(places, rows, failed)
        now = time.monotonic()
        if now - saved >= SAVE_SECONDS:
            store.save()
            saved = now
            speed = (store.num_done - first) / (now - started)
            print(f"{store.num_done} of {store.num_items}, {speed:.1f} per second", flush=True)


def _embedded(
    backbone: "Backbone", given: EmbeddingInput, first: int, batch: int, workers: int
) -> "Iterator[tuple[list[int], np.ndarray, dict[int, BadItem]]]":
    """Batches from item ``first`` on: places, float32[n, D], and the items that could not be read."""
    import numpy as np
    import torch

    from mmtune.scoring_loop import EncodeText, ReadMedia, open_batches

    family, processor = backbone.family, backbone.processor
    encode: Any = EncodeText(family, processor) if given.kind == "text" else ReadMedia(family, processor)
    embed = family.embed_text if given.kind == "text" else family.embed_media
    device = next(backbone.model.parameters()).device
    starts = range(first, len(given.items), batch)
    batches = [list(range(start, min(start + batch, len(given.items)))) for start in starts]
    for places, inputs, failed in open_batches(backbone, given.items, encode, batches, workers):
        rows = np.zeros((0, 0), dtype=np.float32)
        if places:
            with torch.inference_mode():
                on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
                rows = embed(backbone.model, on_device).float().cpu().numpy()
            _check_finite(rows, [given.ids[place] for place in places])
        yield places, rows, failed


def _check_finite(rows: "np.ndarray", ids: list[str]) -> None:
    import numpy as np

    broken = [name for name, row in zip(ids, rows, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise TrainingError(
            f"the model gives values that are not finite, first for {broken[0]}; its weights are unusable"
        )


def _report(bad: tuple[BadItem, ...]) -> None:
    for item in bad[:NUM_SHOWN]:
        print(f"left out {item.where}: {item.reason}", flush=True)
    if len(bad) > NUM_SHOWN:
        print(f"and {len(bad) - NUM_SHOWN} more, see the manifest", flush=True)
