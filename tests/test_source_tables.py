"""Reading tables and their captions: a bad line costs that line, and the report says which and why."""

import pickle
from pathlib import Path

import pytest
from pair_tables import captions, make_images, opened, reasons, section, write_lines
from pydantic import ValidationError

from mmtune.ground.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images ``images/0.png`` ... ``9.png`` and nothing else."""
    return make_images(tmp_path)


# --- reading tables


def test_a_plain_table(folder: Path) -> None:
    write_lines(folder, {"image": "0.png", "caption": " a dog "}, {"image": "1.png", "caption": "a cat", "size": 3})
    result = opened(folder)
    assert captions(result) == {"0.png": ("a dog",), "1.png": ("a cat",)}
    assert [sample.columns for sample in result.samples] == [{}, {"size": "3"}]
    assert result.bad == () and result.num_seen == 2
    sample = result.samples[1]
    assert sample.media.read().getpixel((0, 0)) == (1, 0, 0)
    assert sample.media.key == str(folder / "images" / "1.png")
    assert pickle.loads(pickle.dumps(sample)) == sample


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_and_tsv(folder: Path, suffix: str, separator: str, line_end: str, mark: bytes) -> None:
    lines = ["image,caption", "", '0.png,"a ""big"" dog, eating"', "1.png,Käse", ""]
    text = line_end.join(lines) if separator == "," else line_end.join(lines).replace(",", "\t", 1)
    if separator == "\t":
        text = text.replace("0.png,", "0.png\t").replace("1.png,", "1.png\t")
    (folder / f"p.{suffix}").write_bytes(mark + text.encode())
    assert captions(opened(folder, name=f"p.{suffix}")) == {"0.png": ('a "big" dog, eating',), "1.png": ("Käse",)}


def test_format_overrules_the_suffix(folder: Path) -> None:
    (folder / "p.txt").write_text("image,caption\n0.png,a dog\n")
    assert captions(opened(folder, name="p.txt", format="csv")) == {"0.png": ("a dog",)}
    with pytest.raises(ValidationError, match="does not say what it is"):
        section(folder, "p.txt")


def test_bad_json_lines_carry_their_line(folder: Path) -> None:
    write_lines(
        folder,
        {"image": "0.png", "caption": "a dog"},
        "{'image': '1.png'}",
        "",
        '["1.png", "a cat"]',
        {"caption": "no image"},
        {"image": "2.png", "caption": 5},
        {"image": "2.png", "caption": "  "},
        {"image": "2.png", "caption": None},
        '{"image": "2.png", "caption": NaN}',
        '{"image": "2.png", "caption": "\\ud83d"}',
        {"image": 7, "caption": "x"},
        '{"image": "2.png", "caption": "cut',
        "[" * 100_000,
        {"image": "3.png", "caption": "after all that"},
    )
    result = opened(folder)
    assert captions(result) == {"0.png": ("a dog",), "3.png": ("after all that",)}
    found = dict(reasons(result))
    assert result.num_seen == 2 + len(found) == 13
    begins = {
        "2": "not JSON: ",
        "4": "not a JSON object: a list",
        "5": "no image: column 'image' is empty",
        "6": "caption is not text: column 'caption' holds an int",
        "7": "empty caption: column 'caption'",
        "8": "empty caption: ",
        "9": "empty caption: ",
        "10": "half a character: ",
        "11": "no image: column 'image' holds no path",
        "12": "not JSON: ",
        "13": "not JSON: ",
    }
    assert found.keys() == begins.keys()
    assert all(found[line].startswith(begin) for line, begin in begins.items())
    assert result.bad[0].where == f"{folder}/pairs.jsonl:2"


def test_an_emoji_escaped_as_two_halves_is_fine(folder: Path) -> None:
    write_lines(folder, '{"image": "0.png", "caption": "\\ud83d\\ude00 \\u2028"}')
    assert captions(opened(folder)) == {"0.png": ("\U0001f600",)}


def test_bytes_that_are_not_utf8_cost_one_line(folder: Path) -> None:
    (folder / "p.csv").write_bytes("image,caption\n0.png,a dog\n1.png,Käse\n2.png,a cow\n".encode("latin-1"))
    result = opened(folder, name="p.csv")
    assert list(captions(result)) == ["0.png", "2.png"] and reasons(result) == [("3", "not UTF-8")]


def test_line_numbers_are_right_behind_newlines_in_quotes(folder: Path) -> None:
    text = (
        'image,caption\n0.png,"two\nlines"\n1.png,a cat,too many\n2.png,\n3.png,"open\nquote\n4.png,"x"\n5.png,last\n'
    )
    (folder / "p.csv").write_text(text)
    result = opened(folder, name="p.csv")
    assert captions(result) == {"0.png": ("two\nlines",), "5.png": ("last",)}
    found = reasons(result)
    assert found[0] == ("4", "wrong number of fields: 3, the header has 2")
    assert found[-1] == ("5", "empty caption: column 'caption'")
    assert [line for line, _ in found] == ["4", "6", "7", "8", "5"]
    assert found[1][1].startswith("not CSV: ") and found[2][1] == "lost with a bad row: the one that begins in line 6"


def test_quote_open_to_the_end_is_bad_with_every_line_it_swallowed(folder: Path) -> None:
    (folder / "p.csv").write_text('image,caption\n0.png,a dog\n1.png,"open\n2.png,a\n3.png,b\n')
    result = opened(folder, name="p.csv")
    assert list(captions(result)) == ["0.png"]
    assert [line for line, _ in reasons(result)][:3] == ["3", "4", "5"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no readable rows"),
        (b"not json\nneither\n", r"has no readable rows \(2 bad lines; first: .*pairs.jsonl:1: not JSON"),
        (b'[\n{"image": "0.png"}\n]', "is one JSON list; write one object per line"),
        ('{"image": "0.png", "caption": "x"}'.encode("utf-16"), "is not UTF-8 text"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_table(folder: Path, content: bytes, message: str) -> None:
    (folder / "pairs.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        opened(folder)


def test_missing_files_and_folders_are_named(folder: Path) -> None:
    write_lines(folder, {"image": "0.png", "caption": "x"})
    with pytest.raises(DataError, match="no such file: .*pars.jsonl; did you mean 'pairs.jsonl'"):
        opened(folder, name="pars.jsonl")
    with pytest.raises(DataError, match="data.images: no such folder"):
        opened(folder, images=str(folder / "photos"))


def test_missing_columns_are_named_with_the_nearest(folder: Path) -> None:
    (folder / "p.csv").write_text("Image,captoin,title\n0.png,a,b\n")
    with pytest.raises(DataError) as caught:
        opened(folder, name="p.csv", split={"by": "product"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3, "all at once"
    assert "data.image: " in lines[0] and "did you mean 'Image'" in lines[0]
    assert "no column 'product'" in lines[1] and "there are: 'Image', 'captoin', 'title'" in lines[1]
    assert "did you mean 'captoin'" in lines[2]
    (folder / "p.csv").write_text("image;caption\n0.png;a\n")
    with pytest.raises(DataError, match="instead of semicolons"):
        opened(folder, name="p.csv")
    (folder / "p.csv").write_text("image,caption,caption\n0.png,a,b\n")
    with pytest.raises(DataError, match="p.csv:1: column 'caption' occurs twice"):
        opened(folder, name="p.csv")


# --- captions


def test_template(folder: Path) -> None:
    write_lines(
        folder,
        {"image": "0.png", "title": "Shoe", "brand": "Acme", "size": 42},
        {"image": "1.png", "title": "Hat", "brand": "", "size": 7},
        {"image": "2.png", "title": ["Hat"], "brand": "B", "size": 7},
    )
    result = opened(folder, caption="{title} by {brand}, {{size}} {size}")
    assert captions(result) == {"0.png": ("Shoe by Acme, {size} 42",)}
    assert result.samples[0].columns == {"title": "Shoe", "brand": "Acme", "size": "42"}
    assert [reason.split(":")[0] for _, reason in reasons(result)] == ["empty caption", "caption is not text"]


@pytest.mark.parametrize("caption", ["", "  ", "{title", "title}", "{}", "{{title}}", "{a} {b"])
def test_templates_that_mean_nothing(folder: Path, caption: str) -> None:
    with pytest.raises(ValidationError):
        section(folder, caption=caption)


def test_a_list_of_captions(folder: Path) -> None:
    write_lines(
        folder,
        {"image": "0.png", "caption": ["a dog", "a brown dog", " a dog "]},
        {"image": "1.png", "caption": ["a cat", "", 3]},
        {"image": "2.png", "caption": []},
    )
    result = opened(folder)
    assert captions(result) == {"0.png": ("a dog", "a brown dog"), "1.png": ("a cat",)}
    rest = "; the row stays with its other captions"
    assert reasons(result) == [
        ("2", f"empty caption: column 'caption', item 2 of its list{rest}"),
        ("2", f"caption is not text: column 'caption', item 3 of its list holds an int{rest}"),
        ("3", "empty caption: column 'caption' is an empty list"),
    ]


def test_rows_of_one_image_are_one_sample(folder: Path) -> None:
    (folder / "images" / "link.png").symlink_to(folder / "images" / "0.png")
    rows = [("0.png", "a dog"), ("1.png", "a cat"), ("./0.png", "brown"), ("link.png", "linked"), ("0.png", "a dog")]
    write_lines(folder, *({"image": image, "caption": caption} for image, caption in rows))
    result = opened(folder)
    assert captions(result) == {"0.png": ("a dog", "brown", "linked"), "1.png": ("a cat",)}
    assert result.num_seen == 2
