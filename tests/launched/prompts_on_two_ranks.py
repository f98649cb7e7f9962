"""Run by ``accelerate launch`` on two ranks: a step of classification, against the same batch on one rank."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from parity_cases import cut, distance, make_batch
from parity_on_two_ranks import alone
from test_prompt_step import NUM, prepared, step

from mmtune.ground import process_group


def main(folder: Path, output: Path) -> None:
    accelerator = Accelerator(cpu=True)
    context, samples = prepared(folder)
    single_loss, single = alone(step, context, cut(context, samples, 0))
    cases = []
    for first in (NUM // 2, NUM - 5, NUM):
        mine = samples[:first] if accelerator.process_index == 0 else samples[first:]
        value, gradients = step(context, cut(context, mine, 7) if mine else [make_batch(context, [])])
        totals = process_group.gather_objects([sum(float(g.sum()) for g in gradients.values())])
        gap = max(process_group.gather_objects([distance(single, gradients)]))
        cases.append({"loss": value, "single": single_loss, "gap": gap, "agree": totals[0] == totals[1]})
    if accelerator.is_main_process:
        output.write_text(json.dumps(cases))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
