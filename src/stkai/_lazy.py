"""Names that a package imports on first use: importing pydantic alone takes longer than everything else."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ._gone import refuse


def lazily(
    package: str,
    modules: Mapping[str, tuple[str, ...]],
    *,
    submodules: tuple[str, ...] = (),
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package whose names come from its own `modules`.

    `submodules` can be used after importing just the package. It has a `__version__` as well.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name == "__version__":
            return _version()
        module = home.get(name)
        if module is None:
            refuse(package, name)
        value = getattr(import_module(f"{package}.{module}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        found = vars(sys.modules[package])
        return sorted({*found["__all__"], "__version__", *(name for name in found if name.startswith("__"))})

    return get, names


def import_whole(name: str) -> Any:
    """Import a package completely or not at all.

    If Ctrl-C interrupts an import, Python keeps the completed submodules, and does not set them as attributes when the
    package is imported again, which would leave it broken for the life of the process.
    """
    try:
        return import_module(name)
    except BaseException:
        if name not in sys.modules:  # Otherwise another thread has started over.
            for module in [module for module in sys.modules if module.startswith(f"{name}.")]:
                sys.modules.pop(module, None)
        raise


def _version() -> str:
    metadata = import_module("importlib.metadata")
    try:
        version: str = metadata.version("stkai")
    except ModuleNotFoundError:  # It is on the path but not installed.
        return "unknown"
    return version
