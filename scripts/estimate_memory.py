"""Estimate the bytes of every shipped recipe's weights, from a config.json of the real size and without weights.

    python scripts/estimate_memory.py                    # every recipe whose task ends in answers
    python scripts/estimate_memory.py recipes/x.yaml     # these

Prints a line per recipe in the form of its `# Needs:` comment: what the backbone takes as the recipe holds it, and
what training the recipe's adapter adds (its weights, their gradients, the optimizer's averages). Activations come on
top. The sizes come from a real config.json in the shared data, from the defaults of transformers' class where they are
those of the published model, or from a paper; of a model for which none of these is at hand it says "not known here".
"""

import json
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from mmtune.part_sizes import chosen_setting, empty_model, in_words, part_sizes, trained_sizes  # noqa: E402
from mmtune.recipe_schema import Recipe, load_recipe  # noqa: E402

ARCHIVE = ROOT.parent / "shared" / "data" / "hub_configs.tar"
"""Real config.json files, beside the project; nothing of it is in here."""

IN_ARCHIVE = {
    "Salesforce/blip-image-captioning-base": "blip-image-captioning-base",
    "llava-hf/llava-1.5-7b-hf": "llava-1.5-7b-hf",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2.5-vl-3b-instruct",
}
"""Hub id -> name of its file in the archive."""


def _default(name: str, architecture: str, **changes: Any) -> Callable[[], dict[str, Any]]:
    """A class's default config, with changes."""

    def made() -> dict[str, Any]:
        import transformers

        config: dict[str, Any] = getattr(transformers, name)(**changes).to_dict()
        return {**config, "architectures": [architecture]}

    return made


def _blip2_opt() -> dict[str, Any]:
    """Source: OPT 2.7B, arXiv:2205.01068, table 1; the rest is the class's default."""
    import transformers

    text = transformers.OPTConfig(
        num_hidden_layers=32, hidden_size=2560, ffn_dim=10240, num_attention_heads=32, word_embed_proj_dim=2560
    )
    config = transformers.Blip2Config(text_config=text.to_dict(), image_token_index=1).to_dict()
    return {**config, "architectures": ["Blip2ForConditionalGeneration"]}


def _instructblip_llama() -> dict[str, Any]:
    """Vicuna 7B has LLaMA's sizes, which are the defaults of its class."""
    import transformers

    text = transformers.LlamaConfig().to_dict()
    config = transformers.InstructBlipConfig(text_config=text, image_token_index=1).to_dict()
    return {**config, "architectures": ["InstructBlipForConditionalGeneration"]}


def _florence2_base() -> dict[str, Any]:
    """Source: arXiv:2311.06242, DaViT-B with 6 + 6 layers of width 768; its total of 0.23 B is what comes out."""
    text = {"model_type": "bart", "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 51289}
    text |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
    text |= {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    more = {"text_config": text, "vision_config": {"projection_dim": 768}}
    return _default("Florence2Config", "Florence2ForConditionalGeneration", **more)()


def _gemma3() -> dict[str, Any]:
    """Source: Gemma 3 technical report, arXiv:2503.19786, and SigLIP So400m at 896 pixels."""
    import transformers

    text = {"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240, "vocab_size": 262208}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
    tower = {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304, "num_attention_heads": 16}
    vision = {**tower, "image_size": 896, "patch_size": 14}
    config = transformers.Gemma3Config(text_config={**text, **heads}, vision_config=vision).to_dict()
    return {**config, "architectures": ["Gemma3ForConditionalGeneration"]}


def _internvl3() -> dict[str, Any]:
    """Source: InternViT-300M-448 with Qwen2.5 1.5B, arXiv:2504.10479, table 1 and arXiv:2412.15115, table 1."""
    import transformers

    text = {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "intermediate_size": 8960}
    text |= {"num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151674}
    tower = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16}
    own_head = {"tie_word_embeddings": False}  # else it would have 1.9 B weights, and it has 2.1 B
    config = transformers.InternVLConfig(text_config={**text, **own_head}, vision_config=tower, **own_head).to_dict()
    return {**config, "architectures": ["InternVLForConditionalGeneration"]}


def _qwen3_vl() -> dict[str, Any]:
    """Source: Qwen3 4B, arXiv:2505.09388, table 1, with Qwen3-VL's 0.4 B image tower, arXiv:2511.21631."""
    import transformers

    text = {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "vocab_size": 151936}
    text |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
    tower = {"hidden_size": 1024, "depth": 24, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560}
    vision = {**tower, "deepstack_visual_indexes": [5, 11, 17]}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True).to_dict()
    return {**config, "architectures": ["Qwen3VLForConditionalGeneration"]}


def _smolvlm2() -> dict[str, Any]:
    """Source: SmolLM2 360M with SigLIP base at 512 pixels, arXiv:2504.05299, section 2."""
    import transformers

    text = {"model_type": "llama", "hidden_size": 960, "num_hidden_layers": 32, "intermediate_size": 2560}
    text |= {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    tower = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {**tower, "image_size": 512, "patch_size": 16}
    config = transformers.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4).to_dict()
    return {**config, "architectures": ["SmolVLMForConditionalGeneration"]}


KNOWN: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "Salesforce/blip-vqa-base": ("the class's default", _default("BlipConfig", "BlipForQuestionAnswering")),
    "Salesforce/blip-itm-base-coco": ("the class's default", _default("BlipConfig", "BlipForImageTextRetrieval")),
    "dandelin/vilt-b32-finetuned-vqa": (
        "the class's default with VQAv2's 3,129 answers",
        _default("ViltConfig", "ViltForQuestionAnswering", num_labels=3129),
    ),
    "microsoft/git-base-coco": ("the class's default", _default("GitConfig", "GitForCausalLM")),
    "google/paligemma-3b-pt-224": (
        "the class's default",
        _default("PaliGemmaConfig", "PaliGemmaForConditionalGeneration"),
    ),
    "Salesforce/blip2-opt-2.7b": ("the class's default with the OPT paper's sizes", _blip2_opt),
    "florence-community/Florence-2-base": ("the paper's sizes", _florence2_base),
    "google/gemma-3-4b-it": ("the technical report's sizes", _gemma3),
    "OpenGVLab/InternVL3-2B-hf": ("the papers' sizes", _internvl3),
    "Qwen/Qwen3-VL-4B-Instruct": ("the technical report's sizes", _qwen3_vl),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": ("the paper's sizes", _smolvlm2),
    "Salesforce/instructblip-vicuna-7b": ("the class's default with LLaMA 7B's", _instructblip_llama),
}
"""Hub id -> where its sizes come from, and its config."""


def config_of(name: str) -> tuple[str, Mapping[str, Any]] | None:
    """Where a backbone's sizes come from, and its config.json; None where they are not known here."""
    if name in KNOWN:
        source, made = KNOWN[name]
        return source, made()
    if name not in IN_ARCHIVE or not ARCHIVE.is_file():
        return None
    with tarfile.open(ARCHIVE) as archive:
        stored = archive.extractfile(f"hub_configs/{IN_ARCHIVE[name]}.config.json")
        assert stored is not None
        return "its config.json", json.loads(stored.read())


def estimate(recipe: Recipe, config: Mapping[str, Any], folder: Path) -> str:
    """What stands after ``# Needs:``."""
    from mmtune.adapters import attach
    from mmtune.backbones import Backbone, describe
    from mmtune.tasks import abilities_of

    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    elsewhere = {"id": str(folder), "family": None, "revision": None}
    section = recipe.backbone.model_copy(update=elsewhere)
    description = describe(section, ability=abilities_of(recipe.task))
    model = empty_model(description)
    sizes, setting = part_sizes(model, description), chosen_setting(section)
    weights = sum(size.num_weights for size in sizes)
    held = in_words(sum(size.num_bytes[setting] for size in sizes))
    backbone = Backbone(model, None, description.family, description, "", section)
    added = trained_sizes(attach(backbone, recipe.adapter, to_restore=True), recipe.train.optimizer)
    training = in_words(sum(one.total for one in added))
    precision = {"4bit": "4 bit", "8bit": "8 bit"}.get(setting, setting)
    rest = f", the rest of it in {section.dtype}" if section.quantize else ""
    return (
        f"an estimate, not run: {_in_billions(weights)} B weights are {held} in {precision}{rest}; training the "
        f"{recipe.adapter.kind} adapter adds {training}, activations come on top."
    )


def _in_billions(weights: int) -> str:
    return f"{weights / 1e9:.1f}" if weights >= 1e9 else f"{weights / 1e9:.2f}"


def main(arguments: list[str]) -> int:
    """Print the lines."""
    for path in map(Path, arguments or sorted(map(str, (ROOT / "recipes").glob("*.yaml")))):
        recipe = load_recipe(path)
        name = recipe.backbone.name
        if not arguments and (recipe.task.kind == "retrieval" or name.startswith("builtin:")):
            continue
        found = config_of(name)
        if found is None:
            print(f"{path.name}: not known here ({name})")
            continue
        source, config = found
        with tempfile.TemporaryDirectory() as folder:
            print(f"{path.name} ({source}):\n# Needs: {estimate(recipe, config, Path(folder))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
