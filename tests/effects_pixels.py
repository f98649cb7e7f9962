"""How one sees at work what makes pixels of images."""

from key_effect import Effect, key
from key_worlds import World

from mmtune.recipe_schema import Recipe


def pixels_of_a_large_picture(world: World, recipe: Recipe) -> str:
    """What the backbone of the recipe reads of a picture that is made much smaller."""
    import numpy as np
    from PIL import Image

    from mmtune.backbones import load

    backbone = load(recipe.backbone)
    grains = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    encoded = backbone.family.encode_media(backbone.processor, Image.fromarray(grains))
    return str(encoded["pixel_values"].double().sum().item())


EFFECTS: dict[str, Effect] = {
    "backbone.image_processing": key(pixels_of_a_large_picture, "column", "", "backbone.image_processing=fast"),
}
