"""The loss of a whole batch where it is a sum: the same however the batch is cut into micro-batches and ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from additive_cases import CASES, NUM, TOLERANCE, cut, distance, make_context, make_items, run, write_twins

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_twins(tmp_path_factory.mktemp("twins"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_micro_batches_change_nothing(twins: dict[str, str], case: str, dtype: str) -> None:
    context = make_context(twins[case], case, dtype)
    items = make_items(context)
    loss, gradients = run(context, cut(context, items, 0))
    assert loss > 0 and max(float(g.abs().max()) for g in gradients.values()) > 0
    for micro_batch in (1, 3):
        other, others = run(context, cut(context, items, micro_batch))
        assert other == pytest.approx(loss, rel=TOLERANCE[dtype])
        assert distance(gradients, others) <= TOLERANCE[dtype]


def test_a_mean_of_means_would_be_another_loss(twins: dict[str, str]) -> None:
    """The negation: captions have unequal lengths, so averaging micro-batches weighs their tokens unequally."""
    context = make_context(twins["captions"], "captions", "float64")
    items = make_items(context)
    loss, _ = run(context, cut(context, items, 0))
    singles = [run(context, cut(context, [item], 0))[0] for item in items]
    assert abs(sum(singles) / NUM - loss) > 1e-3 * loss


@pytest.mark.parametrize("case", ["captions", "answers", "chat captions"])
def test_the_loss_is_that_of_transformers(twins: dict[str, str], case: str) -> None:
    """On one row: transformers' own loss takes the mean over its label tokens too (BLIP's smooths labels: by hand)."""
    context = make_context(twins[case], case, "float64")
    item = make_items(context)[3]
    (batch,) = cut(context, [item], 0)
    loss, _ = run(context, [batch])
    inputs = dict(batch.inputs)
    labels = inputs.pop("labels")
    with torch.no_grad():
        if case == "answers":
            logits = context.backbone.family.token_states(context.backbone.model, inputs)
            logits = context.backbone.model.text_decoder.cls(logits)
        else:
            logits = context.backbone.model(**inputs).logits
    if context.backbone.traits.shifted_labels:
        logits, labels = logits[:, :-1], labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert loss == pytest.approx(float(expected), rel=1e-9)


def test_nothing_left_is_no_loss_and_no_gradient(twins: dict[str, str]) -> None:
    context = make_context(twins["captions"], "captions", "float32")
    loss, gradients = run(context, cut(context, [], 0))
    assert loss == 0 and not gradients


def test_the_scaler_of_a_rank_that_lost_everything_begins_too(twins: dict[str, str]) -> None:
    """Else fp16's scaler refuses to unscale there, on its first step or the first after a resume."""
    context = make_context(twins["captions"], "captions", "float32")
    scaled = []
    context.scale = lambda loss: scaled.append(loss) or loss  # type: ignore[func-returns-value]
    run(context, cut(context, [], 0))
    assert len(scaled) == 1 and not scaled[0].requires_grad


def test_two_ranks_equal_one(twins: dict[str, str], tmp_path: Path) -> None:
    """One launch of two real processes goes through every case and compares with its own single-rank result."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    script = [str(HERE / "launched" / "additive_on_two_ranks.py"), json.dumps(twins), str(tmp_path / "out.json")]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", *script], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    cases = found["steps"]
    assert {case["case"] for case in cases} == set(CASES) and len(cases) == 3 * len(CASES)
    for case in cases:
        assert case["world_size"] == 2 and case["ranks_agree"] and case["unused_stays_so"], case
        assert case["gradient_distance"] <= TOLERANCE["float64"], case
        assert case["loss"] == pytest.approx(case["single_rank_loss"], rel=TOLERANCE["float64"]), case
    wanted = {"ids": 2 * NUM, "bad": ["3"], "same": True, "same_scores": True}
    assert found["answers"] == dict.fromkeys(CASES, wanted), "every sample is answered once, and as on one rank"
