"""The pictures of a run: they exist, show what is there, are the same each time, and survive half a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmtune import run_report
from mmtune.ground.sound_reading import Sound
from mmtune.metrics import retrieval_scores
from mmtune.metrics._ranking import Positives
from mmtune.retrieval_picture import BANDS, MOMENTS, RANGE, draw_retrievals, first_images, spectrogram
from mmtune.run_report import draw_curves, read_rows
from mmtune.scored_split import SplitEmbeddings


def step_row(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 100,
        "loss": 4 / step,
        "learning_rate": 1e-3,
        "grad_norm": 2.0,
        "samples_per_second": 50.0 + step % 7,
        "data_wait": 0.1,
        "memory": 10**9,
    }


def write_run(folder: Path, *, scored: bool = False, interval: Any = (-0.05, 0.15)) -> Path:
    folder.mkdir(exist_ok=True)
    values = {score.name: 0.3 for score in retrieval_scores()}
    rows = [step_row(step) for step in range(1, 40)] + [{"step": s, "validation": values} for s in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = {"best_checkpoint": "step-000020", "validation": {"text_to_image_recall@1": 0.3}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if scored:
        tuned = {name: value + 0.05 for name, value in values.items()}
        scores = {"split": "test", "images": 9, "texts": 4, "base": values, "tuned": tuned}
        scores["interval95"] = {name: interval for name in values}
        (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_scores_add_a_panel_and_drawing_is_repeatable(tmp_path: Path):
    run = write_run(tmp_path / "run")
    path = draw_curves(run)
    assert path == run / "curves.png"
    plain, first = size(path), path.read_bytes()
    assert draw_curves(run).read_bytes() == first
    write_run(run, scored=True)
    draw_curves(run)
    assert size(path)[0] == plain[0] and size(path)[1] > plain[1]
    assert sorted(p.name for p in run.iterdir()) == ["curves.png", "manifest.json", "metrics.jsonl", "scores.json"]


@pytest.mark.parametrize("interval", [None, (0.01, 0.02)])
def test_scores_without_an_interval_are_drawn(tmp_path: Path, interval: Any):
    plain = draw_curves(write_run(tmp_path / "plain", scored=False))
    scored = draw_curves(write_run(tmp_path / "run", scored=True, interval=interval))
    assert size(scored)[1] > size(plain)[1], "the panel of scores is there"


def test_a_run_without_rows_has_a_picture(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    assert size(draw_curves(run))[0] > 500


def test_a_row_cut_off_by_a_kill_is_left_out_and_a_damaged_one_is_not_hidden(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError):
        read_rows(path)


class Square:
    """An image of one colour."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.key = self.where = str(number)

    def read(self) -> Image.Image:
        return Image.new("RGB", (20 + self.number, 30), (40 * self.number % 256, 90, 120))


def squares(seed: int, num: int = 7) -> SplitEmbeddings:
    generator = np.random.default_rng(seed)
    embeds = generator.normal(size=(2, num, 5)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    positives, groups = Positives.from_lists([[n] for n in range(num)]), np.arange(num)
    images, names = tuple(map(Square, range(num))), tuple(map(str, range(num)))
    texts = tuple(
        f"$ a text with _odd^ signs % and {n} words that go on for a while, longer than a line" for n in range(num)
    )
    return SplitEmbeddings(embeds[0], embeds[1], names, images, texts, positives, groups, groups, ())


def test_retrievals_are_drawn_by_seed(tmp_path: Path):
    models = {"base": squares(0), "tuned": squares(1)}
    path = draw_retrievals(tmp_path / "r.png", models, seed=0, num_queries=2)
    first = path.read_bytes()
    assert draw_retrievals(path, models, seed=0, num_queries=2).read_bytes() == first
    assert draw_retrievals(path, models, seed=1, num_queries=2).read_bytes() != first


def test_small_splits_and_single_models_are_drawn(tmp_path: Path):
    wide = size(draw_retrievals(tmp_path / "two.png", {"base": squares(0, 3), "tuned": squares(1, 3)}, seed=0))
    narrow = size(draw_retrievals(tmp_path / "one.png", {"base": squares(0, 3)}, seed=0))
    assert narrow[0] < wide[0] and narrow[1] == wide[1]


def test_first_images_are_the_nearest():
    embedded = squares(0)
    similarities = embedded.text_embeds[2] @ embedded.image_embeds.T
    assert first_images(embedded, 2, 3).tolist() == sorted(range(7), key=lambda n: -similarities[n])[:3]


def test_sounds_are_told_apart(tmp_path: Path):
    time = np.arange(8000) / 16_000
    low, high = (Sound(np.sin(2 * np.pi * pitch * time).astype(np.float32), 16_000) for pitch in (250, 3000))
    pictures = [spectrogram(sound) for sound in (low, high)]
    peaks = [int(picture.mean(axis=1).argmax()) for picture in pictures]
    assert all(picture.shape == (BANDS, MOMENTS) for picture in pictures) and peaks[0] + 20 < peaks[1]
    later = Sound(np.concatenate([np.zeros(8000, np.float32), low.waveform]), 16_000)
    heard = spectrogram(later)[peaks[0]]
    assert heard[: MOMENTS // 3].max() == -RANGE and heard[-MOMENTS // 3 :].min() > -6
    for odd in (np.zeros(8000, np.float32), np.ones(1, np.float32)):
        assert np.isfinite(spectrogram(Sound(odd, 1000))).all(), "silence and a single sample"


def test_the_frame_follows_the_positives(tmp_path: Path):
    embedded = squares(0)
    right = draw_retrievals(tmp_path / "a.png", {"base": embedded}, seed=0, num_queries=1).read_bytes()
    turned = Positives.from_lists([[(n + 1) % 7] for n in range(7)])
    object.__setattr__(embedded, "text_to_image", turned)
    assert draw_retrievals(tmp_path / "b.png", {"base": embedded}, seed=0, num_queries=1).read_bytes() != right


def test_legends_cover_nothing_and_shares_end_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(run_report, "save_picture", lambda figure, path: seen.append(figure))
    run = write_run(tmp_path / "run", scored=True)
    scores = json.loads((run / "scores.json").read_text())
    scores["tuned"] = {name: 1.0 for name in scores["base"]}
    scores["interval95"] = {name: (0.5, 0.9) for name in scores["base"]}
    (run / "scores.json").write_text(json.dumps(scores))
    draw_curves(run)
    figure = seen[0]
    figure.canvas.draw()
    legends = [axes for axes in figure.axes if axes.get_legend()]
    assert len(legends) == 5
    for axes in legends:
        box = axes.get_legend().get_window_extent()
        assert box.y0 >= axes.get_window_extent().y1 - 1, "above what is drawn"
        assert not any(box.overlaps(text.get_window_extent()) for text in axes.texts)
    shares = [axes for axes in legends if axes.get_title(loc="left").startswith(("test split", "validation"))]
    assert all(max(axes.get_yticks()) <= 1 for axes in shares) and len(shares) == 2
    whiskers = [path.vertices for each in shares[0].collections + shares[1].collections for path in each.get_paths()]
    assert max(ends[:, 1].max() for ends in whiskers) <= 1


def test_error_rates_may_be_more_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(run_report, "save_picture", lambda figure, path: seen.append(figure))
    run = write_run(tmp_path / "run", scored=True)
    scores = json.loads((run / "scores.json").read_text())
    base, tuned = {"wer": 3.0, "accuracy": 0.5}, {"wer": 2.0, "accuracy": 0.6}
    scores |= {"base": base, "tuned": tuned, "interval95": {"wer": (-1.5, 0.5), "accuracy": (-0.2, 0.7)}}
    (run / "scores.json").write_text(json.dumps(scores))
    draw_curves(run)
    panel = next(axes for axes in seen[0].axes if axes.get_title(loc="left").startswith("test split"))
    assert max(panel.get_yticks()) >= 3
    wer, accuracy = panel.collections[0].get_segments()
    assert wer[:, 1].tolist() == pytest.approx([1.5, 3.5]) and accuracy[:, 1].tolist() == pytest.approx([0.3, 1.0])
