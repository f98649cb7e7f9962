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
    package = importlib.import_module(f"mmtune.{folder}")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    modules = {name: importlib.import_module(f"mmtune.{folder}.{name}") for name in names}
    for name, module in modules.items():
        section = getattr(module, "Section", None)
        if section is not None and get_args(section.model_fields["kind"].annotation) != (name,):
            raise RuntimeError(f"mmtune/{folder}/{name}.py: Section.kind must be Literal[{name!r}]")
    return modules


def kind(folder: str, section: Any) -> ModuleType:
    """The module that ``section.kind`` names."""
    return kinds(folder)[section.kind]


def section_union(folder: str) -> Any:
    """The tagged union of all sections of a folder, for a recipe field."""
    sections = tuple(module.Section for module in kinds(folder).values())
    if len(sections) == 1:
        return sections[0]
    return Annotated[Union[sections], Field(discriminator="kind")]  # noqa: UP007 - built at run time
