"""Looks at what the keys of a chat backbone change."""

from typing import Any

from key_worlds import World

from mmtune.recipe_schema import Recipe

CHATTY = "backbone.id=FOLDER/chatty"


def shown_large(world: World, recipe: Recipe) -> Any:
    """How many tokens a large picture takes, and what computes attention."""
    from PIL import Image

    from mmtune.backbones import load, tiny_folder
    from mmtune.ground.records import NoMedia, Turn

    if not (world.folder / "chatty").is_dir():
        tiny_folder("chat", world.folder / "chatty", model_type="qwen2_5_vl")
    backbone = load(recipe.backbone)
    turns = (Turn("user", (NoMedia("image", "here"), "What is it?")),)
    encoded = backbone.family.encode_prompt(backbone.processor, turns, [Image.new("RGB", (80, 60))])
    return int(
        backbone.family.image_tokens(backbone.processor, encoded).sum()
    ), backbone.model.config._attn_implementation
