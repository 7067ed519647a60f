"""``transformer-compression list``: the taxonomy and what is implemented of it. No torch here."""

from __future__ import annotations

from transformer_compression.config import ListConfig
from transformer_compression.methods import METHODS
from transformer_compression.taxonomy import LEAVES


def listing(family: str = "") -> str:
    """Every leaf with its methods; a leaf that has none says so.

    Raises:
        ValueError: there is no such family.
    """
    families = list(dict.fromkeys(leaf.family for leaf in LEAVES.values()))
    if family and family not in families:
        raise ValueError(f"no family is called {family!r}; known: {', '.join(families)}")
    lines = []
    for name in families:
        if family not in ("", name):
            continue
        lines.append(name)
        for key, leaf in LEAVES.items():
            if leaf.family != name:
                continue
            lines.append(f"  {leaf.title}  (survey: {leaf.named})")
            methods = [m for m in METHODS.values() if key in m.leaves]
            for method in methods:
                options = ", ".join(f"{k}={v}" for k, v in method.options.items())
                lines.append(
                    f"    {method.name}: {method.title}" + (f" [{options}]" if options else "")
                )
            if not methods:
                lines.append("    none implemented")
    return "\n".join(lines)


def main(config: ListConfig) -> int:
    """Print the taxonomy."""
    print(listing(config.family))
    return 0
