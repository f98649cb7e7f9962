"""What few-shot training has to beat: classifiers on the frozen image embeddings of the backbone.

Letters: N shots of all classes together, M test images, C classes, D embedding width. Everything is float64 numpy.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.ground.records import BadItem, Sample

if TYPE_CHECKING:
    import torch

PROBE_C = 0.316
"""Inverse strength of the linear probe's L2 penalty: what CLIP's authors found on ImageNet and published with their
code. Nothing is tuned: a few shots leave nothing to tune on."""


def image_features(
    backbone: Any, samples: Sequence[Sample], *, device: "torch.device | str", batch: int, workers: int = 0
) -> np.ndarray:
    """L2-normalised image embeddings float64[N, D] of samples; of several vectors per image their mean.

    Raises:
        DataError: one of the images cannot be read; all that cannot are named.
    """
    import torch

    from mmtune.scoring_loop import ReadMedia, open_batches

    family, rows = backbone.family, []
    bad: list[BadItem] = []
    starts = range(0, len(samples), batch)
    places = [list(range(start, min(start + batch, len(samples)))) for start in starts]
    media = [sample.media for sample in samples]
    read = ReadMedia(family, backbone.processor)
    with torch.inference_mode():
        for there, inputs, failed in open_batches(backbone, media, read, places, workers):
            bad += failed.values()
            if there:
                found = family.embed_media(backbone.model, {name: one.to(device) for name, one in inputs.items()})
                rows.append((found if found.dim() == 2 else found.mean(dim=1)).double().cpu().numpy())
    if bad:
        raise DataError("\n".join(f"{item.where}: {item.reason}" for item in bad))
    features = np.concatenate(rows)
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


def nearest_class_mean(shots: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Class numbers int64[M]: of the class whose normalised mean shot has the largest cosine.

    Args:
        shots: float64[N, D].
        labels: int64[N], class numbers; every class has a shot.
        queries: float64[M, D].

    Source: Mensink et al. 2013, https://doi.org/10.1109/TPAMI.2013.83; prototypes as in Snell et al. 2017,
        https://arxiv.org/abs/1703.05175.
    """
    means = np.stack([shots[labels == number].mean(axis=0) for number in range(int(labels.max()) + 1)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray((queries @ means.T).argmax(axis=1))


def linear_probe(shots: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Class numbers int64[M] by multinomial logistic regression with an L2 penalty.

    Minimises ``sum of W^2 / 2 + PROBE_C * sum of cross-entropies`` to convergence (L-BFGS); the bias is free.
    Embeddings are multiplied by sqrt(D), so that their values are of the order of 1, as those are that ``PROBE_C`` was
    found for.

    Args:
        shots: float64[N, D].
        labels: int64[N].
        queries: float64[M, D].

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, appendix A.3.
    """
    import torch

    scale = shots.shape[1] ** 0.5
    inputs, targets = torch.from_numpy(shots * scale), torch.from_numpy(labels)
    num_classes = int(labels.max()) + 1
    weight = torch.zeros(num_classes, shots.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> "torch.Tensor":
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(inputs @ weight.T + bias, targets, reduction="sum")
        loss = weight.square().sum() / 2 + PROBE_C * losses
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        logits = torch.from_numpy(queries * scale) @ weight.T + bias
    return np.asarray(logits.argmax(dim=1).numpy())
