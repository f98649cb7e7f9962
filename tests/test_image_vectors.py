"""Images with several vectors (BLIP-2): the nearest one counts, in losses, rankings, scores and files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from adapter_examples import backbone_of, inputs_of, samples

from mmtune import contrastive_step
from mmtune.backbones import Backbone, tiny_folder
from mmtune.losses._cosines import cosines
from mmtune.metrics._ranking import Positives, ranks_of_embeddings, ranks_of_scores
from mmtune.predict_run import predict
from mmtune.retrieval_picture import first_images
from mmtune.scoring_loop import embed_split, score_embeddings

ROUNDING = 1e-5
"""Embeddings of length 1 computed twice in float32, in other orders of summation."""


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_of(tiny_folder("blip2", tmp_path_factory.mktemp("blip2")))


def test_the_nearest_of_several_vectors_counts_in_losses_rankings_and_scores(blip2: Backbone) -> None:
    inputs = inputs_of(blip2)
    with torch.no_grad():
        image = blip2.family.embed_media(blip2.model, inputs)
        text = blip2.family.embed_text(blip2.model, inputs)
    assert image.shape == (6, 4, 16) and text.shape == (6, 16)
    each = torch.einsum("iqd,td->itq", image, text)
    expected = each.max(dim=-1).values
    torch.testing.assert_close(cosines(image, text), expected, rtol=0, atol=ROUNDING)
    assert (expected - each.mean(dim=-1)).abs().max() > 0.05, "the mean of the vectors would be another model"
    positives = Positives.from_lists([[n] for n in range(6)])
    ranks = ranks_of_scores(expected.numpy(), positives)
    assert (ranks_of_embeddings(image.numpy(), text.numpy(), positives) == ranks).all()
    ranks = ranks_of_scores(expected.T.contiguous().numpy(), positives)
    assert (ranks_of_embeddings(text.numpy(), image.numpy(), positives) == ranks).all()
    embedded = embed_split(blip2, samples(), device="cpu", batch=4)
    scored = score_embeddings(embedded)
    assert embedded.image_embeds.shape == image.shape and (scored.ranks["text_to_image"] == ranks).all()
    order = expected[:, 2].argsort(descending=True)
    assert first_images(embedded, 2, 6).tolist() == order.tolist()


def test_images_with_several_vectors_are_written_as_they_are(blip2: Backbone, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number, sample in enumerate(samples(3)):
        sample.media.read().save(tmp_path / "pictures" / f"{number}.png")
    done = predict(blip2.description.folder, tmp_path / "pictures", output=tmp_path / "a.npy", batch=2, device="cpu")
    rows = np.load(done.output)
    assert rows.shape == (3, 4, 16) and rows.dtype == np.float32
    with torch.no_grad():
        expected = blip2.family.embed_media(blip2.model, inputs_of(blip2))[:3].numpy()
    np.testing.assert_allclose(rows, expected, rtol=0, atol=ROUNDING)


def test_a_rank_that_lost_every_sample_takes_part_with_the_right_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are gathered over the ranks, which must agree on what a row is: here the other rank's is 4 vectors of 16."""
    context: Any = SimpleNamespace(device="cpu", trainable={"any": torch.zeros(1)})
    monkeypatch.setattr(contrastive_step, "gather_objects", lambda items: [*items, (4, 16)])
    assert contrastive_step._rows([torch.zeros(0, 0)], context).shape == (0, 4, 16)
    assert contrastive_step._rows([torch.zeros(0, 0), torch.ones(2, 4, 16)], context).shape == (2, 4, 16)
