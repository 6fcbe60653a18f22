"""What costs nothing where it is not used: names that a module loads at their first use, and something done just before
or just after a library is imported, whoever imports it and whenever.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Hook = Callable[[ModuleType], None]


def on_import(name: str, *, before: Hook | None = None, after: Hook | None = None) -> None:
    """Calls `before` or `after` with the module `name`, not yet executed or just executed; at once, and `after` only,
    where it is imported already. A second call for the same name changes nothing."""
    if name in sys.modules:
        if after is not None:
            after(sys.modules[name])
    elif not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, before, after))


def loaded_at_first_use(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose names, in `places` with the module that has each, are loaded when they are
    asked for."""

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(import_module(places[name]), name)
        setattr(sys.modules[module], name, value)
        return value

    return get


class _Finder(MetaPathFinder):
    def __init__(self, name: str, before: Hook | None, after: Hook | None) -> None:
        self.name, self.before, self.after = name, before, after

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == self.name else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_between(module: ModuleType) -> None:
            if self.before is not None:
                self.before(module)
            execute(module)
            if self.after is not None:
                self.after(module)

        spec.loader.exec_module = execute_between  # type: ignore[method-assign]  # of this one loader, and for one import
        return spec
