"""The benchmarks' own parts: pairs, tables, the count of operations, the page of results, two arms at tiny size."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.benchmarks import gpu_side_by_side, operation_limit, side_by_side, timed_arms, write_results  # noqa: E402
from scripts.benchmarks.made_inputs import LETTERS, make_blip, make_clip, make_data, make_llava, save_model  # noqa: E402
from scripts.benchmarks.operation_limit import Layer  # noqa: E402
from scripts.benchmarks.paired_timing import (  # noqa: E402
    compare,
    describe_machine,
    measure_rate,
    peak_memory,
    publish,
    read_json,
    table,
    take_turns,
    time_paired,
    write_json,
)
from scripts.benchmarks.work_table import WORKS, choose  # noqa: E402

SAME_LOSS = 1e-5
"""Two loops sum in different orders in float32."""


def test_ratio_is_taken_pair_by_pair():
    ratio = compare([4.0, 10.0, 6.0], [2.0, 2.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 5.0)
    assert str(ratio) == "3.00 (2.00 to 5.00)"
    for slow, fast in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="do not make pairs"):
            compare(slow, fast)


def test_arms_take_turns_in_both_directions():
    assert list(take_turns("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    calls: list[str] = []
    seconds = time_paired({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_table_and_json(tmp_path):
    assert table(("a", "b"), [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    path = tmp_path / "deep" / "a.json"
    assert read_json(path) == {}
    write_json(path, {"b": [1.5]})
    assert read_json(path) == {"b": [1.5]}
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]


def test_machine_is_described_without_names_or_paths():
    text = json.dumps(describe_machine())
    assert "torch" in text and "cores, CPU" in text.replace("1 core,", "1 cores,")
    assert str(Path.home()) not in text and sys.prefix not in text
    assert peak_memory() > 1 << 20
    assert measure_rate([(8, 8, 8)]) > 0


def test_every_work_has_whole_epochs_in_every_size():
    for name in WORKS:
        for is_quick, is_tiny in ((False, False), (True, False), (False, True)):
            work = choose(name, is_quick=is_quick, is_tiny=is_tiny)
            assert work.items == work.steps * work.batch > 0, "no epoch ends with a short batch"
            assert work.epochs > 1 and work.repeats >= 1


def layers_through(work_name: str) -> tuple[list[Any], dict[str, Any], Any, Any]:
    """Transformers' own layers of a tiny model from the lowest adapted one up, with what each needs beside states."""
    import peft

    from scripts.benchmarks.peer_trainer import LAYER_LISTS, target_names

    work = choose(work_name, is_quick=False, is_tiny=True)
    model, _ = {"clip": make_clip, "blip": make_blip, "llava": make_llava}[work.family]("tiny")
    model.requires_grad_(False)
    model.set_attn_implementation("eager")
    config = peft.LoraConfig(r=work.rank, target_modules=target_names(model, work))
    peft.inject_adapter_in_model(config, model)
    part = work.parts[0]
    layers = list(model.get_submodule(LAYER_LISTS[work.family][part]))
    given: dict[str, Any] = {"attention_mask": None}
    if work.family == "blip":
        given["encoder_hidden_states"] = torch.randn(3, 17, 32)
    if work.family == "llava":
        given["position_embeddings"] = model.model.language_model.rotary_emb(
            torch.zeros(3, 9, 32), torch.arange(9)[None].expand(3, -1)
        )
    counted = operation_limit.layers_of(model.config, work, part)
    return layers[len(layers) - len(counted) :], given, counted, work


@pytest.mark.parametrize("name", ["clip_last4", "clip_all", "blip_decoder", "llava_small"])
def test_operations_are_those_that_torch_counts(name):
    """Of the layers above the cut, forward and backward, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    layers, given, counted, work = layers_through(name)
    length = 9
    states = torch.randn(3, length, 32)
    with FlopCounterMode(display=False) as counter:
        for layer in layers:
            states = layer(states, **given)
            states = states[0] if isinstance(states, tuple) else states
        states.sum().backward()
    mine = 3 * sum(layer.operations(length) for layer in counted)
    assert counter.get_total_flops() == mine
    strict = 3 * sum(layer.operations(length, strict=True, shared=0.2) for layer in counted)
    assert (strict < mine) is (work.family != "llava"), "only what is shared or not read is left out"


def test_what_lies_higher_needs_more():
    one = Layer(width=32, inner=64, rank=4)
    assert one.operations(5) > replace(one, lowest=True).operations(5)
    assert replace(one, seen=7).operations(5) > one.operations(5)
    assert replace(one, is_read_once=True).operations(5) == one.operations(5)


def test_captions_differ_and_pictures_are_files(tmp_path):
    work = choose("blip_five_captions", is_quick=False, is_tiny=True)
    rows = [json.loads(line) for line in make_data(tmp_path, work).read_text().splitlines()]
    assert len({row["caption"] for row in rows}) == len(rows) == work.items
    assert all(LETTERS[0] <= len(row["caption"].replace(" ", "")) <= LETTERS[1] for row in rows)
    files = sorted(path.stat().st_size for path in (tmp_path / "images").iterdir())
    assert len(files) == work.images and files[0] > 30_000, "as much in them as in a photo"


@pytest.fixture(scope="module")
def tiny_inputs(tmp_path_factory) -> tuple[Path, Any]:
    work = choose("clip_last4", is_quick=False, is_tiny=True)
    folder = tmp_path_factory.mktemp("inputs")
    make_data(folder, work)
    save_model(folder / "model", work)
    return folder, work


def test_mmtune_and_trainer_lose_the_same(tiny_inputs, tmp_path, monkeypatch):
    """The same samples in the same order from the same start: every step's loss agrees, and training moved it."""
    folder, work = tiny_inputs
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path))
    ours, theirs, kept = (
        timed_arms.run_arm(arm, folder, work, tmp_path) for arm in ("mmtune", "trainer", "trainer_kept")
    )
    assert len(ours["step_seconds"]) == len(theirs["step_seconds"]) == work.steps * work.epochs
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=SAME_LOSS)
    assert kept["losses"] == pytest.approx(theirs["losses"], abs=SAME_LOSS)
    assert len(set(ours["losses"])) == len(ours["losses"])


def made_up(tmp_path: Path, ours: float, theirs: float) -> Path:
    """A folder of results as the scripts leave it."""
    machine = describe_machine()
    run = {"losses": [3.0, 2.0], "peak": 1 << 30}
    work = replace(WORKS["clip_last4"], images=32, repeats=2)
    arms = {
        name: [{**run, "step_seconds": [9.0, seconds]}, {**run, "step_seconds": [9.0, seconds * 1.1]}]
        for name, seconds in (("mmtune", ours), ("trainer", theirs))
    }
    about = json.loads(json.dumps({**asdict(work), "threads": 2, "size": "whole"}))
    limit = {"rate": 1e11, "operations": {"layers": 1e11, "strict": 5e10}, "seconds": {"layers": 1.0, "strict": 0.5}}
    record = {"about": about, "arms": arms, "limit": limit, "workers": 0, "workers_tried": {"0": 4.0, "2": 4.5}}
    write_json(tmp_path / "side_by_side.json", {"machine": machine, "works": {"clip_last4": record}})
    marks = [{"entries": 1_000, "bytes": 1 << 27, "memory": 100}, {"entries": 20_000, "bytes": 1 << 31, "memory": 121}]
    write_json(tmp_path / "cache_memory.json", {"machine": machine, "marks": marks, "growth": 1.21, "allowed": 1.1})
    (tmp_path / "profile_clip_last4_mmtune.txt").write_text("aten::mm")
    return tmp_path


def test_page_says_what_was_reached_and_what_was_missed(tmp_path):
    page = write_results.write_page(made_up(tmp_path, ours=1.25, theirs=5.0))
    assert "| >= 2.2x | 4.00x (4.00 to 4.00) | reached |" in page
    assert "| >= 60% | 76% | reached |" in page
    assert "| <= +10% | +21.0% | missed by 10% |" in page
    assert "results/profile_clip_last4_mmtune.txt" in page and "2 loader processes 4.50 s" in page
    slower = write_results.write_page(made_up(tmp_path, ours=2.5, theirs=5.0))
    assert "| >= 2.2x | 2.00x (2.00 to 2.00) | missed by 9% |" in slower
    assert "| >= 60% | 38% | missed by 37% |" in slower


def test_page_shows_what_was_measured_besides(tmp_path):
    machine, ratio = describe_machine(), {"median": 2.0, "low": 1.5, "high": 2.5}
    runs = {"mmtune": [{"seconds": 2.0, "peak": 5e8}], "full matrix": [{"seconds": 4.0, "peak": 2e9}]}
    ranking = {"images": 5_000, "captions": 25_000, "runs": runs, "ratio": ratio, "ratio_sorted": ratio, "limit": 1e9}
    write_json(tmp_path / "evaluation_ranking.json", {**ranking, "machine": machine})
    publish({"dry_run": False}, tmp_path / "compile_probe.json", "it never pays")
    page = write_results.write_page(tmp_path)
    assert "| > 1x | 2.00x (1.50 to 2.50) | reached |" in page and "| < 1 GB | 0.50 GB | reached |" in page
    assert "### compile_probe\n\nWhether torch.compile pays" in page and "it never pays" in page


def test_page_of_nothing_and_of_a_dry_run(tmp_path):
    write_json(tmp_path / "gpu_side_by_side.json", {"machine": describe_machine(), "dry_run": True})
    page = write_results.write_page(tmp_path)
    assert "gpu" not in page and "## Targets" in page


def test_committed_page_is_what_the_results_say():
    if any(write_results.RESULTS.glob("*.json")):
        assert write_results.PAGE.read_text(encoding="utf-8") == write_results.write_page(write_results.RESULTS)


def test_interrupted_set_goes_on_where_it_stopped(tmp_path, monkeypatch):
    calls: list[str] = []

    def child(self: Any, arm: str, *_: Any) -> Any:
        calls.append(arm)
        if len(calls) == stop_after:
            raise SystemExit("killed")
        return {"step_seconds": [1.0] * 4, "losses": [1.0] * 4, "peak": 1, "seconds": {}, "rate": 1.0}

    monkeypatch.setattr(side_by_side.Runs, "_child", child)
    given = side_by_side.read_arguments(["clip_last4", "--tiny", "--json", str(tmp_path / "a.json")])
    (_, work), arms = next(side_by_side.works_of(given)), ["mmtune", "trainer"]
    stop_after = 5
    with pytest.raises(SystemExit):
        side_by_side.Runs("clip_last4", work, given).finish(arms)
    assert calls == ["inputs", "limit", "mmtune", "trainer_0", "trainer_2"]
    stop_after, calls[:] = 0, []
    side_by_side.Runs("clip_last4", work, given).finish(arms)
    assert calls == ["inputs", "trainer_0", "trainer_2", "trainer_0", "mmtune"], "what was there is not run again"
    calls.clear()
    side_by_side.Runs("clip_last4", replace(work, batch=1), given).finish(arms)
    assert len(calls) == 7, "another work under the same name is run anew"


def test_arms_that_do_not_fit_or_are_not_installed_are_left_out(monkeypatch, capsys):
    there = {"sentence_transformers"}
    monkeypatch.setattr(side_by_side.importlib.util, "find_spec", lambda name: name in there or None)
    named = side_by_side.ARMS
    arms = {name: side_by_side.fitting_arms(named, WORKS[name]) for name in ("clip_last4", "llava_small")}
    assert arms["clip_last4"] == ["mmtune", "trainer", "trainer_kept", "sentence_transformers"]
    assert arms["llava_small"] == ["mmtune", "trainer", "trainer_kept"]
    assert "trl: not installed here" in capsys.readouterr().err


def test_gpu_script_refuses_without_a_gpu_and_doubles_the_batch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        gpu_side_by_side.refuse_without_gpu(dry_run=False)
    assert "dry run" in gpu_side_by_side.refuse_without_gpu(dry_run=True)
    assert gpu_side_by_side.largest_batch("clip_last4", dry_run=True) == 4
    steps = {"step_seconds": [9.0] * 2 + [1.0] * 2, "losses": [1.0], "peak": 1 << 30}
    slow = {**steps, "step_seconds": [9.0] * 2 + [3.0] * 2}
    found = {"batch": 4, "limit": {"operations": {"layers": 50.0}}}
    found["arms"] = dict(zip(gpu_side_by_side.ARMS, (slow, steps), strict=True))
    row = gpu_side_by_side.row_of("clip_last4", found, peak=100.0, dry_run=True)
    assert row[2:7] == ["1", "4", "3.00 (3.00 to 3.00)", "16.7%", "50.0%"]
    assert len(row) == len(gpu_side_by_side.HEADS)


def test_all_ways_of_ranking_agree():
    from scripts.benchmarks import evaluation_ranking as ranking

    images, texts = ranking.make_embeddings(30)
    sliced, full, ordered = (way(images, texts) for way in ranking.WAYS_OF_RANKING.values())
    assert sliced == pytest.approx(full) and ordered == pytest.approx(full) and 0 < full["text_to_image_recall@1"] < 1


def test_cache_memory_reads_what_it_wrote(tmp_path):
    from scripts.benchmarks import cache_memory

    marks = cache_memory.measure(tmp_path, [8, 16])
    assert [one["entries"] for one in marks] == [8, 16] and not any(one["wrong"] for one in marks)
    assert marks[1]["bytes"] >= 16 * 50 * 768 * 4


def test_recipe_of_every_work_is_one(tmp_path):
    from mmtune.recipe_schema import load_recipe

    for name, work in WORKS.items():
        recipe = load_recipe(timed_arms.write_recipe(tmp_path, work, epochs=2, workers=0, output=tmp_path / name))
        assert recipe.train.batch == work.batch and list(recipe.adapter.parts) == list(work.parts)
