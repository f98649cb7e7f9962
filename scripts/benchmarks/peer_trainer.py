"""The peers that train with transformers' loop: ``Trainer`` + peft with the stock processor, and TRL's ``SFTTrainer``.

Settings, the best that their documents offer: scaled dot product attention (the default), the fused AdamW of torch (the
default), loader processes as given and kept alive, no saving, no logging between. The order of the samples is mmtune's,
and the LoRA factors begin with the same values.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmtune.ground.seeding import generator_for, seed_for
from scripts.benchmarks.made_inputs import load_processor
from scripts.benchmarks.paired_timing import peak_memory
from scripts.benchmarks.work_table import Work

RATE, BETAS = 1e-4, (0.9, 0.98)
CLASSES = {
    "clip": "CLIPModel",
    "blip": "BlipForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
}
LAYER_LISTS = {
    "clip": {"vision": "vision_model.encoder.layers", "text": "text_model.encoder.layers"},
    "blip": {"text": "text_decoder.bert.encoder.layer"},
    "llava": {"text": "model.language_model.layers"},
}
PROMPTS = {"blip": "a picture of", "llava": "USER: <image>\nDescribe the image. ASSISTANT:"}
BLIP_START = {"base": 30522}


class StepClock(TrainerCallback):
    """Seconds from the end of one step to the end of the next: reading, encoding and everything else is in them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now


def note_losses(trainer_class: type) -> type:
    """The class, which also keeps every step's loss in ``losses``; nothing else is changed."""

    class Noting(trainer_class):  # type: ignore[misc, valid-type]
        def training_step(self, *args: Any, **given: Any) -> Any:
            loss = super().training_step(*args, **given)
            self.__dict__.setdefault("losses", []).append(float(loss))
            return loss

    return Noting


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The table's rows: image (whole path) and caption."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{**row, "image": str(folder / "images" / row["image"])} for row in rows]


def in_mmtunes_order(rows: Sequence[dict[str, str]], work: Work, epochs: int) -> list[dict[str, str]]:
    """All epochs' rows one after the other, as mmtune goes through them, without each epoch's last short batch."""
    orders = [generator_for(0, "order", epoch).permutation(len(rows)) for epoch in range(epochs)]
    return [rows[int(place)] for order in orders for place in order[: work.steps * work.batch]]


def load_with_lora(folder: Path, work: Work) -> Any:
    """The model with peft's LoRA, as mmtune's adapter begins; of CLIP the temperature is trained too."""
    import peft
    import transformers

    model = getattr(transformers, CLASSES[work.family]).from_pretrained(folder / "model", dtype=torch.float32)
    torch.manual_seed(seed_for(0, "adapter"))
    config = peft.LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules=target_names(model, work))
    adapted = peft.get_peft_model(model, config)
    if work.family == "clip":
        model.logit_scale.requires_grad_(True)
    return adapted


def target_names(model: Any, work: Work) -> list[str]:
    """Full names of the linear layers that the work adapts."""
    names = []
    for part in work.parts:
        path = LAYER_LISTS[work.family][part]
        layers = model.get_submodule(path)
        first = 0 if work.layers == "all" else len(layers) - int(work.layers.removeprefix("last "))
        for number in range(first, len(layers)):
            inside = layers[number].named_modules()
            names += [f"{path}.{number}.{name}" for name, _ in inside if name.rsplit(".", 1)[-1] in work.targets]
    return names


class Pictures(torch.utils.data.Dataset):
    """Rows with their picture decoded; with ``processor``, encoded once and kept in memory from then on."""

    def __init__(self, rows: Sequence[Mapping[str, str]], keep: Any = None) -> None:
        self.rows, self.keep = rows, keep
        self.kept: dict[tuple[str, str], Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.rows[place]
        if self.keep is None:
            return {"image": Image.open(row["image"]).convert("RGB"), "caption": row["caption"]}
        key = (row["image"], row["caption"])
        if key not in self.kept:
            self.kept[key] = self.keep([{**row, "image": Image.open(row["image"]).convert("RGB")}])
        return self.kept[key]


class Encode:
    """Collate with the stock processor: pictures and captions of a batch to the model's inputs."""

    def __init__(self, processor: Any, work: Work) -> None:
        self.processor, self.work = processor, work
        self.asked: int | None = None
        self.pad = processor.tokenizer.pad_token_id
        self.start = BLIP_START.get(work.model, len(processor.tokenizer))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        captions, images = [row["caption"] for row in rows], [row["image"] for row in rows]
        if self.work.family == "clip":
            inputs = self.processor(text=captions, images=images, padding=True, truncation=True, return_tensors="pt")
            return {**inputs, "return_loss": True}
        if self.work.family == "blip":
            return self._of_blip(captions, images)
        tokenizer = self.processor.tokenizer
        prompt, end = PROMPTS["llava"], tokenizer.eos_token
        texts = [f"{prompt} {caption}{end}" for caption in captions]
        inputs = self.processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
        if self.asked is None:  # every prompt is equally long: worked out once
            self.asked = len(self.processor(text=[prompt], images=images[:1])["input_ids"][0])
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        labels[:, : self.asked] = -100
        return {**inputs, "labels": labels}

    def _of_blip(self, captions: list[str], images: list[Any]) -> dict[str, Any]:
        tokenizer = self.processor.tokenizer
        prompt = [self.start, *tokenizer(PROMPTS["blip"], add_special_tokens=False)["input_ids"]]
        said = [[*tokenizer(one, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id] for one in captions]
        ids = [torch.tensor([*prompt, *one]) for one in said]
        labels = [torch.tensor([*[-100] * len(prompt), *one]) for one in said]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, **_padded(ids, labels, self.pad)}


def _padded(ids: list[torch.Tensor], labels: list[torch.Tensor], fill: int) -> dict[str, torch.Tensor]:
    from torch.nn.utils.rnn import pad_sequence

    lengths = torch.tensor([len(one) for one in ids])
    padded = pad_sequence(ids, batch_first=True, padding_value=fill)
    return {
        "input_ids": padded,
        "attention_mask": (torch.arange(padded.shape[1])[None] < lengths[:, None]).long(),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


class Join:
    """Collate what was kept: rows that are encoded already."""

    def __init__(self, pad: int) -> None:
        self.fill = {"input_ids": pad, "attention_mask": 0, "labels": -100}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from torch.nn.utils.rnn import pad_sequence

        batch: dict[str, Any] = {"pixel_values": torch.cat([row["pixel_values"] for row in rows])}
        for key, fill in self.fill.items():
            if key in rows[0]:
                batch[key] = pad_sequence([row[key][0] for row in rows], batch_first=True, padding_value=fill)
        return {**batch, **({"return_loss": True} if "return_loss" in rows[0] else {})}


def arguments(work: Work, epochs: int, workers: int, folder: Path, kind: type = TrainingArguments, **own: Any) -> Any:
    """What every peer's loop is told."""
    return kind(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=work.batch,
        max_steps=epochs * work.steps,
        learning_rate=RATE,
        adam_beta2=BETAS[1],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        **own,
    )


def train_with_trainer(folder: Path, work: Work, *, epochs: int, workers: int, keep: bool) -> dict[str, Any]:
    """Hugging Face's loop; ``keep``: the dataset encodes every picture once and holds the tensors in memory."""
    rows = in_mmtunes_order(read_rows(folder), work, epochs)
    processor = load_processor(folder / "model", work.family)
    encode = Encode(processor, work)
    clock = StepClock()
    trainer = note_losses(Trainer)(
        model=load_with_lora(folder, work),
        args=arguments(work, epochs, workers, folder, train_sampling_strategy="sequential"),
        train_dataset=Pictures(rows, encode if keep else None),
        data_collator=Join(encode.pad) if keep else encode,
        callbacks=[clock],
    )
    trainer.train()
    return {"step_seconds": clock.seconds, "losses": trainer.losses, "peak": peak_memory()}


def train_with_trl(folder: Path, work: Work, *, epochs: int, workers: int) -> dict[str, Any]:
    """TRL's loop on prompts and completions with images; the loss is the completion's."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture
    from trl import SFTConfig, SFTTrainer

    rows = in_mmtunes_order(read_rows(folder), work, epochs)
    processor = load_processor(folder / "model", work.family)
    end, begin = processor.tokenizer.eos_token, processor.tokenizer.bos_token
    columns = {
        "image": [row["image"] for row in rows],
        "prompt": [f"{begin} {PROMPTS['llava']}"] * len(rows),
        "completion": [row["caption"] + end for row in rows],
    }
    features = Features({"image": Picture(), "prompt": Value("string"), "completion": Value("string")})
    clock = StepClock()
    settings = {"train_sampling_strategy": "sequential", "max_length": None, "gradient_checkpointing": False}
    trainer = note_losses(SFTTrainer)(
        model=load_with_lora(folder, work),
        args=arguments(work, epochs, workers, folder, SFTConfig, **settings, completion_only_loss=True, bf16=False),
        train_dataset=Dataset.from_dict(columns, features=features),
        processing_class=processor,
        callbacks=[clock],
    )
    trainer.train()
    return {"step_seconds": clock.seconds, "losses": trainer.losses, "peak": peak_memory()}
