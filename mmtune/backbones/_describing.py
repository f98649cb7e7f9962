"""Describe a backbone from config.json alone: where it lies, at which commit, and which family answers for it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmtune.backbones import _hub_files as hub
from mmtune.backbones._family import Description, Place, Section
from mmtune.backbones._image_limits import limit_problem
from mmtune.backbones._unknown_family import unknown_family
from mmtune.ground.errors import BackboneError
from mmtune.ground.kind_folder import kinds


def describe(section: Section, *, ability: str | Sequence[str] = "") -> Description:
    """Read config.json (of a hub backbone, that one file is fetched); no torch, no transformers, no weights.

    Args:
        section: which backbone.
        ability: what the task uses of it, on which it may depend what is idle and so never trained; of several the
            first that the family has (a task's ``ABILITIES``).

    Raises:
        BackboneError: the backbone cannot be found or read, or no family answers for its model type.
    """
    encoders = _encoders(section) if section.id is None else {}
    place = _pair(section, encoders) if encoders else _place(section)
    config, name = place.config, section.name
    model_type = config.get("model_type")
    families = kinds("backbones")
    found = (one for one in families.values() if model_type in (*one.FAMILY.model_types, *one.FAMILY.other_types))
    family = next(found, None)
    if family is None:
        message = unknown_family(model_type, [one.FAMILY for one in families.values()])
        raise BackboneError(f"backbone {name!r}: {message}")
    if section.family not in (None, family.FAMILY.name, model_type):
        raise BackboneError(
            f"backbone {name!r}: the recipe says family {section.family!r}, but model_type {model_type!r} of its "
            f"config.json belongs to family {family.FAMILY.name!r}"
        )
    try:
        depth = family.num_layers(config)
        description = Description(place.id, place.folder, place.commit, config, section, family, depth, encoders)
        wanted = (ability,) if isinstance(ability, str) else ability
        used = next((one for one in wanted if one in description.traits.abilities), "")
        description = replace(description, ability=used)
        why_not = description.traits.unquantizable.get(section.quantize or "")
        if problem := limit_problem(section.image, description.traits):
            raise BackboneError(problem)
    except BackboneError as error:
        raise BackboneError(f"backbone {name!r}: {error}") from error
    if why_not:
        raise BackboneError(f"backbone {name!r}: quantize: {section.quantize} does not work: {why_not}")
    return description


def _place(section: Section) -> Place:
    folder, commit = hub.locate(section)
    config = hub.read_config(folder, section.name)
    _refuse_config(section, config)
    return Place(section.name, folder, commit, config, section)


def _encoders(section: Section) -> dict[str, Place]:
    """Both encoders of a pair, at their commits.

    Raises:
        BackboneError: one or both cannot be found or read; both are named.
    """
    found, problems = {}, []
    for part in ("vision", "text"):
        try:
            found[part] = _place(section.encoder(part))
        except BackboneError as error:
            problems.append(error)
    if problems:
        merely_far = all(isinstance(error, hub.UnreachableError) for error in problems)
        kind = hub.UnreachableError if merely_far else BackboneError
        raise kind("\n".join(map(str, problems))) from problems[0]
    return found


def _pair(section: Section, encoders: dict[str, Place]) -> Place:
    """The model that two encoders become, as if it lay beside the first of them.

    Raises:
        BackboneError: one of them is no such encoder.
    """
    from mmtune.backbones import _encoder_pair

    try:
        config = _encoder_pair.config_of(encoders, section.projection_dim)
    except BackboneError as error:
        raise BackboneError(f"backbone {section.name!r}: {error}") from error
    return Place(section.name, encoders["vision"].folder, None, config, section)


def pinned(description: Description) -> Section:
    """The section with the commits that were found as its revisions: loading it again gives the same files."""
    return at_commits(description.section, description.commits)


def at_commits(section: Section, recorded: Mapping[str, Any]) -> Section:
    """The section at the commits that a manifest recorded (``Description.commits``): a branch may have moved since."""
    commits = {key.replace("commit", "revision"): value for key, value in recorded.items() if key.endswith("commit")}
    found = {key: commit for key, commit in commits.items() if commit is not None}
    return section.model_copy(update=found) if found else section


def _refuse_config(section: Section, config: dict[str, Any]) -> None:
    if "quantization_config" in config:
        raise BackboneError(
            f"backbone {section.name!r} is stored quantized: give the full-precision repository it was made from "
            f"and backbone.quantize"
        )
    foreign = sorted(ref for ref in (config.get("auto_map") or {}).values() if "--" in str(ref))
    if section.trust_remote_code and foreign:
        raise BackboneError(
            f"backbone {section.name!r} takes its code from another repository, which its commit does not pin: "
            f"{', '.join(foreign)}"
        )
