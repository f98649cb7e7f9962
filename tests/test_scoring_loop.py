"""Embedding and scoring a split: a fake backbone with known answers, a tiny CLIP, workers, ranks, bad images."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.ground.errors import DataError, TrainingError
from mmtune.ground.records import Sample
from mmtune.scored_split import list_content
from mmtune.scoring_loop import EncodedBatches, embed_split, score_embeddings

WIDTH = 12


@dataclass(frozen=True)
class PlainImage:
    """An image that is one number; a negative one cannot be read."""

    number: int
    key: str

    @property
    def where(self) -> str:
        return f"image {self.key}"

    def read(self) -> Image.Image:
        if self.number < 0:
            raise DataError(f"{self.where} is damaged")
        return Image.new("RGB", (8, 8), (self.number, 255 - self.number, 7 * self.number % 256))


def one_hot(number: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(number), WIDTH).float()


class FakeFamily:
    """Image n and the text ``n ...`` have the same embedding, the n-th unit vector."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.was_training: list[bool] = []

    def encode_media(self, processor: Any, image: Image.Image) -> dict[str, torch.Tensor]:
        return {"pixel_values": one_hot(image.getpixel((0, 0))[0])}

    def encode_text(self, processor: Any, text: str) -> dict[str, torch.Tensor]:
        return {"input_ids": one_hot(int(text.split()[0]))}

    def pad(self, processor: Any, encoded: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([each[key] for each in encoded]) for key in encoded[0]}

    def _embed(self, name: str, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.batches.append((name, len(batch[name])))
        self.was_training.append(any(module.training for module in model.modules()))
        return model(batch[name])

    def embed_media(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._embed("pixel_values", model, batch)

    def embed_text(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._embed("input_ids", model, batch)


def fake_backbone() -> SimpleNamespace:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Identity())
    traits = SimpleNamespace(modality="image")
    return SimpleNamespace(model=model, processor=None, family=FakeFamily(), traits=traits)


def sample(name: str, number: int, *captions: str, **more: Any) -> Sample:
    return Sample(id=name, media=PlainImage(number, more.pop("key", name)), captions=captions, **more)


SPLIT = (
    sample("a", 0, "0 red", "0 crimson"),
    sample("b", 1, "1 green"),
    sample("a again", 0, "0 scarlet", key="a"),  # the same image once more, with another caption
    sample("c", 2, "1 green"),  # another image of an old caption
    sample("d", 3, "3 blue", also_true=("4 azure", "8 nobody's caption")),
    sample("e", 4, " 4 azure ", group="sky"),  # the same caption but for outer spaces
    sample("f", 5, "5 grey", group="sky"),
    sample("g", 6, "6 white"),
)


def embed(samples: Any = SPLIT, backbone: Any = None, **options: Any) -> Any:
    options = {"device": "cpu", "batch": 3, **options}
    return embed_split(backbone or fake_backbone(), samples, **options)


def test_every_image_and_every_different_caption_is_embedded_once():
    backbone = fake_backbone()
    embedded = embed(backbone=backbone)
    assert embedded.image_ids == ("a", "b", "c", "d", "e", "f", "g")
    texts = ("0 red", "0 crimson", "1 green", "0 scarlet", "3 blue", " 4 azure ", "5 grey", "6 white")
    assert embedded.texts == texts
    counts = {
        kind: sum(n for name, n in backbone.family.batches if name == kind) for kind in ("pixel_values", "input_ids")
    }
    assert counts == {"pixel_values": 7, "input_ids": 8}
    assert embedded.image_embeds.shape == (7, WIDTH) and embedded.image_embeds.dtype == np.float32


def test_a_text_is_right_for_an_image_in_captions_or_also_true():
    embedded = embed()
    of_text = {
        text.strip(): [embedded.image_ids[i] for i in embedded.text_to_image[n]]
        for n, text in enumerate(embedded.texts)
    }
    assert of_text == {
        "0 red": ["a"],
        "0 crimson": ["a"],
        "0 scarlet": ["a"],
        "1 green": ["b", "c"],
        "3 blue": ["d"],
        "4 azure": ["d", "e"],
        "5 grey": ["f"],
        "6 white": ["g"],
    }
    of_image = embedded.text_to_image.transposed(7)
    for n, image in enumerate(embedded.image_ids):
        assert {embedded.texts[t].strip() for t in of_image[n]} == {t for t, i in of_text.items() if image in i}


def test_groups_join_shared_images_captions_and_named_groups():
    embedded = embed()
    groups = dict(zip(embedded.image_ids, embedded.image_groups.tolist(), strict=True))
    assert groups["b"] == groups["c"]  # a shared caption
    assert groups["d"] == groups["e"] == groups["f"]  # a caption that is also true, then a named group
    assert len({groups[name] for name in "abdg"}) == 4 == embedded.num_groups
    for n, group in enumerate(embedded.text_groups):
        assert {embedded.image_groups[i] for i in embedded.text_to_image[n]} == {group}


def test_known_scores():
    scores = score_embeddings(embed())
    # image c is number 2 and its caption says 1: the text finds b first; c finds eight equal texts, one of them right
    assert scores.values["text_to_image_recall@1"] == 1.0
    assert scores.values["text_to_image_median_rank"] == 1.0
    assert scores.ranks["image_to_text"].tolist() == [1, 1, 1 + 7 / 2, 1, 1, 1, 1]
    assert scores.values["image_to_text_recall@1"] == 6 / 7
    assert scores.values["image_to_text_mrr"] == pytest.approx((6 + 1 / 4.5) / 7, abs=1e-15)


def test_a_wrong_pairing_scores_worse():
    turned = tuple(replace(s, captions=SPLIT[n - 1].captions, also_true=()) for n, s in enumerate(SPLIT))
    assert score_embeddings(embed(turned)).values["text_to_image_recall@1"] < 0.5


def test_modes_and_the_global_generator_are_left_alone():
    backbone = fake_backbone()
    backbone.model.train()
    backbone.model[1].eval()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    embed(backbone=backbone)
    assert torch.equal(torch.rand(4), expected)
    assert not any(backbone.family.was_training)
    assert [module.training for module in backbone.model.modules()] == [True, True, False]


def test_a_bad_image_is_left_out_counted_and_never_replaced():
    samples = (*SPLIT, sample("h", -1, "7 black", "5 grey"))
    embedded = embed(samples, split="test")
    assert [(item.where, item.split) for item in embedded.bad] == [("image h", "test")]
    assert "damaged" in embedded.bad[0].reason
    whole = embed()
    assert embedded.image_ids == whole.image_ids and embedded.texts == whole.texts  # "7 black" has no image any more
    assert score_embeddings(embedded).values == score_embeddings(whole).values


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no samples"):
        embed(())
    with pytest.raises(DataError, match=r"none of the 2 images can be read; the first is image a: image a is damaged"):
        embed((sample("a", -1, "0 x"), sample("b", -2, "1 y")))


def test_diverged_weights_are_an_error():
    embedded = embed()
    embedded.text_embeds[2] = np.nan
    with pytest.raises(TrainingError, match="1 of 8 text embeddings are not finite"):
        score_embeddings(embedded)


def test_progress_counts_every_item():
    seen: list[tuple[str, int, int]] = []
    embed(progress=lambda kind, done, total: seen.append((kind, done, total)))
    assert seen[-1] == ("texts", 8, 8) and ("images", 7, 7) in seen


def test_list_content_reads_no_image():
    assert len(list_content((sample("a", -1, "0 x"),)).images) == 1


@pytest.fixture(scope="module")
def tiny_clip(tiny_clip_folder: Path) -> Any:
    from mmtune.backbones import Section, load

    torch.set_num_threads(1)
    return load(Section(id=str(tiny_clip_folder)))


@dataclass(frozen=True)
class Noise(PlainImage):
    """Random pixels; a negative number cannot be read."""

    def read(self) -> Image.Image:
        super().read()
        pixels = np.random.default_rng(self.number).integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


def noisy_samples(number: int) -> list[Sample]:
    words = ["a", "cat", "in the red house", "on two thin ice", "or", "later than all other"]
    return [
        Sample(str(n), Noise(-1 if n == 6 else n, str(n)), (f"{words[n % 6]} {n % 9}", f"{words[n % 4]} again {n}"))
        for n in range(number)
    ]


def test_a_real_model_embeds_as_it_does_by_hand(tiny_clip: Any):
    samples = noisy_samples(5)
    embedded = embed(samples, tiny_clip, batch=2)
    processed = tiny_clip.processor(
        text=list(embedded.texts), images=[s.media.read() for s in samples], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        output = tiny_clip.model(**processed)
    # other batch shapes and padding: float32 rounding of numbers below 1
    assert np.abs(embedded.image_embeds - output.image_embeds.numpy()).max() < 2e-6
    assert np.abs(embedded.text_embeds - output.text_embeds.numpy()).max() < 2e-6
    assert np.abs(embedded.text_embeds[0] - embedded.text_embeds[1]).max() > 1e-2  # and they are not all the same


def same(left: Any, right: Any) -> bool:
    return (
        np.array_equal(left.image_embeds, right.image_embeds)
        and np.array_equal(left.text_embeds, right.text_embeds)
        and (left.image_ids, left.texts, left.bad) == (right.image_ids, right.texts, right.bad)
        and np.array_equal(left.text_groups, right.text_groups)
    )


def test_workers_change_nothing(tiny_clip: Any):
    samples = noisy_samples(11)
    alone = embed(samples, tiny_clip, batch=4, workers=0)
    assert len(alone.bad) == 1
    assert same(alone, embed(samples, tiny_clip, batch=4, workers=2))
    assert not same(alone, embed(samples[:-1], tiny_clip, batch=4, workers=2))


def test_a_second_model_decodes_nothing(tiny_clip: Any, monkeypatch: pytest.MonkeyPatch):
    samples, keep = noisy_samples(11), EncodedBatches()
    first = embed(samples, tiny_clip, batch=4, workers=2, keep=keep)
    reads: list[int] = []
    monkeypatch.setattr(Noise, "read", lambda self: reads.append(self.number) or PlainImage.read(self))
    assert same(first, embed(samples, tiny_clip, batch=4, keep=keep)) and not reads
    assert len(keep.kept["images"]) == 3 and len(first.bad) == 1


def test_a_split_that_is_too_large_to_keep_is_read_again(tiny_clip: Any):
    samples, keep = noisy_samples(11), EncodedBatches(max_bytes=3 * 32 * 32 * 4 * 6)
    first = embed(samples, tiny_clip, batch=4, keep=keep)
    assert "images" not in keep.kept and "texts" in keep.kept  # ten images do not fit, the tokens do
    assert same(first, embed(samples, tiny_clip, batch=4, keep=keep))


def test_half_precision_is_asked_for_and_float32_comes_back(tiny_clip: Any):
    samples = noisy_samples(4)
    exact, rounded = embed(samples, tiny_clip), embed(samples, tiny_clip, precision="bf16")
    assert rounded.image_embeds.dtype == np.float32
    gap = np.abs(exact.image_embeds - rounded.image_embeds).max()
    assert 1e-6 < gap < 0.1  # bf16 has 8 bits: it must differ, and only by its rounding
    assert np.abs(np.linalg.norm(rounded.image_embeds, axis=1) - 1).max() < 1e-6


def on_one_rank(rank: int, folder: str, backbone: Any, samples: list[Sample], results: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for batch in (2, 64):  # 64: the second rank has no batch at all
        embedded = embed(samples, backbone, batch=batch)
        scores = score_embeddings(embedded, chunk=3)
        results[rank, batch] = (embedded, scores.values)
    dist.destroy_process_group()


def test_two_ranks_give_what_one_gives(tiny_clip: Any, tmp_path: Path):
    import multiprocessing

    import torch.multiprocessing

    samples = noisy_samples(11)
    with multiprocessing.get_context("fork").Manager() as manager:
        results = manager.dict()
        arguments = (str(tmp_path), tiny_clip, samples, results)
        torch.multiprocessing.start_processes(on_one_rank, args=arguments, nprocs=2, start_method="fork")
        found = dict(results)
    for batch in (2, 64):
        alone = embed(samples, tiny_clip, batch=batch)
        for rank in (0, 1):
            embedded, values = found[rank, batch]
            assert same(embedded, alone)
            assert values == score_embeddings(alone).values
