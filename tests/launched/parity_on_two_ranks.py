"""Run by ``accelerate launch`` on two ranks: every way to share a batch, against the same batch on one rank."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from parity_cases import MICRO_BATCH, NUM, PAIRS, cut, distance, make_batch, make_context, make_samples, run

from mmtune.ground import process_group

SHARES = {"equal": NUM // 2, "unequal": NUM - 50, "everything on rank 0": NUM}
"""How many samples the first rank holds; the rest are the second's, which may be none."""


def alone(function, *arguments):  # type: ignore[no-untyped-def]
    """Call as if this were the only process."""
    original = process_group._distributed
    process_group._distributed = lambda: False
    try:
        return function(*arguments)
    finally:
        process_group._distributed = original


def main(folders: dict[str, str], output: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    cases = []
    for dtype in ("float64", "float32"):
        for family, loss in PAIRS:
            context = make_context(Path(folders[family]), dtype, loss)
            samples = make_samples(context)
            single_loss, single = alone(run, context, cut(context, samples, 0))
            for name, first in SHARES.items():
                mine = samples[:first] if rank == 0 else samples[first:]
                batches = cut(context, mine, MICRO_BATCH) if mine else [make_batch(context, [])]
                value, gradients = run(context, batches)
                total = sum(float(g.double().sum()) for g in gradients.values())
                totals = process_group.gather_objects([total])
                cases.append(
                    {
                        "dtype": dtype,
                        "family": family,
                        "loss_kind": loss,
                        "share": name,
                        "world_size": process_group.world_size(),
                        "loss": value,
                        "single_rank_loss": single_loss,
                        "gradient_distance": distance(single, gradients),
                        "ranks_agree": totals[0] == totals[1],
                    }
                )
    if accelerator.is_main_process:
        output.write_text(json.dumps(cases))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
