"""``METHODS``: every method by name. No torch here.

Each family lists its own in ``<family>/methods.py`` as ``ENTRIES``.
"""

from __future__ import annotations

from importlib import import_module

from transformer_compression.core import Method
from transformer_compression.taxonomy import LEAVES

FAMILIES = ("quantize", "prune", "distill", "efficient", "others")


def _collect() -> dict[str, Method]:
    methods: dict[str, Method] = {}
    for family in FAMILIES:
        for entry in import_module(f"transformer_compression.{family}.methods").ENTRIES:
            if entry.name in methods:
                raise ValueError(f"two methods are called {entry.name!r}")
            if unknown := set(entry.leaves) - set(LEAVES):
                raise ValueError(f"{entry.name} names leaves that do not exist: {unknown}")
            methods[entry.name] = entry
    return methods


METHODS: dict[str, Method] = _collect()


def find_method(name: str) -> Method:
    """A method by name.

    Raises:
        ValueError: there is none; the nearest or all names are listed.
    """
    if name in METHODS:
        return METHODS[name]
    import difflib

    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}"
    raise ValueError(f"no method is called {name!r}; {hint}")
