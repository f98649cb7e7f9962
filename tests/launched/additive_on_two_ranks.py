"""Run by ``accelerate launch`` on two ranks: every way to share a batch, against the same batch on one rank."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from additive_cases import (
    CASES,
    NUM,
    cut,
    distance,
    leave_unused,
    make_asking,
    make_context,
    make_items,
    make_sample,
    run,
)

from mmtune.answer_scoring import answer_split, score_answers
from mmtune.ground import process_group

SHARES = {"equal": NUM // 2, "unequal": NUM - 1, "everything on rank 0": NUM}
"""How many samples the first rank holds; the rest are the second's, which may be none."""


def alone(function, *arguments):  # type: ignore[no-untyped-def]
    """Call as if this were the only process."""
    original = process_group._distributed
    process_group._distributed = lambda: False
    try:
        return function(*arguments)
    finally:
        process_group._distributed = original


def compare_answers(folder: str, case: str) -> dict[str, Any]:
    """A split that the ranks answer together, against one that each answers alone; one image of it is broken."""
    context = make_context(folder, case, "float32")
    asking = make_asking(context)
    samples = [make_sample(number, asking.answers, broken=number == 3) for number in range(2 * NUM + 1)]
    answered = partial(answer_split, asking, context.backbone, samples, device="cpu", batch=2)
    together, single = answered(), alone(answered)
    facts = {"ids": len({one.id for one in together.samples}), "bad": [item.where for item in together.bad]}
    same = [getattr(together, name) == getattr(single, name) for name in ("samples", "predictions", "bad")]
    return {**facts, "same": all(same), "same_scores": score_answers(together) == score_answers(single)}


def main(folders: dict[str, str], output: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    cases = []
    for case in CASES:
        context = make_context(folders[case], case, "float64")
        items = make_items(context)
        unused = leave_unused(context)
        single_loss, single = alone(run, context, cut(context, items, 0))
        for name, first in SHARES.items():
            value, gradients = run(context, cut(context, items[:first] if rank == 0 else items[first:], 2))
            total = sum(float(g.sum()) for g in gradients.values())
            totals = process_group.gather_objects([total])
            facts = {"case": case, "share": name, "loss": value, "single_rank_loss": single_loss}
            facts |= {"gradient_distance": distance(single, gradients), "ranks_agree": totals[0] == totals[1]}
            facts["unused_stays_so"] = unused.grad is None
            cases.append({**facts, "world_size": process_group.world_size()})
    answers = {case: compare_answers(folders[case], case) for case in CASES}
    if accelerator.is_main_process:
        output.write_text(json.dumps({"steps": cases, "answers": answers}))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
