"""What the tests of push stand on: a base on the local hub, a run on it with scores, and its merged folder."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_hub
import pytest
from adapter_examples import KINDS, LORA, backbone_of, make_run

from mmtune.ground.safe_files import load_tensors, save_tensors

BASE = "someone/tiny-clip"
BASE_CARD = b"---\nlicense: mit\ntags: [clip]\n---\n# A tiny base\n"


@dataclass
class World:
    """A hub, the folder of its base, and a run with its merged folder; the run is read only, ``copy`` gives another."""

    hub: local_hub.Hub
    folder: Path
    run: Path
    base_commit: str

    def copy(self, where: Path) -> Path:
        """The run once more, to be changed."""
        return Path(shutil.copytree(self.run, where / "products"))


def scored(run: Path) -> Path:
    """The run with scores of its checkpoint on the test split, and the facts that training would have noted."""
    from mmtune import score
    from mmtune.ground.safe_files import read_json, write_json
    from mmtune.run_folder import versions

    facts = {
        "started_in": str(run.parent),
        "versions": versions(),
        "adapter": read_json(run / "recipe.resolved.json")["adapter"]["kind"],
        "steps": 1,
        "seconds": 2.0,
        "best_checkpoint": "step-000001",
        "data": {"train_items": 240, "dropped_per_epoch": 0, "samples_trained": 8, "captions_cut": 3, "bad": 2},
        "trainable": {"count": 1234, "share": 0.05, "parts": []},
    }
    write_json(run / "manifest.json", {**read_json(run / "manifest.json"), **facts})
    score(str(run))
    return run


def make_world(folder: Path, tiny_clip_folder: Path) -> Iterator[World]:
    """A world that lasts as long as the generator."""
    from mmtune import merge, merge_proof

    def reload_here(cases: list[merge_proof.Case], scratch: Path) -> list[dict[str, Any]]:
        return [merge_proof.embed(backbone_of(case.folder), case.inputs) for case in cases]

    with local_hub.serve() as hub, pytest.MonkeyPatch.context() as patch:
        local_hub.use(hub, folder / "cache", patch)
        base = {path.name: path.read_bytes() for path in tiny_clip_folder.iterdir()}
        commit = hub.add(BASE, {**base, "README.md": BASE_CARD}).commits[-1][0]
        run = scored(make_run(folder / "products", {"id": BASE}, LORA))
        patch.setattr(merge_proof, "reload_elsewhere", reload_here)  # the proof itself has tests of its own
        merge(run)
        yield World(hub, folder, run, commit)


def run_of_kind(world: World, where: Path, kind: str) -> Path:
    """An unscored run with another adapter."""
    return make_run(where / kind, {"id": BASE}, KINDS[kind])


_WORD = "A1b2C3d4E5f6G7h8J9k0L1m2N3p4Q5r6S7t8U9v0"
SECRETS = {
    "hf": "hf" + "_" + _WORD[:34],
    "sk": "sk" + "-proj-" + _WORD,
    "github": "gh" + "p_" + _WORD[:36],
    "github_pat": "github" + "_pat_" + _WORD,
    "aws": "AKI" + "A" + "Q2W3E4R5T6Y7U8I9",
    "google": "AIz" + "a" + _WORD[:35],
    "slack": "xox" + "b-" + "1234567890-abcdefghij",
    "gitlab": "glp" + "at-" + _WORD[:20],
    "private_key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "jwt": "ey" + "J" + _WORD[:20] + ".ey" + "J" + _WORD[:20] + "." + _WORD[:20],
    "url": "https://robot:" + _WORD[:12] + "@example.org/data",
    "wandb": "wandb_api_key = " + "0123456789abcdef0123456789abcdef01234567",
    "password": "password: " + "'hunter2-x'",
}
"""Made-up secrets, put together here so that no file of ours holds one."""


def secret_of(kind: str) -> str:
    """A made-up secret of a kind."""
    return SECRETS[kind]


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PLACES = [
    ("recipe value", "github_pat"),
    ("caption", "hf"),
    ("adapter config", "wandb"),
    ("tokenizer config", "slack"),
    ("weights", "jwt"),
    ("scores", "google"),
    ("chat template", "private_key"),
    ("own card", "aws"),
    ("merge report", "url"),
    ("manifest", "sk"),
    ("model config", "gitlab"),
    ("index of weights", "password"),
]
"""Where a secret is planted, and which."""


def plant(run: Path, place: str, secret: str) -> tuple[Path, str]:
    """Put a secret into a run; gives what to push, and the beginning of the line that has to name the file."""
    merged, adapter = run / "merged", run / "checkpoints" / "step-000001" / "adapter"
    manifest = json.loads((run / "manifest.json").read_text())
    scores = json.loads((run / "scores.json").read_text())
    table = {"kind": "jsonl", "path": "pairs.csv", "split": {"test": "5%"}, "caption": "{title} by " + secret}
    changes: dict[str, tuple[Path, Path, dict[str, Any], str]] = {
        "recipe value": (run, run / "recipe.resolved.json", {"output": f"runs/{secret}"}, "README.md, line "),
        "caption": (run, run / "recipe.resolved.json", {"data": table}, "README.md, line "),
        "adapter config": (adapter, adapter / "adapter_config.json", {"revision": secret}, "adapter_config.json, "),
        "tokenizer config": (
            merged,
            merged / "tokenizer_config.json",
            {"x": [secret]},
            "tokenizer_config.json, x[0]: ",
        ),
        "scores": (
            *(run, run / "scores.json", {"bootstrap": {**scores["bootstrap"], "method": secret}}),
            "scores.json, bootstrap.method: ",
        ),
        "merge report": (merged, merged / "merge_report.json", {"by": secret}, "merge_report.json, by: "),
        "manifest": (
            run,
            run / "manifest.json",
            {"versions": {**manifest["versions"], "me": secret}},
            "README.md, line ",
        ),
        "model config": (merged, merged / "config.json", {secret: 1}, "config.json, "),
        "index of weights": (
            *(merged, merged / "model.safetensors.index.json", {"metadata": secret}),
            "model.safetensors.index.json, metadata: ",
        ),
    }
    if place in changes:
        source, path, values, shown = changes[place]
        if not path.exists():
            path.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
        change_json(path, **values)
        return source, shown
    if place == "weights":
        path = adapter / "adapter_model.safetensors"
        save_tensors(path, load_tensors(path), {"note": secret})
        return adapter, "adapter_model.safetensors, header.__metadata__.note: "
    path = {"chat template": merged / "chat_template.jinja", "own card": run / "README.md"}[place]
    path.write_text(f"first line\n{secret}\n")
    return path.parent, f"{path.name}, line 2: "
