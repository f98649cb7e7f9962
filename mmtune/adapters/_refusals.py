"""Words that peft knows and that would not do here what they say: each with its reason and what to write instead."""

INSTEAD = "write default, or pissa for a start from the weights"

METHODS = {
    "adalora": (
        "moves ranks between layers by scores that peft keeps outside the saved adapter, and its penalty is only in "
        "the loss that a model computes itself, which no task here uses: a run would neither resume exactly nor be "
        "AdaLoRA; write kind lora with a rank per part"
    ),
}
"""peft's methods (``peft_type`` in lower case) that are no kind, and are refused inside a config."""

STARTS = {
    "eva": (
        "is computed from the layers' inputs on your data before training, which nothing here collects; without them "
        f"peft starts like plain LoRA in silence; {INSTEAD}"
    ),
    "lora_ga": (
        "is computed from gradients on your data before training, which nothing here collects; without them peft "
        f"starts like plain LoRA in silence; {INSTEAD}"
    ),
    "corda": (
        "is computed from the covariance of the layers' inputs on your data, which nothing here collects, and it "
        f"changes the base weights; {INSTEAD}"
    ),
    "loftq": (
        "replaces the base weights by its own quantized ones, so that the adapter would fit no backbone that a recipe "
        "can name; write pissa with backbone.quantize: 4bit, or default"
    ),
}
"""Values of LoRA's ``init_lora_weights`` that are refused as ``init``, and inside a config."""


def refusal(word: object) -> str | None:
    """Why a method or a start of peft is refused here, None where it is not; case and ``-`` for ``_`` are free.

    >>> refusal("EVA")[:25]
    'eva is computed from the '
    """
    name = str(word).lower().replace("-", "_")
    reason = METHODS.get(name) or STARTS.get(name)
    return f"{name} {reason}" if reason else None
