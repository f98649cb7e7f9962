"""Peak memory of one step's loss over a large vocabulary: mmtune's label tokens beside transformers' ``labels=``.

    python scripts/benchmarks/large_vocabulary.py                        # 150,000 words, 10 % and 100 % labelled
    python scripts/benchmarks/large_vocabulary.py --words 2000           # does it run at all

A decoder of tiny width (the model itself weighs next to nothing) makes one forward and backward pass, every time in a
fresh process. On a CPU the peak is the process's largest resident size (``ru_maxrss``), and what it was before the step
is printed beside it; on a GPU it is what torch's allocator held at most.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def make_model(words: int, width: int, device: str, dtype: Any) -> Any:
    """A Llama of two layers with random weights; head and embeddings are trained."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=words, hidden_size=width, intermediate_size=2 * width, **layers)
    return LlamaForCausalLM(config).to(device, dtype)


def stock_loss(model: Any, ids: Any, labels: Any) -> Any:
    """As transformers' own training does it."""
    return model(input_ids=ids, labels=labels).loss


def label_token_loss(model: Any, ids: Any, labels: Any) -> Any:
    """As mmtune does it: the states alone, then the head on those that must say something."""
    from mmtune.losses._label_tokens import select_labels, sum_token_losses

    states, targets = select_labels(model.model(input_ids=ids).last_hidden_state, labels, shifted=True)
    return sum_token_losses(states, targets, model.lm_head) / len(targets)


def measure(given: argparse.Namespace) -> dict[str, float]:
    """One path in this process: bytes before the step and at most, the loss, seconds of a second step."""
    import torch

    dtype = getattr(torch, given.dtype)
    model = make_model(given.words, given.width, given.device, dtype)
    ids = torch.randint(0, given.words, (given.rows, given.length), device=given.device)
    labels = ids.clone()
    labels[:, : round((1 - given.share) * given.length)] = -100
    path = {"stock": stock_loss, "label tokens": label_token_loss}[given.path]
    before = _held(given.device)
    for _ in range(2):
        started = time.perf_counter()
        loss = path(model, ids, labels)
        loss.backward()
        value = loss.item()  # waits for the device
        model.zero_grad()
    return {
        "before": before,
        "peak": _held(given.device, peak=True),
        "loss": value,
        "seconds": time.perf_counter() - started,
    }


def _held(device: str, peak: bool = False) -> int:
    """Bytes; of a process only the peak is known, which before the step is what there was."""
    import torch

    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def in_fresh_process(path: str, share: float) -> dict[str, float]:
    """``measure`` in a process of its own, with this one's other arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--path", path, "--share", str(share)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="peak memory over a large vocabulary")
    parser.add_argument("--words", type=int, default=150_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--path", choices=("stock", "label tokens"), help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    given = read_arguments()
    if given.path:
        sys.path[0] = str(ROOT)
        print(json.dumps(measure(given)))
        return
    print(f"{given.words:,} words, {given.rows} x {given.length} positions, width {given.width}, {given.dtype}")
    for share in (0.1, 1.0):
        found = {path: in_fresh_process(path, share) for path in ("stock", "label tokens")}
        for path, one in found.items():
            print(
                f"{share:4.0%} labelled, {path:>12}: peak {one['peak'] / MIB:7,.0f} MiB "
                f"({one['before'] / MIB:,.0f} before the step), loss {one['loss']:.6f}, {one['seconds']:.2f} s"
            )
        whole = found["label tokens"]["peak"] / found["stock"]["peak"]
        step = [one["peak"] - one["before"] for one in (found["label tokens"], found["stock"])]
        print(f"{share:4.0%} labelled: {whole:.2f} of the stock peak; of the step alone {step[0] / step[1]:.2f}")


if __name__ == "__main__":
    main()
