"""What peft's methods cannot do here, with the reason and what works instead. Every row was found by trying it.

The names are peft's: ``peft_type`` of its configs, fields of its configs, values of ``init_lora_weights``.
"""

PACKED = "it reads the shape of the weights, and 4-bit weights lie packed in one column"
RAW = "it computes with the stored integers as if they were the weights"
IN_PLACE = "it adds to the layer's output in place, through which no gradient can pass"
NO_GRADIENT = "it gets no gradient there"

QUANTIZED: dict[str, dict[str, str]] = {
    "C3A": {"4bit": IN_PLACE, "8bit": IN_PLACE},
    "DEFT": {"4bit": PACKED, "8bit": RAW},
    "DELORA": {"4bit": RAW, "8bit": RAW},
    "FROD": {"4bit": RAW, "8bit": RAW},
    "GRALORA": {"4bit": IN_PLACE, "8bit": IN_PLACE},
    "HRA": {"4bit": PACKED, "8bit": RAW},
    "LOHA": {"4bit": PACKED},
    "LOKR": {"4bit": PACKED},
    "PEANUT": {"4bit": PACKED, "8bit": RAW},
    "SUPERTUNING": {"4bit": RAW, "8bit": RAW},
    "UNILORA": {"4bit": NO_GRADIENT, "8bit": NO_GRADIENT},
}
"""peft type -> quantization -> why the method does not adapt such layers."""

ON_QUANTIZED = "lora, ia3, vera, oft, hira, randlora, fourierft, miss"
"""Kinds that adapt 4-bit and 8-bit layers."""

NO_PROMPTS = "it puts trained vectors before the tokens of a language model, and these towers take none"
NEW_SVD = (
    "it splits the weights by a singular value decomposition that is computed anew at every loading, and whose signs "
    "another machine may choose otherwise: the reloaded adapter would be another model"
)

REFUSED_TYPES: dict[str, str] = {
    "ADAMSS": NEW_SVD,
    "ADAPTION_PROMPT": NO_PROMPTS,
    "BEFT": "it trains the biases of the layers, and its merged biases cannot be told from the backbone's; "
    "use kind: lora",
    "GLORA": "parts of it never get a gradient, and it moves biases that were not chosen; use kind: lora",
    "IA3": "its feedforward_modules are names of layers, which kind: ia3 finds; use that",
    "LILY": "peft cannot merge it; use kind: lora",
    "LN_TUNING": "it trains norms, and targets are linear layers; use kind: layernorm",
    "OSF": NEW_SVD,
    "POLY": "it needs the number of a task with every batch; use kind: lora",
    "PSOFT": NEW_SVD,
    "SHADOW": "it copies a language model's layers, and these towers are none",
    "TINYLORA": NEW_SVD,
    "TRAINABLE_TOKENS": "it trains embeddings of tokens, and targets are linear layers; use kind: trainable_tokens",
    "XLORA": "it mixes adapters that were trained before; use kind: lora",
}
"""peft type -> why the generic kind does not take it. Prompt learning is refused as a whole."""

CHOSEN = "parts, targets and layers of this section choose the layers; delete it"
OURS = "it is written here, from the recipe; delete it"
OUTSIDE = "it changes more of the model than the chosen layers; delete it"
UNTRIED = "no task here gives it what it needs; delete it"

REFUSED_FIELDS: dict[str, str] = {
    "generator_seed": "a generator of its own would not go on where a resumed run left off; delete it",
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"), CHOSEN
    ),
    **dict.fromkeys(
        ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "progressbar", "revision"), OURS
    ),
    **dict.fromkeys(
        ("save_indices", "save_only_topk_weights", "save_precomputed_indices", "save_projection", "task_type"), OURS
    ),
    **dict.fromkeys(
        (
            *("modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication"),
            *("ensure_weight_tying", "megatron_config", "megatron_core", "runtime_offload_base_weight"),
        ),
        OUTSIDE,
    ),
    **dict.fromkeys(
        (
            *("alora_invocation_tokens", "arrow_config", "corda_config", "eva_config", "kasa_config", "loftq_config"),
            *("lora_ga_config", "monteclora_config", "qalora_group_size", "runtime_config", "sample_at_inference"),
            *("use_bdlora", "use_effective_conv2d", "use_qalora", "velora_config"),
        ),
        UNTRIED,
    ),
}
"""Fields of peft's configs that the generic kind does not take, with the reason."""

DEAD_FIELDS = {("OFT", "module_dropout")}
"""Fields of a method's config that peft itself reads nowhere."""


def quantized_problem(peft_type: str, quantize: str | None) -> str | None:
    """Why a method does not adapt layers held in ``quantize``, and what does; None where it does."""
    reason = QUANTIZED.get(peft_type, {}).get(quantize or "")
    if reason is None:
        return None
    other = "8bit" if quantize == "4bit" else "4bit"
    instead = "null" if other in QUANTIZED[peft_type] else f"null or {other}"
    return (
        f"{peft_type.lower()} does not work on {quantize} layers: {reason}; "
        f"write backbone.quantize: {instead}, or a kind that does ({ON_QUANTIZED})"
    )
