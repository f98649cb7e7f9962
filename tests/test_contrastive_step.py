"""The exact large batch: micro-batches and ranks change memory, never the loss or a gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity_cases import MICRO_BATCH, NUM, PAIRS, TOLERANCE, cut, distance, make_context, make_samples, run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of its tiny twin."""
    from mmtune.backbones import tiny_folder

    folder = tmp_path_factory.mktemp("twins")
    return {family: tiny_folder(family, folder / family) for family in dict(PAIRS)}


@pytest.mark.parametrize(("family", "loss"), PAIRS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_micro_batches_do_not_change_the_loss(twins: dict[str, Path], dtype: str, family: str, loss: str) -> None:
    context = make_context(twins[family], dtype, loss)
    samples = make_samples(context)
    whole_loss, whole = run(context, cut(context, samples, 0))
    assert context.num_forwards == 1
    for micro_batch in (MICRO_BATCH, 100):
        context.num_forwards = 0
        value, gradients = run(context, cut(context, samples, micro_batch))
        assert context.num_forwards == 2 * -(-NUM // micro_batch)
        assert value == pytest.approx(whole_loss, rel=TOLERANCE[dtype])
        assert distance(whole, gradients) <= TOLERANCE[dtype]
    assert set(whole) == set(context.trainable), "every trained tensor has a gradient, the temperature too"
    assert set(context.backbone.traits.temperature) <= set(whole), "SigLIP's bias is trained and compared too"


def test_negatives_of_other_micro_batches_do_matter(tiny_clip_folder: Path) -> None:
    """The negation: the usual mean of micro-batch losses is far from the loss of the batch."""
    context = make_context(tiny_clip_folder, "float64", "infonce")
    samples = make_samples(context)
    _, whole = run(context, cut(context, samples, 0))
    parts = [run(context, [batch])[1] for batch in cut(context, samples, MICRO_BATCH)]
    mean = {name: torch.stack([part[name] for part in parts]).mean(0) for name in whole}
    assert distance(whole, mean) > 0.05


def test_dropout_draws_the_same_masks_in_both_passes(tiny_clip_folder: Path) -> None:
    context = make_context(tiny_clip_folder, "float64", "infonce", dropout=0.3)
    batches = cut(context, make_samples(context)[:24], 6)
    family, model = context.backbone.family, context.backbone.model
    seen: list[torch.Tensor] = []
    original = family.embed_media

    class Watched:
        FAMILY = family.FAMILY
        temperature, embed_text = staticmethod(family.temperature), staticmethod(family.embed_text)

        @staticmethod
        def embed_media(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            embedded: torch.Tensor = original(model, inputs)
            seen.append(embedded.detach())
            return embedded

    context.backbone.family = Watched  # type: ignore[assignment]
    run(context, batches)
    first, second = seen[: len(batches)], seen[len(batches) :]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model.eval()
    assert not torch.equal(original(model, batches[0].inputs), first[0]), "dropout was on"


def test_two_ranks_equal_one(twins: dict[str, Path], tmp_path: Path) -> None:
    """One launch of two real processes goes through every case and compares with its own single-rank result."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    given = [json.dumps({family: str(folder) for family, folder in twins.items()}), str(tmp_path / "out.json")]
    script = [str(HERE / "launched" / "parity_on_two_ranks.py"), *given]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", *script], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases = json.loads((tmp_path / "out.json").read_text())
    assert {(case["family"], case["loss_kind"]) for case in cases} == set(PAIRS)
    assert len(cases) == len(PAIRS) * 2 * 3, "in two number formats, shared in three ways"
    for case in cases:
        assert case["world_size"] == 2
        assert case["gradient_distance"] <= TOLERANCE[case["dtype"]], case
        assert case["loss"] == pytest.approx(case["single_rank_loss"], rel=TOLERANCE[case["dtype"]]), case
        assert case["ranks_agree"], case
