"""`mmtune show`: samples as the model meets them, on the terminal and as one page that is safe to open."""

import io
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from adapter_examples import DrawnImage
from rich.console import Console
from shown_worlds import CAPTIONS, NASTY, captioned, reader, recipe, talks, trained_text, viewed

from mmtune.ground.errors import DataError, RecipeError
from mmtune.ground.records import BadItem, Sample
from mmtune.sample_views import Viewing
from mmtune.sources import OpenedSplit
from mmtune.token_page import LARGE, as_data, as_page
from mmtune.token_terminal import print_viewing


class Page(HTMLParser):
    """Tags with their attributes, and the text inside each class and kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(f"{tag} {dict(attributes).get('class', '')}")

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for word in set(" ".join(self.open).split()):
            self.texts[word] = self.texts.get(word, "") + data


def printed(viewing: Viewing, of: Any, **options: Any) -> str:
    stream = io.StringIO()
    print_viewing(viewing, of, "test", Console(file=stream, width=300, highlight=False, **options))
    return stream.getvalue()


@pytest.fixture(scope="module")
def captions() -> tuple[Any, Viewing]:
    of = recipe("captioning")
    return of, viewed(reader("llava"), captioned(), of)


def test_numbers_of_a_sample(captions: tuple[Any, Viewing]) -> None:
    _, viewing = captions
    for view, caption in zip(viewing.samples, CAPTIONS, strict=True):
        assert trained_text(view).replace("</s>", "").strip() == caption
        assert view.num_image_tokens == 16 and view.num_images == 1 and len(view.pictures) == 1
        assert view.length == sum(token.count for stream in view.streams for token in stream.tokens)
        assert f"{view.num_trained} of them trained on, 16 for 1 image" in view.facts
    assert "16.0 tokens per image" in "\n".join(viewing.summary())


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm"])
def test_every_round_of_a_conversation_is_trained_on_and_images_are_counted(name: str) -> None:
    viewing = viewed(reader(name), talks(), recipe("chat"))
    assert not viewing.bad
    rounds, several, words = viewing.samples
    assert [len(view.streams[0].targets) for view in viewing.samples] == [2, 1, 1]
    for text in ("a line", "yes"):
        assert text in trained_text(rounds)
    assert "sure?" not in trained_text(rounds), "what the user says is read, not learned"
    assert (rounds.num_images, several.num_images, words.num_images) == (1, 2, 0)
    assert rounds.num_image_tokens > 0 == words.num_image_tokens
    assert several.num_image_tokens == 2 * rounds.num_image_tokens
    assert words.pictures == () and len(several.pictures) == 2 * len(rounds.pictures)


def test_what_the_q_former_reads_is_a_text_of_its_own() -> None:
    samples = [Sample("a", DrawnImage(0), question="what is it?", answers=("a line",))]
    (view,) = viewed(reader("instructblip"), samples, recipe("vqa")).samples
    asked = {stream.name: "".join(token.text for token in stream.tokens) for stream in view.streams}["Q-Former"]
    assert "what is it" in asked.replace("[CLS]", "").strip()


def test_a_matching_head_and_a_classifier_show_what_must_come_out() -> None:
    samples = [Sample(f"s{label}", DrawnImage(0), ("a red line",), label=label) for label in (False, True)]
    views = viewed(reader("blip_matching"), samples, recipe("matching")).samples
    assert [view.judged for view in views] == [
        ("image and text do not belong together",),
        ("image and text belong together",),
    ]
    vilt = reader("vilt")
    known = vilt.family.answers_of(vilt.model.config)[1]
    asked = [Sample(f"s{n}", DrawnImage(0), question="what?", answers=(a,)) for n, a in enumerate((known, "no one"))]
    right, unknown = viewed(vilt, asked, recipe("vqa")).samples
    assert len(right.judged) == 1 and right.judged[0].startswith(f"{known} (")
    assert unknown.judged[0].startswith("none of the classifier's")
    assert right.num_trained == 0 and "trained on" not in right.facts


def test_retrieval_shows_image_and_caption_without_label_colours() -> None:
    of = recipe("retrieval")
    viewing = viewed(reader("siglip"), captioned(), of)
    assert set(viewing.kinds) <= {"read", "padding"} and "read" in viewing.kinds
    assert [len(view.pictures) for view in viewing.samples] == [1, 1, 1]
    assert "trained on" not in printed(viewing, of) + as_page(viewing, of, "test").partition("</style>")[2]


def test_what_cannot_be_encoded_is_listed_with_its_reason(captions: tuple[Any, Viewing]) -> None:
    of, _ = captions
    long = Sample("long", DrawnImage(5), ("a red line " * 300,))
    backbone = reader("llava")
    viewing = viewed(backbone, [*captioned(), long], of)
    (bad,) = viewing.bad
    assert len(viewing.samples) == 3 and bad.where == "drawn 5" and "tokens" in bad.reason
    assert f"bad: drawn 5: {bad.reason}" in printed(viewing, of)
    page = Page(as_page(viewing, of, "test"))
    assert bad.reason in page.texts["bad"] and "drawn 5" in page.texts["bad"]
    assert "bad" not in Page(as_page(captions[1], of, "test")).texts


def test_as_many_as_asked_for_and_the_same_every_time() -> None:
    of, samples = recipe("captioning"), [Sample(f"s{n}", DrawnImage(n), (f"line {n}",)) for n in range(30)]
    opened = OpenedSplit(samples, (BadItem("x.jsonl:3", "not json"),), 31)
    from mmtune.sample_views import view_samples

    ids = [[view.id for view in view_samples(of, reader("git"), opened, "test", 4).samples] for _ in range(2)]
    assert ids[0] == ids[1] and len(set(ids[0])) == 4 and ids[0] != ["s0", "s1", "s2", "s3"]
    assert view_samples(of, reader("git"), opened, "test", 1).bad[0].reason == "not json"


def test_the_page_says_what_the_samples_are(captions: tuple[Any, Viewing]) -> None:
    of, viewing = captions
    text = as_page(viewing, of, "test")
    page = Page(text)
    assert page.open == [], "every tag is closed"
    for view in viewing.samples:
        assert view.id in text and view.facts in text
        assert trained_text(view) in page.texts["trained"]
        assert page.texts["target"].count(view.streams[0].targets[0]) == 1
    assert page.texts["image"].count("[<image> x 16]") == 3
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 3 and all(source.startswith("data:image/png;base64,") for source in pictures)
    assert "prefers-color-scheme: dark" in text


def test_the_page_needs_and_runs_nothing(captions: tuple[Any, Viewing]) -> None:
    of, viewing = captions
    text = as_page(viewing, of, "test")
    page = Page(text)
    assert NASTY in page.texts["target"], "the caption is there, as text"
    assert "script" not in {tag for tag, _ in page.tags} and "<script" not in text.lower()
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(str(value).startswith("data:") for value in addresses)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_names_that_are_markup_stay_text() -> None:
    samples = [Sample("<img src=x onerror=y>\udce9", DrawnImage(0), ("line",))]
    of = recipe("captioning")
    text = as_page(viewed(reader("git"), samples, of), of, '"><hr>')
    page = Page(text)
    assert "<img src=x onerror=y>\\udce9" in page.texts["h2"] and '"><hr>' in page.texts["title"]
    assert "hr" not in {tag for tag, _ in page.tags}
    assert not [attributes for tag, attributes in page.tags if "onerror" in attributes]
    text.encode("utf-8")


def test_large_pictures_become_jpegs() -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert as_data(Image.fromarray(noise)).startswith("data:image/jpeg;base64,") and noise.nbytes > LARGE
    assert as_data(Image.fromarray(noise[:32])).startswith("data:image/png;base64,")


def test_the_terminal_without_colours_has_marks(captions: tuple[Any, Viewing]) -> None:
    of, viewing = captions
    text = printed(viewing, of)
    assert "\x1b" not in text
    assert "« a red line</s>»" in text and "must be said: a red line</s>" in text and "[<image> x 16]" in text
    masked = printed(viewed(reader("siglip"), captioned(), recipe("retrieval")), recipe("retrieval"))
    assert "«" not in masked and "must be said" not in masked


def test_the_terminal_with_colours_draws_the_picture(captions: tuple[Any, Viewing]) -> None:
    of, viewing = captions
    text = printed(viewing, of, force_terminal=True, color_system="truecolor")
    assert text.count("▀") >= 3 * 28 and "\x1b[1;32m" in text
    colours = {part.split("m")[0] for part in text.split("\x1b[38;2;")[1:]}
    assert len(colours) > 100, "random pixels, so hardly two alike"


def test_a_caption_cannot_steer_the_terminal() -> None:
    of, samples = recipe("chat"), talks()[:1]
    turns = (samples[0].turns[0], type(samples[0].turns[0])("assistant", ("a\x1b[31m\x07b",)))
    samples = [Sample("a\x1b]0;x", samples[0].media, turns=turns)]
    text = printed(viewed(reader("qwen2_5_vl"), samples, of), of)
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[31m\\x07b" in text


def test_the_processor_alone_is_the_one_that_loading_gives(tiny_clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    from mmtune.backbones import Section, load, load_processor
    from mmtune.ground.errors import BackboneError

    whole, alone = (call(Section(id=str(tiny_clip_folder))) for call in (load, load_processor))
    assert type(alone.processor) is type(whole.processor)
    assert alone.processor.tokenizer.model_max_length == whole.processor.tokenizer.model_max_length
    assert alone.model.config.text_config.vocab_size == whole.model.config.text_config.vocab_size
    bare = tmp_path / "bare"
    shutil.copytree(tiny_clip_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert load_processor(Section(id=str(bare))).processor is not None
    with pytest.raises(BackboneError):
        load(Section(id=str(bare)))


RECIPE = """
backbone: {{id: {folder}}}
adapter: {{kind: lora, parts: [text], targets: [attention]}}
data: {{kind: glyphs}}
task: {{kind: {task}}}
train: {{length: 2 steps, batch: 4, learning_rate: 1e-4}}
output: {output}
"""


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[Any, str]:
    """``mmtune show ARGUMENTS``: exit code and what was printed."""
    from mmtune import command_line

    monkeypatch.setattr(sys, "argv", ["mmtune", "show", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    captured = capsys.readouterr()
    return caught.value.code, captured.out + captured.err


def test_the_command_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, page = reader("git").description.folder, tmp_path / "samples.html"
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, task="captioning", output=tmp_path / "run"))
    code, text = run(capsys, monkeypatch, path, "--samples", 2, "--split", "test", "-o", page)
    assert code == 0 and f"wrote {page}" in text and text.count("must be said") == 2
    assert Page(page.read_text(encoding="utf-8")).texts["target"].count("must be said") == 2
    assert not (tmp_path / "run").exists()
    code, text = run(capsys, monkeypatch, path, "--split", "tset")
    assert code == 2 and "there is no split 'tset'" in text


def test_a_task_that_the_backbone_cannot_do_is_refused_at_once(tmp_path: Path) -> None:
    from mmtune.recipe_schema import load_recipe
    from mmtune.show_run import show

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=reader("git").description.folder, task="retrieval", output=tmp_path / "run"))
    with pytest.raises(RecipeError, match="needs the ability embed"):
        show(load_recipe(path))


def test_not_one_sample_that_fits_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmtune import train_data
    from mmtune.recipe_schema import load_recipe
    from mmtune.show_run import show

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=reader("git").description.folder, task="captioning", output=tmp_path / "run"))
    long = Sample("long", DrawnImage(5), ("a red line " * 300,))
    monkeypatch.setattr(train_data, "open_checked", lambda recipe, split: OpenedSplit([long], (), 1))
    with pytest.raises(DataError, match="not one sample can be shown.*drawn 5"):
        show(load_recipe(path))
    assert "bad: drawn 5" in capsys.readouterr().out
