"""Tables for mmtune from three archives that nobody here drew, and small networks to learn them from nothing.

Each archive NAME is looked for in a folder as `NAME.tar`, or unpacked as `NAME/` (or `NAME/NAME/`). Nothing is written
beside it: tables, images of another size and networks go to a cache folder. Every row's id is GROUP/REST; rows of one
group share an image or a sentence.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MARKS = {"easy_vqa": "answers.txt", "nlvr": "dev/dev.json", "emoji": "captions.jsonl"}
"""Archive -> a file by which its folder is known."""

BOX, BOXES, GAP = 100, 3, 50
"""Pixels of a box of nlvr, which is square; boxes in an image; pixels between two of them."""

Row = dict[str, Any]


def find_archive(name: str, folder: Path, cache: Path) -> Path | None:
    """The unpacked archive, unpacked into the cache where there is only a tar file; None where there is neither."""
    places = [folder / name, folder / name / name, cache / "archives" / name]
    if not any((place / MARKS[name]).is_file() for place in places) and (folder / f"{name}.tar").is_file():
        (cache / "archives").mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / f"{name}.tar") as archive:
            archive.extractall(cache / "archives", filter="data")
    return next((place for place in places if (place / MARKS[name]).is_file()), None)


def write_tables(cache: Path, rows: Mapping[str, Iterable[Row]]) -> dict[str, str]:
    """Split -> its table, a line of JSON per row."""
    cache.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, each in rows.items():
        path = cache / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in each), encoding="utf-8")
        paths[split] = str(path)
    return paths


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a table."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# --- the three archives


def easy_vqa_rows(folder: Path, split: str) -> Iterator[Row]:
    """Questions as the archive splits them: ``[question, answer, number of the image]``; a group is an image."""
    asked = json.loads((folder / split / "questions.json").read_text(encoding="utf-8"))
    for number, (question, answer, image) in enumerate(asked):
        yield {
            "id": f"{split}-{image}/{number}",
            "image": f"{split}/images/{image}.png",
            "question": question,
            "answer": answer,
        }


def convert_easy_vqa(folder: Path, cache: Path) -> dict[str, str]:
    """Tables of the training and the test questions."""
    return write_tables(cache, {split: easy_vqa_rows(folder, split) for split in ("train", "test")})


def nlvr_rows(folder: Path, split: str, orders: int) -> Iterator[Row]:
    """Sentences about images of three boxes, each in its first ``orders`` of six orders of the boxes.

    A group is a sentence: the number before the hyphen of ``identifier``.
    """
    for line in (folder / split / f"{split}.json").read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        group, _, rest = example["identifier"].partition("-")
        for order in range(orders):
            name = f"{split}-{example['identifier']}-{order}.png"
            yield {
                "id": f"{group}/{rest}-{order}",
                "image": f"{split}/images/{example['directory']}/{name}",
                "sentence": example["sentence"],
                "label": example["label"],
            }


def convert_nlvr(folder: Path, cache: Path, side: int) -> dict[str, str]:
    """Train on nine tenths of the sentences of `dev` in all six orders, choose by the last tenth, test on `test`.

    Images are written again as ``side`` x ``side`` pixels, the boxes two above one.
    """
    dev, test = list(nlvr_rows(folder, "dev", 6)), list(nlvr_rows(folder, "test", 1))
    chosen = [row for row in dev if int(row["id"].partition("/")[0]) % 10 == 0]
    rows = {
        "train": [row for row in dev if int(row["id"].partition("/")[0]) % 10],
        "validation": [row for row in chosen if row["id"].endswith("-0")],
        "test": test,
    }
    for row in (*rows["train"], *rows["validation"], *test):
        name = row["image"].rpartition("/")[2]
        target = cache / f"images-{side}" / name
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            stack_boxes(folder / row["image"], side).save(target)
        row["image"] = name
    return write_tables(cache, rows)


def stack_boxes(path: Path, side: int) -> Any:
    """The three boxes of an image of 400 x 100 as a square: two above, one below on the left, background beside it."""
    from PIL import Image

    with Image.open(path) as image:
        wide = image.convert("RGB")
    square = Image.new("RGB", (2 * BOX, 2 * BOX), wide.getpixel((BOX, 0)))
    for number in range(BOXES):
        left = number * (BOX + GAP)
        box = wide.crop((left, 0, left + BOX, BOX))
        square.paste(box, (number % 2 * BOX, number // 2 * BOX))
    return square.resize((side, side), Image.Resampling.BOX)


def convert_emoji(folder: Path, cache: Path, style: str) -> dict[str, str]:
    """Emoji of one style with their names, split as the archive says: those of validation and test stay unseen."""
    rows: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in read_rows(folder / "captions.jsonl"):
        names = (f"images/{style}/{row['id']}{ending}" for ending in (".jpg", ".png"))
        image = next((name for name in names if (folder / name).is_file()), None)
        if image is not None:
            rows[row["split"]].append({"id": f"{row['id']}/0", "image": image, "caption": row["caption"]})
    return write_tables(cache, rows)


# --- networks drawn at random


def make_tokenizer(texts: Iterable[str], length: int) -> Any:
    """A BertTokenizer that knows the words of the texts, and spells others."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))}, model_max_length=length
    )


def make_vilt(folder: Path, architecture: str, texts: Iterable[str], answers: list[str], size: dict[str, int]) -> Path:
    """A ViLT of random weights as an ordinary folder.

    Args:
        folder: where to.
        architecture: class of transformers.
        texts: for its vocabulary.
        answers: those that it can give; [] where it gives none.
        size: ``side`` and ``patch`` in pixels, ``width``, ``layers``, ``heads``, ``length`` of a text in tokens.
    """
    import torch
    import transformers
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

    tokenizer = make_tokenizer(texts, size["length"])
    named = {"id2label": dict(enumerate(answers)), "label2id": {text: n for n, text in enumerate(answers)}}
    config = transformers.ViltConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=size["length"],
        image_size=size["side"],
        patch_size=size["patch"],
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_attention_heads=size["heads"],
        num_hidden_layers=size["layers"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=size["width"]
        ** -0.5,  # 0.02 is made for 768: a network so narrow would begin as good as dead
        **(named if answers else {}),
    )
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    pictures = ViltImageProcessorPil(size={"shortest_edge": size["side"]}, size_divisor=size["patch"])
    model.save_pretrained(folder)
    transformers.ViltProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def make_blip(folder: Path, names: list[str]) -> Path:
    """A captioning BLIP of random weights as an ordinary folder, of the size of `builtin:glyph-blip`.

    Its word pieces are made as those are: words end at white space alone, so that a name with a colon or a hyphen can
    be said letter for letter.
    """
    import torch
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from scripts.pretrain_glyph_blip import build_model, build_tokenizer

    torch.manual_seed(0)
    model = build_model()
    side = model.config.vision_config.image_size
    pictures = BlipImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer(sorted(names))
    transformers.BlipProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder
