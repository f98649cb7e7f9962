"""Adapted = merged = reloaded by a process that knows nothing of us, and not equal to the base."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import KINDS, LORA, backbone_of, embeddings, make_run, samples

from mmtune import fresh_reload, merge_building, merge_proof
from mmtune.export_run import merge
from mmtune.ground.errors import CheckpointError, RecipeError
from mmtune.ground.safe_files import file_hash, load_tensors, read_json, save_tensors
from mmtune.merge_building import Merge, fold, prove_all, write_folder
from mmtune.model_loading import resolve


@dataclass(frozen=True)
class Asked:
    """One merge: the backbone's options, the adapter, and what was asked of the merge."""

    family: str
    options: tuple[tuple[str, str], ...] = ()
    kind: str = "lora"
    scale: float = 1.0
    full: bool = False
    dtype: str = "float32"


FOUR, EIGHT, HALF = ("quantize", "4bit"), ("quantize", "8bit"), ("dtype", "bfloat16")
ASKED = [
    *(Asked(family, kind=kind) for family in ("clip", "siglip") for kind in KINDS),
    *(Asked("clip", scale=scale) for scale in (0.0, 0.5, -1.0)),
    *(Asked(family, options=(quantize,)) for family in ("clip", "siglip") for quantize in (FOUR, EIGHT)),
    Asked("clip", options=(FOUR,), kind="dora"),
    Asked("clip", options=(FOUR,), full=True),
    Asked("clip", options=(FOUR, HALF)),
    *(Asked("siglip", dtype=dtype) for dtype in ("bfloat16", "float16")),
    Asked("clip", options=(HALF,)),
]


def name_of(asked: Asked) -> str:
    words = [asked.family, asked.kind, *(value for _, value in asked.options), f"scale{asked.scale:g}", asked.dtype]
    return "-".join(words + ["full"] * asked.full)


@dataclass
class Proven:
    merge: Merge
    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def proven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Asked, Proven]:
    """Every merge of ``ASKED``, all proven by one fresh process."""
    merges = []
    for number, asked in enumerate(ASKED):
        folder = tmp_path_factory.mktemp(f"merge{number}")
        backbone = {"id": str(request.getfixturevalue(f"tiny_{asked.family}_folder")), **dict(asked.options)}
        target = resolve(make_run(folder / "run", backbone, KINDS[asked.kind]))
        folded = fold(target, samples(), scale=asked.scale, full=asked.full, dtype=asked.dtype)
        (folder / "merged").mkdir()
        write_folder(folded, folder / "merged")
        merges.append((folded, folder / "merged"))
    reports = prove_all(merges)
    return {asked: Proven(*pair, report) for asked, pair, report in zip(ASKED, merges, reports, strict=True)}


@pytest.mark.parametrize("asked", ASKED, ids=name_of)
def test_reloaded_equals_adapted_and_differs_from_the_base(proven: dict[Asked, Proven], asked: Asked) -> None:
    found = proven[asked]
    figures, tensors = found.report["reload"], found.report["tensors"]
    assert figures["gap"] <= figures["tolerance"] and figures["gap_to_written_weights"] <= 1e-5
    if asked.dtype == "float32":
        assert figures["tolerance"] == 1e-5
        exact = "as_trained" if FOUR in asked.options and not asked.full else "adapted"
        assert figures["reference"] == {0.0: "base", 1.0: exact}.get(asked.scale, "merged")
    else:
        assert asked.dtype in figures["tolerance_is"]
    changed = 0 if asked.scale == 0 else tensors["trained"]
    assert tensors["changed"] + len(tensors["trained_but_equal_to_base"]) == tensors["trained"] > 0
    assert tensors["changed"] >= changed - 1, "bfloat16 may round away the change of one scalar"
    assert (figures["difference_from_base"] > 1e-2) == (asked.scale != 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_holds_the_base_where_nothing_was_trained(proven: dict[Asked, Proven], kind: str) -> None:
    found = proven[Asked("clip", kind=kind)]
    written = load_tensors(found.folder / "model.safetensors")
    base = backbone_of(Path(found.merge.target.backbone.id)).model.state_dict()
    assert set(written) == set(base)
    differing = {name for name in base if not torch.equal(written[name], base[name])}
    assert differing == set(found.merge.trained)
    assert "logit_scale" in differing


def test_component_files_are_the_original_bytes(proven: dict[Asked, Proven]) -> None:
    for asked in (Asked("clip"), Asked("siglip")):
        found = proven[asked]
        original = Path(found.merge.target.backbone.id)
        others = {path.name for path in original.iterdir()} - {"config.json", "model.safetensors"}
        assert {path.name for path in found.folder.iterdir()} == others | {"config.json", "model.safetensors"}
        assert all((found.folder / name).read_bytes() == (original / name).read_bytes() for name in others)
        assert "quantization_config" not in json.loads((found.folder / "config.json").read_text())


def test_scales_are_on_one_line_through_base_and_merged(proven: dict[Asked, Proven]) -> None:
    base = backbone_of(Path(proven[Asked("clip")].merge.target.backbone.id)).model.state_dict()
    whole = load_tensors(proven[Asked("clip")].folder / "model.safetensors")
    for scale in (0.0, 0.5, -1.0):
        scaled = load_tensors(proven[Asked("clip", scale=scale)].folder / "model.safetensors")
        for name in base:
            assert torch.equal(scaled[name], base[name] + scale * (whole[name] - base[name])), name


def test_gaps_of_quantized_runs_are_measured(proven: dict[Asked, Proven]) -> None:
    four, eight = (proven[Asked("clip", options=(kind,))].report["quantized"] for kind in (FOUR, EIGHT))
    coarse = proven[Asked("clip", options=(FOUR, HALF))].report["quantized"]
    full = proven[Asked("clip", options=(FOUR,), full=True)].report["quantized"]
    assert four["gap_to_the_model_as_trained"] < 1e-5 and coarse["gap_to_the_model_as_trained"] < 1e-5
    assert 1e-3 < eight["gap_to_the_model_as_trained"] < 0.1, "LLM.int8 rounds activations: a few per cent"
    assert full["gap_to_the_model_as_trained"] > 0.1, "the original weights are another model"
    assert (four["merged_into"], full["merged_into"]) == ("dequantized weights", "original weights")
    assert set(four["change_of_scores"].values()) == {0.0}
    assert set(eight["change_of_scores"]) == set(eight["scores_merged"]) >= {"text_to_image_recall@1"}
    assert "quantized" not in proven[Asked("clip")].report


# --- merges that must fail


def skip_the_fresh_process(monkeypatch: pytest.MonkeyPatch, disturbance: float = 0.0) -> None:
    """Embed in this process instead, with an error added."""

    def reload(cases: list[merge_proof.Case], scratch: Path) -> list[dict[str, torch.Tensor]]:
        embedded = [merge_proof.embed(backbone_of(case.folder), case.inputs) for case in cases]
        return [{name: value + disturbance for name, value in each.items()} for each in embedded]

    monkeypatch.setattr(merge_proof, "reload_elsewhere", reload)


@pytest.fixture
def run(tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(merge_building, "open_samples", lambda *_: (samples(), "drawn"))
    return make_run(tmp_path / "run", {"id": str(tiny_clip_folder)}, LORA)


def left_over(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()} - {"recipe.resolved.json", "manifest.json", "checkpoints"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "q_proj.weight is not the merged tensor"),
        ("text_projection.weight", "text_projection.weight was not trained, yet differs from the base"),
    ],
)
def test_a_damaged_tensor_leaves_no_folder(run: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    def damage(folded: Merge, folder: Path) -> dict[str, str]:
        copied = write_folder(folded, folder)
        tensors = load_tensors(folder / "model.safetensors")
        tensors[name].view(-1)[0] += 1e-3
        save_tensors(folder / "model.safetensors", tensors)
        return copied

    monkeypatch.setattr(merge_building, "write_folder", damage)
    with pytest.raises(CheckpointError, match=said):
        merge(run)
    assert not left_over(run)


def test_embeddings_that_differ_leave_no_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_the_fresh_process(monkeypatch, disturbance=1e-4)
    with pytest.raises(CheckpointError, match="is not the adapted model"):
        merge(run)
    assert not left_over(run)
    skip_the_fresh_process(monkeypatch, disturbance=float("nan"))
    with pytest.raises(CheckpointError, match="is not the adapted model"):
        merge(run)
    skip_the_fresh_process(monkeypatch)
    assert merge(run) == run / "merged"


def test_an_adapter_without_effect_is_no_merge(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_the_fresh_process(monkeypatch)
    file = next(run.glob("checkpoints/*/adapter/adapter_model.safetensors"))
    save_tensors(file, {name: torch.zeros_like(value) for name, value in load_tensors(file).items()})
    monkeypatch.setattr("mmtune.run_checkpoint.problems", lambda folder: [])  # the hash would find it first
    target = resolve(run)
    folded = fold(target, samples(), scale=1.0, full=False, dtype="float32")
    write_folder(folded, run / "merged")
    with pytest.raises(CheckpointError, match="embeddings are like the untouched base"):
        prove_all([(folded, run / "merged")])


def test_only_an_earlier_merge_is_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_the_fresh_process(monkeypatch)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="is no earlier merge"):
        merge(run, output=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()
    merge(run, scale=0.5)
    assert merge(run) == run / "merged"
    report = json.loads((run / "merged" / "merge_report.json").read_text())
    assert (report["scale"], report["dtype"], report["samples"]) == (1.0, "float32", {"from": "drawn", "count": 6})


def test_the_folder_one_stands_in_is_not_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_the_fresh_process(monkeypatch)
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "inside")
    for output in (".", "..", tmp_path / "empty"):
        with pytest.raises(RecipeError, match="is the folder you are in, and it would be replaced"):
            merge(run, output=output)
    assert merge(run, output="../merged") == Path("../merged")
    assert (tmp_path / "empty" / "merged" / "merge_report.json").is_file()


def test_an_earlier_merge_that_a_kill_moved_aside_comes_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then, as always, only an earlier merge is replaced, and what belongs to others stays."""
    skip_the_fresh_process(monkeypatch)
    (run / f".merged.{os.getpid()}.old").mkdir()
    (run / f".merged.{os.getpid()}.old" / "thesis.tex").write_text("years of work")
    (run / f".other.{os.getpid()}.part").mkdir()
    with pytest.raises(RecipeError, match="is no earlier merge"):
        merge(run)
    assert left_over(run) == {"merged", f".other.{os.getpid()}.part"}
    assert (run / "merged" / "thesis.tex").is_file()


def test_options_that_make_no_sense(run: Path, tiny_clip_folder: Path) -> None:
    with pytest.raises(RecipeError, match="not quantized.*\n.*write one of float32"):
        merge(run, base="full", dtype="int8")
    with pytest.raises(CheckpointError, match="no adapter to merge"):
        merge(tiny_clip_folder)


def test_what_the_fresh_process_misses_is_said(
    tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fresh process's own code, run here: a launch only to see it fail would cost ten seconds."""
    monkeypatch.setattr(merge_proof, "_run_alone", lambda job: list(map(fresh_reload.embed_case, read_json(job))))
    backbone = backbone_of(tiny_clip_folder)
    backbone.model.save_pretrained(tmp_path / "model")
    case = merge_proof.Case(tmp_path / "model", merge_proof.encode_samples(backbone, samples()), "AutoModel")
    whole = merge_proof.reload_elsewhere([case], tmp_path)[0]
    assert merge_proof.gap(whole, merge_proof.embed(backbone, case.inputs)) < 1e-6
    tensors = load_tensors(tmp_path / "model" / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_tensors(tmp_path / "model" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="missing_keys.*visual_projection.weight"):
        merge_proof.reload_elsewhere([case], tmp_path)


def test_a_process_that_knows_us_is_not_fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text("[]")
    assert fresh_reload.main(str(tmp_path / "job.json")) == 1
    assert "imported" in capsys.readouterr().err and "mmtune" in fresh_reload.FORBIDDEN


def check_that_it_can_be_shared(folder: Path, report: dict[str, Any], backbone: Path, run: Path) -> None:
    """No path of this machine stands in any file, and yet the report says what was merged."""
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(run.parent).encode() not in content and str(backbone.parent).encode() not in content, path.name
    assert (report["backbone"]["id"], report["backbone"]["weight_hash"]) == (
        backbone.name,
        backbone_of(backbone).weight_hash,
    )
    merged, checkpoint = report["merged"], run / "checkpoints" / "step-000001"
    assert (merged["run"], merged["folder"]) == (run.name, "checkpoints/step-000001")
    files = ["adapter/adapter_model.safetensors", "temperature.safetensors"]
    assert merged["sha256"] == {name: file_hash(checkpoint / name) for name in files}


def test_a_run_is_merged_end_to_end_on_its_own_data(tiny_clip_folder: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"id": str(tiny_clip_folder)}, LORA)
    folder = merge(run)
    report = json.loads((folder / "merge_report.json").read_text())
    assert report["samples"]["from"] == "glyphs, split test" and report["reload"]["gap"] < 1e-5
    check_that_it_can_be_shared(folder, report, tiny_clip_folder, run)
    from transformers import CLIPModel

    reloaded = CLIPModel.from_pretrained(folder)
    mine = backbone_of(folder)
    assert torch.equal(mine.model.logit_scale, reloaded.logit_scale)
    inputs = merge_proof.encode_samples(mine, samples())
    assert not torch.equal(embeddings(mine, inputs), embeddings(backbone_of(tiny_clip_folder), inputs))
