"""Reported beside reproduced: what a paper reports, and what this machine computes of it.

* ``schema``: ``reported.yaml``, the numbers that others reported.
* ``recipe``: ``Recipe``, ``Claim`` and ``Table``, in which a paper's ``reproduce.py`` is written.
* ``reproduced``: values computed by recipes, with provenance; the only way to a reproduced value.
* ``runner``: runs recipes within a budget, and says what left its tolerance.
* ``render``, ``html``: terminal, Markdown, one static page.

Command line: ``python -m papers_shared.tables reproduce | report | summary | list``.
"""

from papers_shared.tables.recipe import Claim, Context, Measured, Needs, Recipe, Table
from papers_shared.tables.schema import Paper, SchemaError, load

__all__ = [
    "Claim",
    "Context",
    "Measured",
    "Needs",
    "Paper",
    "Recipe",
    "SchemaError",
    "Table",
    "load",
]
