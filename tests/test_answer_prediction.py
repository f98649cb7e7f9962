"""``predict`` with models that say something: captions, answers and matches, a line of JSON each."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmtune.answer_prediction import AnswerPaths
from mmtune.backbones import tiny_folder
from mmtune.ground.errors import DataError
from mmtune.predict_run import predict

CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    made = {task: tiny_folder("blip", folder / task, architecture=name) for task, name in CLASSES.items()}
    return {**made, "vilt": tiny_folder("vilt", folder / "vilt")}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (40, 30), (50 * number, 90, 200 - 40 * number)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG not really")
    return tmp_path / "photos"


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_captions_of_a_folder(twins: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    done = predict(twins["captioning"], photos, output=tmp_path / "said", batch=2)
    assert done.output == tmp_path / "said.jsonl" and done.num_rows == 5 and len(done.bad) == 1
    written = rows(done.output)
    assert [row["id"] for row in written] == [f"{n}.png" for n in range(5)]
    assert all(row["asked"] == "a picture of" and isinstance(row["answer"], str) for row in written)
    other = predict(twins["captioning"], photos, output=tmp_path / "other.jsonl", ask="this is", batch=5)
    assert {row["asked"] for row in rows(other.output)} == {"this is"}


def test_batches_change_no_answer(twins: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    one, many = (predict(twins["captioning"], photos, output=tmp_path / f"{n}.jsonl", batch=n).output for n in (1, 4))
    assert rows(one) == rows(many)


def test_what_was_interrupted_goes_on(twins: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    whole = rows(predict(twins["captioning"], photos, output=tmp_path / "whole.jsonl", batch=2).output)
    paths = AnswerPaths(tmp_path / "part.jsonl")

    class Stopped(Exception):
        pass

    from mmtune import answer_prediction

    real, calls = answer_prediction.answer_batches, []

    def once(*given: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise Stopped
        return real(*given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(answer_prediction, "answer_batches", once)
        predict(twins["captioning"], photos, output=paths.answers, batch=2)
    assert paths.partial.is_file() and not paths.answers.exists()
    with paths.partial.open("a") as stream:
        stream.write('{"id": "half a li')  # the line that was being written
    assert rows(predict(twins["captioning"], photos, output=paths.answers, batch=2).output) == whole
    assert not paths.partial.exists()
    with pytest.raises(DataError, match="holds answers of something else"):
        predict(twins["captioning"], photos, output=paths.answers, ask="another")


def test_questions_come_from_a_table_or_for_all(twins: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    table = photos / "table.csv"
    table.write_text("image,what\n0.png,which colour?\n1.png,how many?\n0.png,\n")
    done = predict(twins["vqa"], table, output=tmp_path / "a.jsonl", ask_column="what")
    asked = [row["asked"] for row in rows(done.output)]
    assert asked == ["which colour?", "how many?"] and "empty cell: column 'what'" in done.bad[0].reason
    chosen = rows(predict(twins["vilt"], table, output=tmp_path / "b.jsonl", ask_column="what").output)
    assert all("confidence" in row for row in chosen)
    with pytest.raises(DataError, match="task vqa needs a question about every image: give --ask"):
        predict(twins["vilt"], photos, output=tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="no column 'whta'"):
        predict(twins["vqa"], table, output=tmp_path / "d.jsonl", ask_column="whta")


def test_slips_are_told(twins: dict[str, Path], photos: Path, tmp_path: Path, tiny_clip_folder: Path) -> None:
    with pytest.raises(DataError, match=r"end the name in \.jsonl"):
        predict(twins["captioning"], photos, output=tmp_path / "a.npy")
    with pytest.raises(DataError, match="family clip embeds"):
        predict(tiny_clip_folder, photos, output=tmp_path / "a.npy", ask="what?")
    (tmp_path / "mine.jsonl").write_text("mine\n")
    with pytest.raises(DataError, match="was not written by predict"):
        predict(twins["captioning"], photos, output=tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "mine\n"


def test_what_is_finished_says_the_same_again(twins: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    first, again = (predict(twins["captioning"], photos, output=tmp_path / "said.jsonl", batch=2) for _ in range(2))
    assert first == again and (again.num_rows, len(again.bad)) == (5, 1)
