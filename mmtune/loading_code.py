"""The code that a card shows: how to load what is in the repository with transformers and peft alone."""

from mmtune.ground.kind_folder import kinds
from mmtune.push_files import Package

TEMPERATURE_FILE = "temperature.safetensors"
TENSOR_FILES = ("trained.safetensors", TEMPERATURE_FILE)


def loading_note(package: Package) -> str:
    """What to install, and what the code gives."""
    if package.kind == "model":
        return "A plain model folder, `pip install transformers torch pillow` is enough:"
    needs = "transformers torch pillow" + (" peft" if package.has("adapter_model.safetensors") else "")
    return f"`pip install {needs}`{', and mmtune' if package.base.is_builtin else ''}, then:"


def loading_code(package: Package, repo_id: str) -> str:
    """Python that makes ``model`` and ``processor``; it runs as it stands."""
    if package.kind == "model":
        return _model_code(package, repo_id)
    has_peft = package.has("adapter_model.safetensors")
    left = {TEMPERATURE_FILE} if _lacks_one(package) else set()
    files = [name for name in TENSOR_FILES if package.has(name) and name not in left]
    imports = _imports(package, has_peft, bool(files))
    lines = [*imports, "", *_base_lines(package), ""]
    for name in files:
        what = "heads and other plain tensors" if name.startswith("trained") else "the temperature"
        lines.append(f'tensors = load_file(hf_hub_download("{repo_id}", "{name}"))  # {what}')
        lines.append("assert not base.load_state_dict(tensors, strict=False).unexpected_keys")
    if package.has(TEMPERATURE_FILE) and TEMPERATURE_FILE not in files:
        lines.append(f"# {TEMPERATURE_FILE} is not read here: transformers' class has no temperature")
    lines.append(f'model = PeftModel.from_pretrained(base, "{repo_id}").eval()' if has_peft else "model = base.eval()")
    return "\n".join(lines) + "\n"


def _lacks_one(package: Package) -> bool:
    """Whether transformers' class of the family has no temperature, so that mmtune gives it one after loading."""
    return package.has(TEMPERATURE_FILE) and hasattr(kinds("backbones").get(package.family or ""), "after_loading")


def _imports(package: Package, has_peft: bool, has_files: bool) -> list[str]:
    lines = ["import mmtune"] if package.base.is_builtin else []
    lines += ["from huggingface_hub import hf_hub_download"] if has_files else []
    lines += ["from peft import PeftModel"] if has_peft else []
    lines += ["from safetensors.torch import load_file"] if has_files else []
    lines += [] if package.base.is_builtin else [f"from transformers import {auto_class(package)}, AutoProcessor"]
    return lines


def _base_lines(package: Package) -> list[str]:
    base = package.base
    if base.is_builtin:
        return [f'backbone = mmtune.load("{base.id}")', "base, processor = backbone.model, backbone.processor"]
    revision = f', revision="{base.revision}"' if base.revision else ""
    revision += ", trust_remote_code=True" if base.trust_remote_code else ""
    return [
        f'base = {auto_class(package)}.from_pretrained("{base.id}"{revision}, dtype="{base.dtype}")',
        f'processor = AutoProcessor.from_pretrained("{base.id}"{revision})',
    ]


def _model_code(package: Package, repo_id: str) -> str:
    return (
        f"from transformers import {auto_class(package)}, AutoProcessor\n\n"
        f'model = {auto_class(package)}.from_pretrained("{repo_id}").eval()\n'
        f'processor = AutoProcessor.from_pretrained("{repo_id}")\n'
    )


def auto_class(package: Package) -> str:
    """transformers' class that loads the backbone: as the run noted it, else its family's."""
    noted = package.manifest.get("backbone", {}).get("auto_class") or (package.report or {}).get("auto_class")
    if noted:
        return str(noted)
    family = kinds("backbones").get(package.family or "")
    return str(family.FAMILY.auto_class) if family else "AutoModel"
