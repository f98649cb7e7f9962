"""The cosine of every image with every text, also where an image has several vectors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cosines(image_embeds: "Tensor", text_embeds: "Tensor") -> "Tensor":
    """float[I, T] of L2-normalised ``image_embeds`` float[I, D] or float[I, Q, D] and ``text_embeds`` float[T, D].

    An image with Q vectors (BLIP-2's queries) is as near to a text as the nearest of them. A positive scale may be in
    the embeddings already.
    """
    products = image_embeds @ text_embeds.T
    return products if image_embeds.dim() == 2 else products.amax(dim=1)
