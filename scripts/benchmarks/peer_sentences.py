"""The peer sentence-transformers: CLIP + peft under its own trainer, with its multiple negatives ranking loss.

The loss is CLIP's in both directions (each a softmax of its own), its scale the model's, which does not learn here; so
its values differ from CLIP's own in the fourth digit and from then on.
"""

import math
from pathlib import Path
from typing import Any

import torch

from mmtune.ground.seeding import seed_for
from scripts.benchmarks.paired_timing import peak_memory
from scripts.benchmarks.peer_trainer import StepClock, arguments, in_mmtunes_order, note_losses, read_rows, target_names
from scripts.benchmarks.work_table import Work


def load_sentence_transformer(folder: Path, work: Work) -> Any:
    """CLIP as a sentence transformer with LoRA, as mmtune's adapter begins."""
    import peft
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    from scripts.benchmarks.made_inputs import load_processor

    module = Transformer(str(folder / "model"), model_kwargs={"dtype": torch.float32})
    module.processor = load_processor(folder / "model", work.family)
    inner = module.auto_model
    torch.manual_seed(seed_for(0, "adapter"))
    names = target_names(inner, work)
    config = peft.LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules=names)
    inner.requires_grad_(False)
    peft.inject_adapter_in_model(config, inner)
    return SentenceTransformer(modules=[module], device="cpu")


def train_with_sentences(folder: Path, work: Work, *, epochs: int, workers: int) -> dict[str, Any]:
    """Its trainer on pairs of image and caption, in mmtune's order."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows = in_mmtunes_order(read_rows(folder), work, epochs)
    columns = {"image": [row["image"] for row in rows], "caption": [row["caption"] for row in rows]}
    features = Features({"image": Picture(mode="RGB"), "caption": Value("string")})
    model = load_sentence_transformer(folder, work)
    scale = math.exp(float(model[0].auto_model.logit_scale.detach()))
    directions = ("query_to_doc", "doc_to_query")
    loss = MultipleNegativesRankingLoss(model, scale=scale, directions=directions, partition_mode="per_direction")
    clock = StepClock()
    own = {"batch_sampler": in_rows_order}
    trainer = note_losses(SentenceTransformerTrainer)(
        model=model,
        args=arguments(work, epochs, workers, folder, SentenceTransformerTrainingArguments, **own),
        train_dataset=Dataset.from_dict(columns, features=features),
        loss=loss,
        callbacks=[clock],
    )
    trainer.train()
    return {"step_seconds": clock.seconds, "losses": trainer.losses, "peak": peak_memory()}


def in_rows_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
    """Batches in the order of the rows."""
    from torch.utils.data import BatchSampler, SequentialSampler

    return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)
