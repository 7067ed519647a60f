"""``reported.yaml`` is checked to the last key, and every error is one line that says where."""

import copy

import pytest
import yaml

from papers_shared.tables import Measured, Recipe, SchemaError, Table
from papers_shared.tables.entries import check_recipes
from papers_shared.tables.schema import load, parse

VALID = yaml.safe_load("""
paper: fake
title: A paper
reference: nowhere
claim: it works
headline: [{table: table1, row: ours, column: top1}]
tables:
  table1:
    title: Classification
    protocol: top-1 in percent
    columns:
      top1: {label: Top-1, unit: "%", digits: 2, better: higher}
    rows:
      ours:
        label: Ours
        scale: exact
        cells:
          top1:
            reported:
              - {value: 88.1, origin: paper, note: README, tolerance: 0.2}
              - {value: 79.3, origin: recalled}
            expected: {value: 88.0, tolerance: 0.05, why: measured}
      other:
        label: Another method
        needs: its checkpoint
        cells: {top1: {reported: [{value: 90, origin: third party}]}}
""")

TABLE = ("tables", "table1")
CELL = (*TABLE, "rows", "ours", "cells", "top1")
MISSING = object()


def changed(path: tuple, value: object) -> dict:
    """The valid file with one entry replaced, added, or removed."""
    raw = copy.deepcopy(VALID)
    place = raw
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return raw


def test_a_valid_file_is_read_whole():
    paper = parse(VALID)
    table = paper.tables["table1"]
    cell = table.rows["ours"].cells["top1"]
    assert [r.value for r in cell.reported] == [88.1, 79.3]
    assert table.columns["top1"].heading == "Top-1 (%) ↑"
    assert paper.headline[0].row == "ours"
    assert table.rows["other"].needs == "its checkpoint"


def test_expected_stands_before_reported_tolerances_as_guard():
    with_expected = parse(VALID).tables["table1"].rows["ours"].cells["top1"]
    without = parse(changed((*CELL, "expected"), MISSING)).tables["table1"].rows["ours"]
    assert [g.value for g in with_expected.guards] == [88.0]
    assert [g.value for g in without.cells["top1"].guards] == [88.1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("titel",), "x", "reported.yaml: unknown key 'titel'; did you mean 'title'?"),
        (("reference",), MISSING, "reported.yaml: 'reference' is missing"),
        ((*TABLE, "rows"), [], "table1: rows: expected a mapping, found []"),
        ((*TABLE, "rows", False), {}, "rows: the key False is not text; put it in quotes"),
        (
            (*TABLE, "rows", "ours", "cells", "top5"),
            {},
            "reported.yaml: table1, row ours: column 'top5' is unknown; did you mean 'top1'?",
        ),
        (
            (*CELL, "reported", 0, "origin"),
            "papers",
            "table1, row ours, column top1: reported[0]: origin 'papers' is unknown; "
            "did you mean 'paper'?",
        ),
        ((*CELL, "reported", 0, "value"), "1e-4", "write 1.0e-4"),
        ((*CELL, "reported", 0, "value"), True, "expected a number, found True"),
        ((*CELL, "reported", 1, "tolerance"), 1, "a recalled number is never compared"),
        ((*CELL, "reproduced"), 88.0, "unknown key 'reproduced'"),
        ((*CELL, "expected", "why"), MISSING, "column top1: expected: 'why' is missing"),
        ((*CELL, "expected", "tolerance"), -1, "-1 is negative"),
        ((*TABLE, "rows", "ours", "scale"), "small", "only a row of scale exact has `expected`"),
        ((*TABLE, "rows", "other", "needs"), MISSING, "row other: give `scale: exact`"),
        ((*TABLE, "columns", "top1", "better"), "more", "better 'more' is unknown"),
        (("headline", 0, "row"), "our", "headline[0]: row 'our' is unknown; did you mean 'ours'?"),
    ],
)
def test_an_error_names_the_place_and_the_remedy_in_one_line(path, value, message):
    with pytest.raises(SchemaError) as error:
        parse(changed(path, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "reported.yaml"
    path.write_text("paper: fake\npaper: fake\n")
    with pytest.raises(SchemaError, match=r"reported.yaml: .*the key 'paper' stands twice"):
        load(path)


def test_what_is_not_yaml_is_refused_in_one_line(tmp_path):
    path = tmp_path / "reported.yaml"
    path.write_text("a: [1\nb: 2")
    with pytest.raises(SchemaError, match="not YAML"):
        load(path)


def recipe(scale: str = "exact", **more: object) -> Recipe:
    return Recipe(lambda context: {"top1": Measured(88.0)}, 1, scale, **more)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"tabel1": Table()}, "no table 'tabel1'; did you mean 'table1'?"),
        ({"table1": Table({"our": recipe()})}, "no row 'our'; did you mean 'ours'?"),
        ({"table1": Table({"ours": recipe("small")})}, "reported.yaml says scale 'exact'"),
        ({"table1": Table({"ours": recipe(settings={"a": {1}})})}, "not JSON serializable"),
        ({}, "row ours: no recipe"),
    ],
)
def test_recipes_have_to_fit_the_reported_tables(tables, message):
    with pytest.raises(ValueError) as error:
        check_recipes(parse(VALID), tables)
    assert message in str(error.value)


def test_a_row_without_recipe_is_fine_when_it_says_what_it_needs():
    check_recipes(parse(VALID), {"table1": Table({"ours": recipe()})})
