"""Prediction: rows belong to their ids, interruptions cost nothing, and nothing that is bad is hidden."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtune import predict_run
from mmtune.embedding_input import list_input
from mmtune.ground.errors import DataError, TrainingError
from mmtune.predict_run import Prediction, predict


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven different images in two folders. Read only."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    random = np.random.default_rng(0)
    for number in range(11):
        pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("sub" if number > 5 else ".") / f"{number:02}.png")
    return folder


@pytest.fixture
def copy(pictures: Path, tmp_path: Path) -> Path:
    """The same images, to change."""
    return shutil.copytree(pictures, tmp_path / "copy")


def rows_of(result: Prediction) -> dict[str, np.ndarray]:
    rows, ids = np.load(result.output), json.loads(result.ids.read_text())
    assert rows.dtype == np.float32 and len(rows) == len(ids) == result.num_rows
    return dict(zip(ids, rows, strict=True))


def embed_directly(model: Path, paths: list[Path], texts: tuple[str, ...] = ()) -> np.ndarray:
    """One by one with transformers alone."""
    import torch
    from transformers import AutoModel, AutoProcessor

    loaded, processor = AutoModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model, backend="pil")
    found = []
    with torch.no_grad():
        for path in paths:
            inputs = processor(images=Image.open(path), return_tensors="pt")
            found.append(loaded.get_image_features(**inputs).pooler_output[0])
        for text in texts:
            inputs = processor(text=[text], return_tensors="pt")
            found.append(loaded.get_text_features(**inputs).pooler_output[0])
    return torch.nn.functional.normalize(torch.stack(found), dim=-1).numpy()


def test_rows_belong_to_their_ids(pictures: Path, tmp_path: Path, tiny_clip_folder: Path) -> None:
    result = predict(tiny_clip_folder, pictures, output=tmp_path / "out.npy", batch=4, device="cpu")
    rows = rows_of(result)
    assert list(rows) == [f"{n:02}.png" for n in range(6)] + [f"sub/{n:02}.png" for n in range(6, 11)]
    expected = embed_directly(tiny_clip_folder, [pictures / name for name in rows])
    # batches of 4 and of 1 multiply matrices of other shapes: float32 rounding
    assert np.allclose(np.stack(list(rows.values())), expected, atol=1e-5)
    assert not np.allclose(np.stack(list(rows.values())), expected[::-1], atol=1e-2)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy", "out.ids.json", "out.manifest.json"}
    assert json.loads(result.manifest.read_text())["status"] == "finished"


def test_texts_of_a_table_and_of_lines(tmp_path: Path, tiny_clip_folder: Path) -> None:
    texts = ("a dog", "a cat on the table", "the owl")
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    )
    (tmp_path / "t.txt").write_text("a dog\n\na cat on the table\r\nthe owl")
    table = rows_of(predict(tiny_clip_folder, tmp_path / "t.jsonl", output=tmp_path / "a.npy", device="cpu"))
    lines = rows_of(predict(tiny_clip_folder, tmp_path / "t.txt", output=tmp_path / "b", device="cpu"))
    assert list(table) == ["0", "1", "2"] and list(lines) == ["t.txt:1", "t.txt:3", "t.txt:4"]
    expected = embed_directly(tiny_clip_folder, [], texts)
    for rows in (table, lines):
        assert np.allclose(np.stack(list(rows.values())), expected, atol=1e-5)


def test_bad_images_are_left_out_and_listed(
    copy: Path, tmp_path: Path, tiny_clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is bad by its header, one only when decoded; every other image keeps its own row."""
    clean = rows_of(predict(tiny_clip_folder, copy, output=tmp_path / "clean.npy", batch=4, device="cpu"))
    (copy / "01.png").write_bytes(b"")
    (copy / "03.png").write_bytes((copy / "03.png").read_bytes()[:-100])
    result = predict(tiny_clip_folder, copy, output=tmp_path / "out.npy", batch=4, device="cpu")
    rows = rows_of(result)
    assert clean.keys() - rows.keys() == {"01.png", "03.png"}
    # other images share the batch now: float32 rounding
    assert all(np.allclose(rows[name], clean[name], atol=1e-5) for name in rows)
    assert [Path(item.where).name for item in result.bad] == ["01.png", "03.png"]
    assert result.bad[1].reason.startswith("damaged or cut short: "), "the path is said once"
    said = capsys.readouterr().out
    assert "01.png: the file is empty" in said and "damaged or cut short" in said and "2 left out" in said
    manifest = json.loads(result.manifest.read_text())
    assert manifest["bad"][0]["reason"] == "the file is empty" and manifest["failed"][0]["place"] == 2


ANY_BYTES = sys.platform == "linux"
"""Whether a file's name may be any bytes; elsewhere it is Unicode."""


@pytest.mark.skipif(not ANY_BYTES, reason="file names are Unicode here")
def test_names_that_are_not_utf8(
    copy: Path, tmp_path: Path, tiny_clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linux takes any bytes for a name: it is written escaped, and nothing stops."""
    before = rows_of(predict(tiny_clip_folder, copy, output=tmp_path / "before.npy", device="cpu"))
    strange = copy.rename(tmp_path / "photos\udcff")
    (strange / "00.png").rename(strange / "caf\udce9.png")
    (strange / "01.png").rename(strange / "01\udce9.png")
    (strange / "01\udce9.png").write_bytes(b"")
    (strange / "02.png").write_bytes((strange / "02.png").read_bytes()[:-100])
    output = tmp_path / "out\udce9.npy"
    result = predict(tiny_clip_folder, strange, output=output, device="cpu")
    rows = rows_of(result)
    assert np.allclose(rows[r"caf\udce9.png"], before["00.png"], atol=1e-5)  # another batch size: float32 rounding
    assert len(rows) == len(before) - 2
    assert [item.where for item in result.bad] == [
        str(tmp_path / name) for name in (r"photos\udcff/01\udce9.png", r"photos\udcff/02.png")
    ]
    assert json.loads(result.manifest.read_text())["source"] == str(strange), "reads back as the bytes that it was"
    assert r"out\udce9.npy" in capsys.readouterr().out
    assert predict(tiny_clip_folder, strange, output=output, device="cpu") == result


def test_the_command_in_a_process_of_its_own(copy: Path, tmp_path: Path, tiny_clip_folder: Path) -> None:
    """Whatever the names are, what is said and written is UTF-8."""
    here = predict(tiny_clip_folder, copy, output=tmp_path / "here.npy", batch=4, device="cpu")
    if ANY_BYTES:
        (copy / "00.png").rename(copy / "00\udce9.png")
    command = ["predict", str(tiny_clip_folder), str(copy), "-o", str(tmp_path / "there.npy"), "--batch", "4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(predict_run.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mmtune.command_line", *command], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "there.npy: 11 image embeddings, 0 left out" in done.stdout.decode("utf-8")
    assert np.array_equal(np.load(tmp_path / "there.npy"), np.load(here.output))
    ids = json.loads((tmp_path / "there.ids.json").read_text())
    assert ids == [r"00\udce9.png" if ANY_BYTES else "00.png", *json.loads(here.ids.read_text())[1:]]


class Interrupted(KeyboardInterrupt):
    """Stands for a kill: nothing in the code under test handles it."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``stop_after(n)`` interrupts in front of the n-th batch from now; ``calls`` counts the batches."""
    from mmtune.backbones import clip

    embed, state = clip.embed_media, {"calls": 0, "left": -1}

    def counted(model: Any, batch: Any) -> Any:
        if state["left"] == 0:
            raise Interrupted
        state["left"] -= 1
        state["calls"] += 1
        return embed(model, batch)

    def stop(number: int) -> None:
        state.update(calls=0, left=number)

    stop.calls = lambda: state["calls"]  # type: ignore[attr-defined]
    monkeypatch.setattr(clip, "embed_media", counted)
    monkeypatch.setattr(predict_run, "SAVE_SECONDS", 0.0)
    yield stop


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_gives_the_same_bits(
    pictures: Path, tmp_path: Path, tiny_clip_folder: Path, stop_after: Any, workers: int
) -> None:
    settings: dict[str, Any] = {"batch": 2, "workers": workers, "device": "cpu"}
    whole = predict(tiny_clip_folder, pictures, output=tmp_path / "whole.npy", **settings)
    parts = tmp_path / "parts.npy"
    for done in (2, 3):
        stop_after(done)
        with pytest.raises(Interrupted):
            predict(tiny_clip_folder, pictures, output=parts, **settings)
        assert not parts.exists(), "nothing looks finished that is not"
    stop_after(-1)
    result = predict(tiny_clip_folder, pictures, output=parts, **settings)
    assert stop_after.calls() == 1, "six batches, five of them were safe"
    assert parts.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert result.ids.read_text() == whole.ids.read_text()


def test_work_that_was_not_saved_is_done_again(
    pictures: Path, tmp_path: Path, tiny_clip_folder: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_run, "SAVE_SECONDS", 1e9)
    stop_after(3)
    with pytest.raises(Interrupted):
        predict(tiny_clip_folder, pictures, output=tmp_path / "a.npy", batch=2, device="cpu")
    stop_after(-1)
    predict(tiny_clip_folder, pictures, output=tmp_path / "a.npy", batch=2, device="cpu")
    assert stop_after.calls() == 6


def test_finished_says_so_and_does_nothing(
    pictures: Path, tmp_path: Path, tiny_clip_folder: Path, stop_after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = predict(tiny_clip_folder, pictures, output=tmp_path / "a.npy", device="cpu")
    before = first.output.stat().st_mtime_ns
    stop_after(-1)
    again = predict(tiny_clip_folder, pictures, output=tmp_path / "a.npy", device="cpu")
    assert stop_after.calls() == 0 and "is finished: nothing to do" in capsys.readouterr().out
    assert again == first and first.output.stat().st_mtime_ns == before


def test_another_model_or_input_never_mixes(
    copy: Path,
    tmp_path: Path,
    tiny_clip_folder: Path,
    tiny_siglip_folder: Path,
    stop_after: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "a.npy"
    stop_after(2)
    with pytest.raises(Interrupted):
        predict(tiny_clip_folder, copy, output=output, batch=2, device="cpu")
    Image.new("RGB", (9, 9)).save(copy / "00.png")
    stop_after(-1)
    predict(tiny_clip_folder, copy, output=output, batch=2, device="cpu")
    assert stop_after.calls() == 6 and "other input): beginning anew" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"embeddings of something else \(other weights\)"):
        predict(tiny_siglip_folder, copy, output=output, batch=2, device="cpu")
    with pytest.raises(DataError, match="was not written by predict"):
        np.save(tmp_path / "mine.npy", np.zeros(3))
        predict(tiny_clip_folder, copy, output=tmp_path / "mine.npy", device="cpu")
    with pytest.raises(DataError, match="end the name in .npy"):
        predict(tiny_clip_folder, copy, output=tmp_path / "a.csv", device="cpu")


def test_siglip_too(pictures: Path, tmp_path: Path, tiny_siglip_folder: Path) -> None:
    rows = rows_of(predict(tiny_siglip_folder, pictures, output=tmp_path / "a.npy", batch=4, device="cpu"))
    expected = embed_directly(tiny_siglip_folder, [pictures / name for name in rows])
    assert np.allclose(np.stack(list(rows.values())), expected, atol=1e-5)


def test_values_that_are_not_finite_stop(
    pictures: Path, tmp_path: Path, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmtune.backbones import clip

    embed = clip.embed_media
    monkeypatch.setattr(clip, "embed_media", lambda model, batch: embed(model, batch) / 0)
    with pytest.raises(TrainingError, match="not finite, first for 00.png"):
        predict(tiny_clip_folder, pictures, output=tmp_path / "a.npy", device="cpu")
    assert not (tmp_path / "a.npy").exists()


# --- what is embedded


def test_globs_single_images_and_tables_of_images(pictures: Path, tmp_path: Path) -> None:
    assert list_input(pictures / "0*.png").ids == tuple(f"{pictures}/{n:02}.png" for n in range(6))
    assert len(list_input(f"{pictures}/**/*.png").ids) == 11
    assert list_input(pictures / "00.png").ids == (f"{pictures}/00.png",)
    shutil.copy(pictures / "00.png", tmp_path / "x.png")
    (tmp_path / "t.csv").write_text(f"image,id\nx.png,7\n{pictures}/01.png,8\nnone.png,9\n,10\n")
    table = list_input(tmp_path / "t.csv")
    assert table.kind == "image" and table.ids == ("7", "8")
    assert {(item.where.rsplit(":", 1)[1], item.reason) for item in table.bad} == {
        ("4", "no such file"),
        ("5", "empty cell: column 'image'"),
    }


def test_between_images_and_texts_nothing_is_guessed(tmp_path: Path, pictures: Path) -> None:
    shutil.copy(pictures / "00.png", tmp_path / "x.png")
    (tmp_path / "t.csv").write_text("image,caption,note\nx.png,a dog,n\n")
    with pytest.raises(DataError, match="has images and texts: say which"):
        list_input(tmp_path / "t.csv")
    assert list_input(tmp_path / "t.csv", "image").ids == ("x.png",)
    assert list(list_input(tmp_path / "t.csv", "text").items) == ["a dog"]
    assert list(list_input(tmp_path / "t.csv", "text", column="note").items) == ["n"]
    with pytest.raises(DataError, match="no column 'nota'; did you mean 'note'"):
        list_input(tmp_path / "t.csv", "text", column="nota")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("pictues", None, "no such file or folder: .*pictues; did you mean 'pictures'"),
        ("pictures/*.jpg", None, "matches no file"),
        ("pictures", "text", "texts come from a table"),
        ("pictures/empty", None, "nothing to embed, 0 bad"),
        ("empty.txt", None, "nothing to embed"),
        ("t.csv", None, "has no column image, file_name, audio, text, caption; it has a, b"),
    ],
)
def test_nothing_to_embed(pictures: Path, tmp_path: Path, name: str, kind: Any, message: str) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=message):
        list_input(tmp_path / name, kind)


def test_a_table_of_file_names_is_read_as_images(tmp_path: Path) -> None:
    """A column that names image files holds images, whatever it is called; paths may start from another folder."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / name)
    table = tmp_path / "products.csv"
    table.write_text("file,title\na.jpg,first\nb.png,second\n")
    found = list_input(table, column="file", images=tmp_path / "photos")
    assert found.kind == "image" and found.ids == ("a.jpg", "b.png")
    assert list_input(table, column="title").kind == "text"
    with pytest.raises(DataError, match="image paths start from"):
        list_input(table, column="file")
    with pytest.raises(DataError, match="name one with --column"):
        list_input(table)
