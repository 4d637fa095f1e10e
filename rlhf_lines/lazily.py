"""Names that a package shows and imports only when they are asked for, so that its light modules can be had alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def exports(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` of a package that shows names of its modules; a name must not be that of a module below it.

    >>> exports("rlhf_lines", {"json": ["dumps"]})("dumps")(None)
    'null'

    Args:
        package: its name.
        modules: full name of a module to the names in it.
    """
    places = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(places[name]), name)

    return find
