"""Sounds for the tests: tones written with the standard library, a table of them, and a recipe on the tiny twin."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.recipe_schema import Recipe, load_recipe

RATES = (8000, 44_100, 11_025)
"""Sampling rates of the sounds of a world, in turn."""

SPLITS = {2: "val", 3: "test"}


def tone(number: int, seconds: float, rate: int) -> np.ndarray:
    """float64[T] in -1 to 1: a tone with two overtones and some noise, another one for every number."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 61 * number
    sound = np.sin(2 * np.pi * pitch * time) + 0.5 * np.sin(2 * np.pi * (2.5 + number % 3) * pitch * time)
    noise = np.random.default_rng(number).standard_normal(len(time))
    return 0.4 * (sound + 0.1 * (number % 4) * noise * np.exp(-3 * time))


def write_wav(path: Path, samples: np.ndarray, rate: int, *, width: int = 2) -> Path:
    """Integers of ``width`` bytes from float[T] or float[T, C]; one byte is unsigned, as WAV has it."""
    samples = np.clip(samples, -1, 1)
    samples = samples[:, None] if samples.ndim == 1 else samples
    if width == 1:
        data = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i4")
        data = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def write_sounds(folder: Path, num: int = 24) -> Path:
    """Tones of many rates and lengths, every fifth in stereo; the twin hears one second, so half of them are longer."""
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num):
        name, rate = f"{number}.wav", RATES[number % len(RATES)]
        sound = tone(number, 0.4 + 1.2 * (number % 2), rate)
        if number % 5 == 0:
            sound = np.stack([sound, np.zeros_like(sound)], axis=1)
        write_wav(folder / "sounds" / name, sound, rate)
        captions = [f"tone {number}", f"the sound of number {number}"]
        rows.append({"audio": name, "caption": captions, "split": SPLITS.get(number % 4, "train")})
    path = folder / "sounds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sound_recipe(folder: Path, backbone: Path, *overrides: str, **sections: dict[str, Any]) -> Recipe:
    """A recipe of four steps on the sounds in ``folder``; ``sections`` replace keys of a section."""
    table = folder / "sounds.jsonl"
    if not table.exists():
        write_sounds(folder)
    splits = {"train": "train", "validation": "val", "test": "test"}
    recipe: dict[str, dict[str, Any]] = {
        "backbone": {"id": str(backbone)},
        "adapter": {"kind": "lora", "rank": 4, "parts": ["audio", "text"], "targets": ["attention", "mlp"]},
        "data": {"kind": "jsonl", "path": str(table), "sounds": str(folder / "sounds"), "splits": splits},
        "task": {"kind": "retrieval", "loss": {"kind": "infonce"}},
        "train": {"length": "4 steps", "batch": 4, "learning_rate": 0.01, "log_every": "1 steps", "precision": "fp32"},
        "checkpoint": {"every": "2 steps", "keep": 2},
    }
    for section, values in sections.items():
        recipe[section] = {**recipe[section], **values}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**recipe, "output": str(folder / "run"), "seed": 1}))
    return load_recipe(path, overrides)
