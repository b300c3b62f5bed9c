"""Names that a package imports on first use: importing pydantic alone takes longer than everything else."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, cast


class LateModule:
    """A module that is slow to import: imported when one of its names is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._name), name)
        setattr(self, name, value)
        return value


def lazily(
    package: str,
    modules: Mapping[str, tuple[str, ...]],
    *,
    submodules: tuple[str, ...] = (),
    unlisted: tuple[str, ...] = (),
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package whose names come from its own `modules`.

    `__all__` contains these names, and those that the package has imported itself. `submodules` can be used after
    importing only the package. All public names of the submodules `unlisted` can also be imported from the package, but
    are not in `__all__`. stkai itself also has a `__version__`.
    """
    home = {name: module for module, names in modules.items() for name in names}
    here = [
        name
        for name, value in vars(sys.modules[package]).items()
        if not name.startswith("_") and not isinstance(value, ModuleType | bool)
    ]
    listed = sorted({*here, *home})

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name == "__version__" and package == __package__:
            return installed_version()
        if name in home:
            value = getattr(import_module(f"{package}.{home[name]}"), name)
        else:
            value = _unlisted(package, name, unlisted)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        dunders = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted([*listed, *submodules, *dunders])

    return get, names, listed


def _unlisted(package: str, name: str, modules: tuple[str, ...]) -> Any:
    if not name.startswith("_"):
        for module in (import_module(f"{package}.{module}") for module in modules):
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])


def installed_version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        return cast("str", metadata.version("stkai"))
    except ModuleNotFoundError:  # The package is on the path but not installed.
        return "unknown"
