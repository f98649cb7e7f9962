"""The folder is the registry: ``losses/sigmoid.py`` is ``kind: sigmoid``.

A kind's file holds its recipe section, a ``Section`` whose ``kind`` is a ``Literal`` of the file's name, and its code.
Files that begin with ``_`` are shared by the kinds of a folder and are no kinds themselves.
"""

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Annotated, Any, Union, get_args

from pydantic import Field


@cache
def kinds(folder: str) -> dict[str, ModuleType]:
    """The kinds of a folder such as ``"losses"``: name -> module, sorted by name.

    Raises:
        RuntimeError: a file's ``Section.kind`` is not the file's name (a mistake of ours, found by the tests).
    """
    return {name: _module(folder, name) for name in _names(folder)}


def _names(folder: str) -> list[str]:
    package = importlib.import_module(f"mmtune.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def _module(folder: str, name: str) -> ModuleType:
    module = importlib.import_module(f"mmtune.{folder}.{name}")
    section = getattr(module, "Section", None)
    if section is not None and get_args(section.model_fields["kind"].annotation) != (name,):
        raise RuntimeError(f"mmtune/{folder}/{name}.py: Section.kind must be Literal[{name!r}]")
    return module


def kind(folder: str, section: Any) -> ModuleType:
    """The module that ``section.kind`` names."""
    return kinds(folder)[section.kind]


def section_union(folder: str, *, without: str = "") -> Any:
    """The tagged union of all sections of a folder, for a recipe field.

    Args:
        folder: such as ``"losses"``.
        without: a kind of that folder whose own section holds the union, and which does not hold itself.
    """
    sections = tuple(_module(folder, name).Section for name in _names(folder) if name != without)
    if len(sections) == 1:
        return sections[0]
    return Annotated[Union[sections], Field(discriminator="kind")]  # noqa: UP007 - built at run time
