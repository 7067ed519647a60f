"""What a paper's ``reproduce.py`` is written in: recipes that compute rows, claims over them.

    TABLES = {
        "table1": Table(
            recipes={"resnet20_adabin": Recipe(evaluate, seconds=60, scale="exact",
                                               assets=("cifar10_test", "adabin_resnet20"))},
            claims=[Claim("ResNet-20 gets more than 87 % right",
                          lambda rows: rows["resnet20_adabin"]["top1"].value > 87)],
        )
    }

    def evaluate(context: Context) -> dict[str, Measured]:
        data = load(context.assets["cifar10_test"].path)
        ...
        return {"top1": Measured(100 * right / total, n=total)}

A recipe never sees a reported value: nothing in ``Context`` leads there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from papers_shared.assets import Resolved

Scale = Literal["exact", "small"]


class Needs(Exception):
    """Raised by a recipe that cannot run on this machine.

    The message says what is missing, where it is had, and the command that then runs.
    """


@dataclass(frozen=True)
class Measured:
    """One value that a recipe computed.

    Attributes:
        value: in the column's unit.
        std: the sample standard deviation over ``n`` repetitions, where there are several.
        n: how many repetitions (seeds), or how many items a single value was counted over.
        note: a few words shown beside it, for example ``8785 of 9984``.
    """

    value: float
    std: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Context:
    """What the runner hands to a recipe.

    Attributes:
        device: ``cpu`` or ``cuda``.
        seed: the seed of every draw; a recipe with several seeds counts on from it.
        workdir: an empty folder for what the recipe has to write; removed afterwards.
        settings: the recipe's own settings.
        assets: the recipe's assets by name, found and verified.
        progress: to be called as ``progress(done, total, "what is being done")``.
    """

    device: str
    seed: int
    workdir: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, Resolved] = field(default_factory=dict)
    progress: Callable[[int, int, str], None] = lambda done, total, what: None


@dataclass(frozen=True)
class Recipe:
    """How one row of a table is computed.

    Attributes:
        run: computes the row: column name -> ``Measured``.
        seconds: about how long that takes on two CPU cores; the budget goes by it.
        scale: ``exact`` (the paper's own protocol) or ``small`` (its claim at a smaller scale);
            has to equal the row's ``scale`` in reported.yaml.
        assets: names of the catalogue; the runner finds and verifies them first.
        settings: what the result depends on (epochs, sizes, seeds …), as JSON can hold it. A
            committed result counts as ``recorded`` only while its settings equal these.
        requires: Python modules beyond the package's own dependencies.
    """

    run: Callable[[Context], Mapping[str, Measured]]
    seconds: float
    scale: Scale
    assets: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()


Rows = Mapping[str, Mapping[str, Measured]]


@dataclass(frozen=True)
class Claim:
    """A statement over the rows of one table, usually an ordering.

    ``check(rows)`` returns whether it holds, or None where that cannot be said. It may index rows
    and columns freely: one that is in the table but was not computed makes the claim "not known",
    one that is not in the table is an error.
    """

    text: str
    check: Callable[[Rows], bool | None]


@dataclass(frozen=True)
class Table:
    """The recipes of one table of reported.yaml, by row, and the claims over its rows."""

    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    claims: Sequence[Claim] = ()
