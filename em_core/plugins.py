"""One way to add a thing: a decorated function in a registry's folder, or the same behind an entry point."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from em_core.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named plugins of one kind.

    Args:
        kind: what one entry is, for messages ("optimiser", "prompt set").
        group: entry-point group, e.g. "em_train.optimisers".
        package: package whose modules register the built-ins; by default the one named like the group.
    """

    def __init__(self, kind: str, group: str, package: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self.package = package or group
        self._entries: dict[str, T] = {}
        self._loaded = False
        self._broken: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make `name` reachable. A second owner of a name is an error, never a silent override."""

        def add(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise UserError(f"two plugins are called {self.kind} '{name}': rename one of them")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> list[str]:
        self._load()
        return sorted(self._entries)

    def get(self, name: str) -> T:
        """The plugin called `name`.

        Raises:
            UserError: no such plugin; the message lists the nearest names, or all of them.
        """
        self._load()
        if name in self._broken:
            raise UserError(f"{self.kind} plugin '{name}': {self._broken[name]}: mend or remove it")
        if name not in self._entries:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(self.names())}"
            raise UserError(f"unknown {self.kind} '{name}': {hint}")
        return self._entries[name]

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            try:
                entry = point.load()
            except UserError:  # a second owner of a name
                raise
            except Exception as error:  # what other people's modules raise; it must not take the others with it
                reason = " ".join(str(error).split())
                self._broken[point.name] = f"{point.value} cannot be loaded ({type(error).__name__}: {reason})"
                continue
            self.register(point.name)(entry)
        self._loaded = True
