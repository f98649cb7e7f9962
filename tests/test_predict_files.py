"""What `predict` makes of several inputs, and of files that hold many."""

from pathlib import Path

import pytest
from picture_bytes import image_bytes

from mmtune.embedding_input import list_input
from mmtune.ground.errors import DataError


def test_several_files_as_a_shell_makes_them_of_a_glob(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(6):
        (pictures / f"{number:02}.png").write_bytes(image_bytes(number))
    files = [str(path) for path in sorted(pictures.glob("0*.png"))]
    quoted, unquoted = list_input(pictures / "0*.png"), list_input(files)
    assert unquoted == quoted and len(quoted.ids) == 6
    assert list_input([files[0]]) == list_input(files[0]) and list_input([*files, files[0]]) == quoted
    (tmp_path / "pairs.csv").write_text("image\n0.png\n")
    for other in (tmp_path / "pairs.csv", pictures):
        with pytest.raises(DataError, match="2 inputs, among them .*: several are files of images or sounds; give a"):
            list_input([files[0], other])
    with pytest.raises(DataError, match="no such file or folder: .*none.png"):
        list_input([files[0], tmp_path / "none.png"])
    with pytest.raises(DataError, match="no input: give a folder"):
        list_input([])


def test_archives_are_not_taken(tmp_path: Path) -> None:
    for name in ("a.tar", "b.parquet"):
        (tmp_path / name).write_bytes(b"x" * 600)
    for source in (tmp_path / "a.tar", tmp_path / "*.tar", [tmp_path / "a.tar", tmp_path / "b.parquet"]):
        with pytest.raises(DataError, match="a.tar: tars, archives and parquet files are not taken here: unpack it"):
            list_input(source)
