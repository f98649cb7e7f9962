"""How one sees each key of `adapter` at work."""

from key_effect import Effect, key
from key_worlds import adapted

EFFECTS: dict[str, Effect] = {
    "adapter.kind:full": key(adapted, "full", "", "adapter.kind=head_only"),
    "adapter.kind:head_only": key(adapted, "head_only", "", "adapter.kind=full"),
    "adapter.kind:lora": key(
        adapted, "column", "adapter={kind: lora, parts: [text]}", "adapter={kind: full, parts: [text]}"
    ),
    "adapter.parts:full": key(adapted, "full", "", "adapter.parts=[text]"),
    "adapter.parts:head_only": key(adapted, "head_only", "", "adapter.parts=[text]"),
    "adapter.parts:lora": key(adapted, "column", "", "adapter.parts=[text]"),
    "adapter.temperature:full": key(adapted, "full", "", "adapter.temperature=false"),
    "adapter.temperature:head_only": key(adapted, "head_only", "", "adapter.temperature=false"),
    "adapter.temperature:lora": key(adapted, "column", "", "adapter.temperature=false"),
    "adapter.layers:lora": key(adapted, "column", "", "adapter.layers=last 1"),
    "adapter.rank:lora": key(adapted, "column", "", "adapter.rank=4"),
    "adapter.alpha:lora": key(adapted, "column", "", "adapter.alpha=3"),
    "adapter.dropout:lora": key(adapted, "column", "", "adapter.dropout=0.1"),
    "adapter.targets:lora": key(adapted, "column", "", "adapter.targets=[mlp]"),
    "adapter.use_rslora:lora": key(adapted, "column", "", "adapter.use_rslora=true"),
    "adapter.use_dora:lora": key(adapted, "column", "", "adapter.use_dora=true"),
    "adapter.init:lora": key(adapted, "column", "", "adapter.init=gaussian"),
    "adapter.lora_plus_ratio:lora": key(adapted, "column", "", "adapter.lora_plus_ratio=16"),
}
