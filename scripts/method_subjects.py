"""What the method table tries adapters on: tiny twins by family, model type, class and what a task uses of them.

Families that embed are columns of the first table, under their own names. What generates, matches or classifies has a
line of the second table each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.kind_folder import kinds

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.backbones import Backbone

ANSWER_ROWS = ("lora", "lora, use_dora", "ia3", "layernorm", "head_only", "full")
"""Rows that are tried on what answers: the adapters that are promised for every family, and plain training."""


@dataclass(frozen=True)
class Subject:
    """One thing to adapt.

    Attributes:
        name: what the table calls it.
        family: the family's name.
        model_type, architecture: which of the family's; None: its first.
        ability: what a task uses of it; "" to embed.
        language: kind of language model, for families that have several.
    """

    name: str
    family: str
    model_type: str | None = None
    architecture: str | None = None
    ability: str = ""
    language: str | None = None

    def write(self, folder: Path) -> Path:
        """The tiny twin as an ordinary model folder."""
        from mmtune.backbones import tiny_folder
        from mmtune.backbones._quiet_loading import quiet

        if self.language is None:
            return tiny_folder(self.family, folder, model_type=self.model_type, architecture=self.architecture)
        with quiet():
            for each in kinds("backbones")[self.family].tiny_speaking(self.language):
                each.save_pretrained(folder)
        return folder


def _speaking(name: str, family: str, **more: Any) -> Subject:
    return Subject(name, family, ability="generate", **more)


ANSWERING = {
    one.name: one
    for one in (
        _speaking("blip captioning", "blip", architecture="BlipForConditionalGeneration"),
        _speaking("blip vqa", "blip", architecture="BlipForQuestionAnswering"),
        Subject("blip matching", "blip", architecture="BlipForImageTextRetrieval", ability="match"),
        Subject("vilt vqa", "vilt", architecture="ViltForQuestionAnswering", ability="classify"),
        Subject("vilt matching", "vilt", architecture="ViltForImageAndTextRetrieval", ability="match"),
        _speaking("git", "git"),
        _speaking("blip2 (OPT)", "blip2", language="opt"),
        _speaking("blip2 (T5)", "blip2", language="t5"),
        Subject("blip2 matching", "blip2", architecture="Blip2ForImageTextRetrieval", ability="match"),
        _speaking("instructblip (LLaMA)", "instructblip", language="llama"),
        _speaking("instructblip (T5)", "instructblip", language="t5"),
        *(_speaking(name, "chat", model_type=name) for name in kinds("backbones")["chat"].FAMILY.model_types),
    )
}
"""Name -> what generates, matches or classifies."""


def embedding_families() -> list[str]:
    """Every backbone family that embeds, by name."""
    return sorted(name for name, module in kinds("backbones").items() if "embed" in module.FAMILY.abilities)


def subject(name: str) -> Subject:
    """What a name of the table stands for: one that answers, or a family that embeds."""
    return ANSWERING.get(name, Subject(name, name))


def loss_of(backbone: "Backbone", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """A loss in which every part takes part that the task uses: of label tokens, matches, answers, or contrastive."""
    import torch

    from mmtune.additive_step import OBJECTIVES
    from mmtune.item_encoding import ANSWER_SCORES, IS_MATCH
    from mmtune.merge_proof import ability_of

    ability = ability_of(backbone)
    if ability == "embed":
        return _contrastive(backbone, inputs)
    targets = {}
    if ability == "match":
        targets[IS_MATCH] = torch.arange(len(inputs["input_ids"])) % 2
    if ability == "classify":
        config: Any = backbone.model.config
        number = len(backbone.family.answers_of(config))
        targets[ANSWER_SCORES] = torch.eye(number)[torch.arange(len(inputs["input_ids"])) % number]
    total, given = OBJECTIVES[ability], {**inputs, **targets}
    return total.total(backbone, given) / total.count(backbone.traits, given)


def _contrastive(backbone: "Backbone", inputs: "Mapping[str, Tensor]") -> "Tensor":
    """Both towers, the temperature and its bias take part."""
    import torch

    from mmtune.losses._cosines import cosines

    image = backbone.family.embed_media(backbone.model, inputs)
    text = backbone.family.embed_text(backbone.model, inputs)
    scale, bias = backbone.family.temperature(backbone.model)
    logits = cosines(image, text) * scale.exp() + (0 if bias is None else bias)
    return torch.nn.functional.softplus(-logits * (2 * torch.eye(len(logits)) - 1)).mean()
