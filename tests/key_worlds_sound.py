"""Sounds for `key_worlds`: two folders of them, a table, a base recipe ``sounds``, and a look at what is heard."""

import hashlib
import json
from pathlib import Path
from typing import Any

from key_worlds import World
from sound_files import tone, write_wav

from mmtune.recipe_schema import Recipe

NUM_SOUNDS = 8


def write_sound_world(folder: Path) -> None:
    """``sounds`` and ``other_sounds`` hold different tones under the same names."""
    for offset, name in ((0, "sounds"), (NUM_SOUNDS, "other_sounds")):
        (folder / name).mkdir()
        for number in range(NUM_SOUNDS):
            write_wav(folder / name / f"{number}.wav", tone(number + offset, 0.05, 8000), 8000)
    rows = [
        {"audio": f"{number}.wav", "second": f"{NUM_SOUNDS - 1 - number}.wav", "caption": f"tone {number}"}
        for number in range(NUM_SOUNDS)
    ]
    (folder / "sounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sounds.yaml").write_text(
        f"backbone: {{id: {folder}/tiny}}\nadapter: {{kind: lora, parts: [text]}}\n"
        f"data: {{kind: jsonl, path: {folder}/sounds.jsonl, sounds: {folder}/sounds, split: {{test: 20%}}}}\n"
        "task: {kind: retrieval}\ntrain: {length: 1 steps, batch: 2, learning_rate: 1e-3}\n"
        f"output: {folder}/run\n"
    )


def heard(world: World, recipe: Recipe) -> Any:
    """Every training sample with its captions and its waveform."""
    from mmtune.train_data import open_checked

    samples: Any = open_checked(recipe, "train").samples
    waves = [hashlib.sha256(one.media.read().waveform.tobytes()).hexdigest() for one in samples]
    return [(one.id, one.captions, wave) for one, wave in zip(samples, waves, strict=True)]
