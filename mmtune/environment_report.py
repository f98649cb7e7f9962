"""What a bug report needs: versions, hardware and settings that change results; no secrets, paths or names."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

from mmtune import __version__

PACKAGES = (
    "mmtune",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "soundfile",
    "sentencepiece",
)
SHOWN_SETTINGS = (
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_USE_CPU",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
    "WORLD_SIZE",
)
"""Environment variables whose values are flags and numbers."""

HIDDEN_SETTINGS = ("HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH", "WANDB_API_KEY")
"""Environment variables of which only their being set is told: values name places or open doors."""


def describe_environment() -> list[tuple[str, str]]:
    """(topic, what) rows in a fixed order; a package that is not installed is said to be so."""
    return [*_system(), *_packages(), *_accelerators(), *_settings()]


def as_markdown(rows: list[tuple[str, str]]) -> str:
    """The rows as a list that can be pasted into a report."""
    return "\n".join(f"- {topic}: {what}" for topic, what in rows)


def _system() -> Iterator[tuple[str, str]]:
    yield "system", f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}"
    yield "python", f"{platform.python_implementation()} {platform.python_version()}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu cores", f"{usable} usable of {os.cpu_count()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield "memory", f"{memory / 2**30:.0f} GiB"


def _packages() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed" if name != "mmtune" else f"{__version__}, from source"
    try:
        yield "torchvision", f"{importlib.metadata.version('torchvision')} (mmtune does without)"
    except importlib.metadata.PackageNotFoundError:
        return


def _accelerators() -> Iterator[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        yield "torch imports", f"no: {type(error).__name__}"
        return
    yield "torch build", f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch can use"
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield (
            f"GPU {index}",
            f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}, {bf16}",
        )


def _settings() -> Iterator[tuple[str, str]]:
    for name in SHOWN_SETTINGS:
        if name in os.environ:
            yield name, os.environ[name]
    for name in HIDDEN_SETTINGS:
        if name in os.environ:
            yield name, "is set"
