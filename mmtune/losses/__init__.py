"""Floor 1, losses: one file per kind, the folder is the registry.

A loss is a module with a ``Section`` and one function on tensors; losses know no models::

    loss(image_embeds, text_embeds, positives, log_scale, bias) -> float[]

    image_embeds: float[B, D]   L2-normalised; float[B, Q, D] where an image has several vectors: the nearest counts
    text_embeds:  float[B, D]   L2-normalised
    positives:    bool[B, B]    entry (i, j): text j describes image i; the diagonal is true
    log_scale:    float[]       natural logarithm of the inverse temperature
    bias:         float[]       added to the logits, or None where the backbone has none
"""
