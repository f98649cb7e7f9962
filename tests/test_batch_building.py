"""Order, shares and collating: functions of (seed, epoch, sample id), never of workers, ranks or history."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmtune.backbones import Section, load
from mmtune.batch_building import Collate, EncodedPairs, Layout, open_loader
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.image_reading import ImageFile
from mmtune.ground.records import BadItem, Sample
from mmtune.sources.jsonl import Section as JsonlSection
from mmtune.tasks import retrieval

LAYOUT = Layout(num_items=23, batch=8, micro_batch=2, num_ranks=2, seed=3)


def places(layout: Layout, rank: int, first: int, last: int) -> list[tuple[int, int]]:
    return [place for micro in layout.micro_batches(rank, first, last) for place in micro]


def test_every_item_once_per_epoch_and_the_short_batch_dropped() -> None:
    assert (LAYOUT.steps_per_epoch, LAYOUT.num_dropped, LAYOUT.micro_batches_per_step) == (2, 7, 2)
    seen = places(LAYOUT, 0, 0, 2) + places(LAYOUT, 1, 0, 2)
    assert len(seen) == len(set(seen)) == 16
    assert {epoch for epoch, _ in seen} == {0}


def test_ranks_and_micro_batches_share_the_same_steps() -> None:
    alone = replace(LAYOUT, num_ranks=1, micro_batch=8)
    for step in range(4):
        together = places(LAYOUT, 0, step, step + 1) + places(LAYOUT, 1, step, step + 1)
        assert together == places(alone, 0, step, step + 1)


def test_starting_in_the_middle_gives_the_rest() -> None:
    whole = list(LAYOUT.micro_batches(1, 0, 6))
    assert list(LAYOUT.micro_batches(1, 3, 6)) == whole[3 * LAYOUT.micro_batches_per_step :]


def test_epochs_and_seeds_differ() -> None:
    assert LAYOUT.order(0) != LAYOUT.order(1)
    assert LAYOUT.order(0) != replace(LAYOUT, seed=4).order(0)
    assert LAYOUT.order(0) == LAYOUT.order(0)


def make_pairs(folder: Path, backbone: Path, **data: object) -> EncodedPairs:
    samples = []
    for number in range(6):
        path = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        captions = (f"picture {number}", "a picture of noise " * (20 if number == 2 else 1))
        samples.append(Sample(str(number), ImageFile(str(path)), captions))
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:80])
    section = JsonlSection.model_validate(
        {"kind": "jsonl", "path": "unused.jsonl", "split": {"validation": "5%"}, **data}, strict=False
    )
    loaded = load(Section(id=str(backbone)))
    limit = loaded.processor.tokenizer.model_max_length
    return EncodedPairs(samples, retrieval, loaded.family, loaded.processor, section, 3, limit)


def test_a_bad_image_leaves_its_batch(tmp_path: Path, tiny_clip_folder: Path) -> None:
    pairs = make_pairs(tmp_path, tiny_clip_folder)
    batch = Collate(pairs.family, pairs.processor)([pairs[(0, item)] for item in range(6)])
    assert batch.ids == ["0", "1", "2", "3", "5"] and len(batch) == 5
    assert [Path(item.where).name for item in batch.bad] == ["4.png"]
    assert batch.inputs["pixel_values"].shape[0] == batch.image_keys.shape[0] == 5
    only_bad = Collate(pairs.family, pairs.processor)([pairs[(0, 4)]])
    assert len(only_bad) == 0 and isinstance(only_bad.bad[0], BadItem)


def test_long_captions_are_cut_and_counted(tmp_path: Path, tiny_clip_folder: Path) -> None:
    pairs = make_pairs(tmp_path, tiny_clip_folder, captions="all")
    batch = Collate(pairs.family, pairs.processor)([pairs[(0, item)] for item in (4, 5, 0)])
    assert len(batch.long_keys) == 1 and batch.long_keys[0] in batch.text_keys
    assert batch.inputs["input_ids"].shape[1] == pairs.limit


def test_captions_one_draws_by_epoch_and_all_gives_every_pair(tmp_path: Path, tiny_clip_folder: Path) -> None:
    one, every = (make_pairs(tmp_path, tiny_clip_folder, captions=mode) for mode in ("one", "all"))
    assert (len(one), len(every)) == (6, 12)
    drawn = {one[(epoch, 0)].text_key for epoch in range(12)}  # type: ignore[union-attr]
    assert len(drawn) == 2
    shared = every[(0, 1)], every[(0, 3)]
    assert shared[0].text_key == shared[1].text_key, "the common caption"  # type: ignore[union-attr]
    assert shared[0].text_key in shared[1].image_keys  # type: ignore[union-attr]


def test_workers_and_augmentation(tmp_path: Path, tiny_clip_folder: Path) -> None:
    pairs = make_pairs(tmp_path, tiny_clip_folder)
    pairs.augmentations[""] = AugmentSection(crop=0.5, flip=True, colour=0.4)
    layout = Layout(num_items=6, batch=3, micro_batch=3, num_ranks=1, seed=3)

    def pixels(workers: int) -> list[torch.Tensor]:
        state = torch.get_rng_state()
        loader = open_loader(pairs, layout, rank=0, first_step=1, last_step=4, workers=workers)
        found = [batch.inputs["pixel_values"] for batch in loader]
        assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
        return found

    here, there = pixels(0), pixels(2)
    assert len(here) == len(there) == 3
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    first, second = pairs[(0, 0)], pairs[(1, 0)]
    assert not torch.equal(first.inputs["pixel_values"], second.inputs["pixel_values"])  # type: ignore[union-attr]
