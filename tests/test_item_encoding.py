"""One image and one text become tensors: nothing is cut, and a text is not counted where that cannot matter."""

from typing import Any

import pytest
from PIL import Image

from mmtune.backbones import Section, load, tiny_folder
from mmtune.ground.errors import DataError
from mmtune.item_encoding import Asking, encode_pair
from mmtune.tasks import matching


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    """Matching by a tiny ViLT."""
    folder = tiny_folder("vilt", tmp_path_factory.mktemp("vilt"), architecture="ViltForImageAndTextRetrieval")
    backbone = load(Section(id=str(folder)))
    section = matching.Section(kind="matching")
    return Asking(matching, section, "match", backbone.family, backbone.processor, backbone.traits)


def test_a_text_as_long_as_the_limit_passes_and_a_longer_one_does_not(asking: Asking) -> None:
    limit = asking.processor.tokenizer.model_max_length
    picture = Image.new("RGB", (32, 32))
    assert encode_pair(asking, picture, "a " * (limit - 2))["input_ids"].shape == (limit,)
    with pytest.raises(DataError, match=f"the text has {limit + 1} tokens, more than the {limit} of"):
        encode_pair(asking, picture, "a " * (limit - 1))


def test_only_a_text_at_the_limit_is_counted(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = asking.family.num_tokens

    def count_tokens(processor: Any, text: str) -> int:
        counted.append(text)
        return int(count(processor, text))

    monkeypatch.setattr(asking.family, "num_tokens", count_tokens)
    picture = Image.new("RGB", (32, 32))
    encode_pair(asking, picture, "a cat")
    assert counted == []
    full = "a " * (asking.processor.tokenizer.model_max_length - 2)
    encode_pair(asking, picture, full)
    assert counted == [full]
