"""Orders of rows as claims, and their judgement over rows that are known or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from papers_shared.tables.entries import EMPTY, Entry
from papers_shared.tables.recipe import Rows
from papers_shared.tables.reproduced import ClaimResult, RowResult
from papers_shared.tables.schema import nearest

_Value = TypeVar("_Value")


def ahead(
    better: str, worse: str, columns: Sequence[str], *, smaller: bool = False
) -> Callable[[Rows], bool]:
    """A check for ``Claim``: one row is above another by more than both deviations, in each column.

    The deviations are those over seeds, 0 of a value without; a gap within them is no order.

    Args:
        better: row that is claimed to be ahead.
        worse: row that it is compared with.
        columns: of both.
        smaller: smaller values are better.
    """

    def check(rows: Rows) -> bool:
        for column in columns:
            a, b = rows[better][column], rows[worse][column]
            gap = b.value - a.value if smaller else a.value - b.value
            if gap <= (a.std or 0.0) + (b.std or 0.0):
                return False
        return True

    return check


class NotKnown(Exception):
    """A claim asked for a row or a column that was not computed."""


class Known(Mapping[str, _Value]):
    """The computed rows of a table (or cells of a row); remembers which of them were asked for.

    Raises:
        NotKnown: what is asked for is in the table, but was not computed.
        ValueError: the table has no such row or column.
    """

    def __init__(self, computed: Mapping[str, _Value], names: Mapping[str, object]) -> None:
        self._computed = computed
        self._names = names
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> _Value:
        if name not in self._names:
            raise ValueError(f"the table has no {name!r}; {nearest(name, self._names)}")
        if name not in self._computed:
            raise NotKnown(name)
        self.asked.add(name)
        return self._computed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def judge_claims(
    entry: Entry, table: str, rows: Mapping[str, RowResult]
) -> tuple[tuple[ClaimResult, ...], list[str]]:
    """Which claims of a table hold, and which broken ones fail the command.

    A claim that does not hold fails only when every row that it asked for is exact: one at small
    scale is a finding, and is shown as such.
    """
    reported = entry.reported.tables[table]
    values = {
        row: Known({c: cell.measured for c, cell in result.cells.items()}, reported.columns)
        for row, result in rows.items()
        if result.cells
    }
    results, failures = [], []
    for claim in entry.tables.get(table, EMPTY).claims:
        known = Known(values, reported.rows)
        try:
            holds, message = claim.check(known), ""
        except NotKnown as missing:
            holds, message = None, f"{missing} was not computed"
        except Exception as error:
            holds, message = None, f"{type(error).__name__}: {error}"
            failures.append(f"claim {claim.text!r} could not be judged: {message}")
        exact = bool(known.asked) and all(reported.rows[r].scale == "exact" for r in known.asked)
        scale = "exact" if exact else "small"
        holds = None if holds is None else bool(holds)
        results.append(ClaimResult(claim.text, holds, scale, message))
        if holds is False and exact:
            failures.append(f"the claim {claim.text!r} does not hold")
    return tuple(results), failures
