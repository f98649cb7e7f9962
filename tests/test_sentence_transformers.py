"""A merged CLIP is a model of sentence-transformers as it lies there; tested where that library is installed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import small_recipe

import mmtune

GAP = 1e-6
"""Largest difference of an entry of unit-length embeddings: the same weights and inputs, other batching."""


def test_a_merged_run_embeds_the_same_there(tmp_path: Path, tiny_clip_folder: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    import torch

    merged = mmtune.merge(mmtune.fit(small_recipe(tmp_path, tiny_clip_folder)))
    model = library.SentenceTransformer(str(merged), device="cpu")
    ours, base = mmtune.load(merged), mmtune.load(tiny_clip_folder)
    picture, text = Image.open(tmp_path / "images" / "3.png"), "picture 3"

    def embed(backbone: object) -> tuple[np.ndarray, np.ndarray]:
        family, processor, weights = backbone.family, backbone.processor, backbone.model
        images = family.pad(processor, [family.encode_media(processor, picture)])
        texts = family.pad(processor, [family.encode_text(processor, text)])
        with torch.no_grad():
            return family.embed_media(weights, images)[0].numpy(), family.embed_text(weights, texts)[0].numpy()

    theirs = [model.encode([one], normalize_embeddings=True)[0] for one in (picture, text)]
    for mine, untouched, other in zip(embed(ours), embed(base), theirs, strict=True):
        assert np.abs(mine - other).max() < GAP
        assert np.abs(untouched - other).max() > 100 * GAP, "the untouched backbone would pass too"
