"""How one sees the keys of `backbone` at work that matter most for chat models."""

from key_effect import Effect, key
from key_worlds_chat import CHATTY, shown_large

EFFECTS: dict[str, Effect] = {
    "backbone.image": key(shown_large, "column", "", "backbone.image={max_pixels: 320}", more=(CHATTY,)),
    "backbone.attention": key(shown_large, "column", "", "backbone.attention=eager", more=(CHATTY,)),
}
