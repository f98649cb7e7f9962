"""How one sees `adapter.start_from` at work, for every kind, and the keys of `layernorm` and `trainable_tokens`."""

from key_effect import Effect
from key_worlds_start import begun

from mmtune.ground.kind_folder import kinds

NEEDED = {
    "trainable_tokens": {"tokens": "[e, 9]"},
    "peft": {"config": "{peft_type: LORA, r: 2}"},
    "miss": {"rank": "2"},
}
"""Keys without a default, or with one that a tiny twin is too narrow for."""


def section_of(name: str, **changes: str) -> str:
    """An override that sets the whole section, for the text tower."""
    keys = {"kind": name, "parts": "[text]", **NEEDED.get(name, {}), **changes}
    return "adapter={" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}"


def started(kind: str) -> Effect:
    section = section_of(kind)
    return Effect(begun, "column", [section], [section, f"adapter.start_from=FOLDER/earlier_{kind}"])


def changed(name: str, **changes: str) -> Effect:
    return Effect(begun, "column", [section_of(name)], [section_of(name, **changes)])


EFFECTS: dict[str, Effect] = {
    **{f"adapter.start_from:{kind}": started(kind) for kind in kinds("adapters")},
    "adapter.kind:layernorm": changed("layernorm", kind="full"),
    "adapter.parts:layernorm": changed("layernorm", parts="[vision]"),
    "adapter.temperature:layernorm": changed("layernorm", temperature="false"),
    "adapter.layers:layernorm": changed("layernorm", layers="last 1"),
    "adapter.kind:trainable_tokens": Effect(begun, "column", [section_of("trainable_tokens")], [section_of("full")]),
    "adapter.parts:trainable_tokens": changed("trainable_tokens", parts="[vision]"),
    "adapter.temperature:trainable_tokens": changed("trainable_tokens", temperature="false"),
    "adapter.tokens:trainable_tokens": changed("trainable_tokens", tokens="[e]"),
}
