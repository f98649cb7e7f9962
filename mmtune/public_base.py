"""The backbone under its public name: what others can load it by, at which commit, and under which licence."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.backbones import Section
from mmtune.backbones._hub_files import BUILTIN, locate

CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(?:/|$)")
"""The folder that the hub's client keeps a repository in: its public name can be read from it."""

FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---\s*(?:\n|$)", re.DOTALL)
LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Base:
    """What the weights stand on.

    Attributes:
        id: public name, ``owner/name`` or ``builtin:NAME``; None where only a folder of this machine is known.
        revision: its commit on the hub.
        folder: where it lies here, if it is a folder.
        pair: public names of the two encoders that it was put together from.
        dtype: number format that it was trained in.
        quantize: 4bit or 8bit.
        trust_remote_code: whether it needs Python code of its repository.
    """

    id: str | None = None
    revision: str | None = None
    folder: Path | None = None
    pair: tuple[str, ...] = ()
    dtype: str = "float32"
    quantize: str | None = None
    trust_remote_code: bool = False

    @property
    def is_builtin(self) -> bool:
        """Whether it travels inside mmtune."""
        return bool(self.id and self.id.startswith(BUILTIN))

    @property
    def on_hub(self) -> tuple[str, ...]:
        """The repositories that it is."""
        return (self.id,) if self.id and not self.is_builtin else self.pair


def find_base(
    known: str, revision: str | None, base_model: str | None, started_in: Path, *, from_hub: bool = True
) -> Base:
    """The public name of a backbone: as the user gives it, as the recipe has it, or as the hub's cache folder says.

    Args:
        known: as the recipe or an adapter's configuration names it.
        revision: its commit, where it is known.
        base_model: its name on the hub, given by the user.
        started_in: the folder that a relative path means.
        from_hub: whether it may have come from there; a folder that is gone has a name like a repository's, too.
    """
    place = Path(known).expanduser()
    found = next((each.resolve() for each in (place, started_in / place) if each.is_dir()), None)
    if base_model is not None:
        return Base(base_model, None, found)
    if known.startswith(BUILTIN):
        return Base(known)
    if cached := CACHED.search(f"{place.absolute()}") or CACHED.search(f"{found or ''}"):
        return Base(f"{cached[1]}/{cached[2]}", cached[3], found)
    looks_local = not from_hub or known.startswith((".", "/", "~")) or known.count("/") > 1
    return Base(None, None, found) if found is not None or looks_local else Base(known, revision)


def base_of_merge(backbone: dict[str, Any], known: str | None, base_model: str | None, started_in: Path) -> Base:
    """The same for a merged folder.

    Args:
        backbone: the part of its report; a folder is named there by its last name alone.
        known: as the run's recipe names it, where the run is there.
        base_model: its name on the hub, given by the user.
        started_in: the folder that a relative path means.
    """
    name = str(backbone["id"])
    if base_model is None and backbone.get("commit") is not None:
        return Base(name, backbone["commit"])
    if name.startswith(BUILTIN):
        return Base(name)
    encoders = name.split(" + ")
    if base_model is None and len(encoders) == 2:
        public = [one for one, part in zip(encoders, ("vision", "text"), strict=True) if backbone.get(f"{part}_commit")]
        return Base(pair=tuple(public))
    if base_model is None and known is None:
        return Base()  # a folder somewhere, by its last name
    return find_base(known or name, None, base_model, started_in, from_hub=False)  # it would have a commit


def read_licence(base: Base, *, online: bool) -> dict[str, Any]:
    """The licence that the base's own card states; empty where there is no card or it states none.

    Args:
        base: of a folder its README.md is read; of a repository the cached one, or the hub's.
        online: whether the hub may be asked.
    """
    card = _base_card(base, online)
    if card is None:
        return {}
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    front = FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    try:
        data = YAML(typ="safe").load(front[1]) if front else {}
    except YAMLError:
        return {}
    stated = data if isinstance(data, dict) else {}
    return {key: stated[key] for key in LICENCE_KEYS if isinstance(stated.get(key), str) and stated[key]}


def _base_card(base: Base, online: bool) -> Path | None:
    import huggingface_hub
    from huggingface_hub import errors

    folder = locate(Section(id=base.id))[0] if base.is_builtin else base.folder
    if folder is not None and (folder / "README.md").is_file():
        return folder / "README.md"
    if base.id is None or base.is_builtin:
        return None
    cached = huggingface_hub.try_to_load_from_cache(base.id, "README.md", revision=base.revision)
    if isinstance(cached, str):
        return Path(cached)
    if not online:
        return None
    transport_error = getattr(errors, "HTTPError", errors.HfHubHTTPError)
    try:
        return Path(huggingface_hub.hf_hub_download(base.id, "README.md", revision=base.revision))
    except (errors.HfHubHTTPError, transport_error, errors.LocalEntryNotFoundError):
        return None  # no card, or none that we may read: the licence is then unknown, and said to be
