"""A made-up paper from reported.yaml to tables: states, exit status, records, no copied number."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from papers_shared.tables import Claim, Measured, Needs, Recipe, Table, provenance, store
from papers_shared.tables.claims import ahead
from papers_shared.tables.entries import Entry
from papers_shared.tables.html import page
from papers_shared.tables.provenance import Provenance
from papers_shared.tables.render import (
    Notes,
    absent_text,
    make_console,
    markdown_table,
    print_table,
)
from papers_shared.tables.reproduced import Reproduced, RowResult, State, read_rows
from papers_shared.tables.runner import reproduce
from papers_shared.tables.schema import Cell, Expected, load
from papers_shared.tables.summary import summary_markdown

REPORTED = """
paper: madeuppaper
title: A made-up paper
reference: nowhere
claim: it gets 88 % right
headline: [{table: table1, row: ours, column: top1}]
tables:
  table1:
    title: Classification
    protocol: top-1 in percent on nothing
    columns:
      top1: {label: Top-1, unit: "%", digits: 2, better: higher}
      top5: {label: Top-5, unit: "%", digits: 2, better: higher}
    rows:
      ours:
        label: "Ours | at full size"
        scale: exact
        cells:
          top1:
            reported:
              - {value: 88.1, origin: paper, note: README}
              - {value: 79.3, origin: recalled}
            expected: {value: 88.0, tolerance: 0.05, why: measured}
      toy:
        label: Ours, small
        scale: small
      other:
        label: Another method with a rather long name, compared by others
        needs: its checkpoint, at example.org
        cells:
          top1:
            reported:
              - {value: 91.5, origin: third party, note: a later paper that prints it again}
          top5:
            reported:
              - {value: 97.25, origin: authors' code, note: a comment of theirs in the script}
"""


def good(context) -> dict:
    return {"top1": Measured(88.02, n=10000, note="8802 of 10000")}


def toy(context) -> dict:
    return {"top1": Measured(31.5, std=0.5, n=3)}


OURS = Recipe(good, seconds=10, scale="exact", settings={"crop": (32, 32)})
TOY = Recipe(toy, seconds=100, scale="small")


@pytest.fixture
def paper(tmp_path, monkeypatch) -> Entry:
    """An installed package with a reported.yaml and recipes, in a folder of its own."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PAPERS_MIRROR", raising=False)
    monkeypatch.setenv("PAPERS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "madeup" / "src"
    (source / "madeuppaper").mkdir(parents=True)
    (source / "madeuppaper" / "__init__.py").touch()
    (source.parent / "pyproject.toml").touch()
    (source.parent / "reported.yaml").write_text(REPORTED)
    monkeypatch.syspath_prepend(source)
    for module in ("madeuppaper", "madeuppaper.reproduce"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    reported = load(source.parent / "reported.yaml")
    return Entry("madeup", "madeuppaper", reported, {"table1": Table({"ours": OURS, "toy": TOY})})


def with_table(paper: Entry, *claims: Claim, **recipes: Recipe) -> Entry:
    return replace(paper, tables={"table1": Table({"ours": OURS, "toy": TOY} | recipes, claims)})


def run(paper: Entry, budget: float = 1e9, **more):
    (result,) = reproduce([paper], budget=budget, **more)
    return result


def states(result) -> list[str]:
    return [str(row.state) for row in result.rows.values()]


# What a row becomes


def test_every_row_gets_the_state_that_it_earned(paper):
    result = run(paper)
    assert states(result) == ["exact", "small", "needs"]
    assert result.rows["other"].message == "its checkpoint, at example.org"
    assert result.failures == ()


def test_a_reproduced_value_says_how_it_was_computed(paper):
    source = run(paper, seed=3).rows["ours"].cells["top1"].provenance
    assert source.command == (
        "python -m papers_shared.tables reproduce --paper madeup --table table1 --seed 3 "
        "--device cpu"
    )
    assert source.seed == 3
    assert source.settings == {"crop": [32, 32]}
    assert {"python", "torch", "numpy", "papers-shared"} <= set(source.versions)
    assert source.date.endswith("+00:00")


def test_the_budget_runs_the_cheap_row_and_names_the_command_for_the_other(paper):
    result = run(paper, budget=50)
    assert states(result) == ["exact", "skipped", "needs"]
    assert "--paper madeup --table table1 --budget all" in result.rows["toy"].message


def test_a_row_whose_data_is_missing_needs_it_and_does_not_fail(paper):
    result = run(with_table(paper, ours=replace(OURS, assets=("kodak24",))))
    assert states(result)[0] == "needs"
    assert "kodak24 is not on this machine" in result.rows["ours"].message
    assert result.failures == ()


def test_out_of_the_budget_too_a_row_says_what_it_needs(paper):
    result = run(with_table(paper, ours=replace(OURS, assets=("kodak24",))), budget=0)
    assert states(result) == ["needs", "skipped", "needs"]
    assert "kodak24 is not on this machine" in result.rows["ours"].message


def test_in_ci_with_a_mirror_an_exact_row_must_not_need_anything(paper, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PAPERS_MIRROR", str(tmp_path))
    result = run(with_table(paper, ours=replace(OURS, assets=("kodak24",))))
    assert "row ours: an exact row could not be computed: kodak24" in result.failures[0]


def test_weights_without_a_published_checksum_are_their_users_to_bring(
    paper, tmp_path, monkeypatch
):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PAPERS_MIRROR", str(tmp_path))
    table = paper.reported.tables["table1"]
    rows = {**table.rows, "ours": replace(table.rows["ours"], needs="or train it")}
    tables = {"table1": replace(table, rows=rows)}
    paper = replace(paper, reported=replace(paper.reported, tables=tables))
    result = run(with_table(paper, ours=replace(OURS, assets=("vq_f4_autoencoder",))))
    assert result.failures == ()
    assert result.rows["ours"].state is State.NEEDS
    assert "vq_f4_autoencoder is not on this machine" in result.rows["ours"].message
    assert result.rows["ours"].message.endswith("; or train it")


def test_a_recipe_can_say_itself_what_it_needs(paper):
    def needs_a_gpu(context):
        raise Needs("a GPU; then add --device cuda")

    result = run(with_table(paper, toy=replace(TOY, run=needs_a_gpu)))
    assert result.rows["toy"].state is State.NEEDS
    assert result.rows["toy"].message == "a GPU; then add --device cuda"


def test_a_missing_module_is_named(paper):
    result = run(with_table(paper, toy=replace(TOY, requires=("no_such_module",))))
    assert "pip install no_such_module" in result.rows["toy"].message


def test_a_recipe_that_raises_fails_alone(paper, capsys):
    def broken(context):
        raise RuntimeError("two\nlines")

    result = run(with_table(paper, ours=replace(OURS, run=broken)))
    assert states(result) == ["failed", "small", "needs"]
    assert result.failures == ("madeup, table1, row ours: RuntimeError: two lines",)
    assert "Traceback" in capsys.readouterr().err


# What fails


@pytest.mark.parametrize(("value", "fails"), [(88.05, False), (87.95, False), (88.06, True)])
def test_an_exact_value_has_to_stay_within_the_expected_tolerance(paper, value, fails):
    recipe = replace(OURS, run=lambda context: {"top1": Measured(value)})
    assert bool(run(with_table(paper, ours=recipe)).failures) is fails


def test_the_failure_names_value_tolerance_and_guard(paper):
    recipe = replace(OURS, run=lambda context: {"top1": Measured(80.0)})
    result = run(with_table(paper, ours=recipe))
    assert result.failures == (
        "madeup, table1, row ours: column top1: 80.0000 is not within 0.05 of the expected 88.0",
    )


def test_an_exact_value_without_a_guard_fails(paper):
    recipe = replace(OURS, run=lambda context: {"top5": Measured(99.0)})
    assert "has no guard" in run(with_table(paper, ours=recipe)).failures[0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"top2": Measured(1)}, "no column 'top2'; did you mean"),
        ({"top1": 88.1}, "expected Measured"),
        ({"top1": Measured(float("nan"))}, "not a finite number"),
        ({}, "returns {column: Measured}"),
    ],
)
def test_a_recipe_may_only_fill_its_table_with_finite_measured_values(paper, returned, message):
    recipe = replace(OURS, run=lambda context: returned)
    assert message in run(with_table(paper, ours=recipe)).failures[0]


# Claims


def claim(check) -> Claim:
    return Claim("a claim", check)


@pytest.mark.parametrize(
    ("check", "holds", "scale", "failures"),
    [
        (lambda rows: rows["toy"]["top1"].value > 30, True, "small", 0),
        (lambda rows: rows["toy"]["top1"].value > 90, False, "small", 0),
        (lambda rows: rows["ours"]["top1"].value > 90, False, "exact", 1),
        (lambda rows: rows["other"]["top1"].value > 90, None, "small", 0),
        (lambda rows: rows["ours"]["top5"].value > 90, None, "exact", 0),
        (lambda rows: rows["our"]["top1"].value > 90, None, "small", 1),
    ],
    ids=["holds", "broken small", "broken exact", "row not known", "cell not known", "misspelt"],
)
def test_a_broken_claim_fails_only_over_exact_rows(paper, check, holds, scale, failures):
    result = run(with_table(paper, claim(check)))
    assert (result.claims[0].holds, result.claims[0].scale) == (holds, scale)
    assert len(result.failures) == failures


# Records


def test_a_gap_within_the_deviations_is_no_order():
    def rows(gap, std):
        return {"a": {"x": Measured(30 + gap, std)}, "b": {"x": Measured(30, std)}}

    check, smaller = ahead("a", "b", ("x",)), ahead("a", "b", ("x",), smaller=True)
    assert check(rows(0.3, 0.1))
    assert not check(rows(0.15, 0.1))
    assert not check(rows(-0.3, 0.1))
    assert smaller(rows(-0.3, 0.1))
    assert not smaller(rows(-0.15, 0.1))
    assert check(rows(0.01, None))  # computed once: no deviation is known
    assert not check(rows(0, None))


def test_a_recorded_row_is_shown_when_the_budget_does_not_run_it(paper):
    run(paper, record=True)
    result = run(paper, budget=0)
    assert states(result) == ["recorded", "recorded", "needs"]
    assert result.rows["ours"].cells["top1"].value == 88.02


def test_a_record_made_with_other_settings_is_not_shown(paper):
    run(paper, record=True)
    changed = with_table(paper, ours=replace(OURS, settings={"crop": (64, 64)}))
    row = run(changed, budget=0).rows["ours"]
    assert row.state is State.SKIPPED
    assert "made with other settings" in row.message
    assert not row.cells


def test_code_is_modified_by_any_file_but_results(tmp_path, monkeypatch):
    source = tmp_path / "packages/some/src/some"
    for folder in (source, tmp_path / "packages/some/results"):
        folder.mkdir(parents=True)
    (tmp_path / "packages/some/pyproject.toml").touch()
    who = ["-c", "user.name=a", "-c", "user.email=a"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(provenance, "package_folder", lambda module: source)
    (tmp_path / "packages/some/results/table1.json").touch()
    provenance._commit.cache_clear()
    assert not provenance._commit("some")[1]
    (source / "model.py").touch()
    provenance._commit.cache_clear()
    assert provenance._commit("some")[1]
    provenance._commit.cache_clear()


def test_a_row_run_again_keeps_the_committed_value_for_comparison(paper):
    run(paper, record=True)
    other = replace(OURS, run=lambda context: {"top1": Measured(87.99)})
    row = run(with_table(paper, ours=other)).rows["ours"]
    assert (row.cells["top1"].value, row.recorded["top1"].value) == (87.99, 88.02)


def test_recording_one_row_keeps_the_others_and_never_records_a_failure(paper):
    run(paper, record=True)
    wrong = replace(OURS, run=lambda context: {"top1": Measured(10.0)})
    better = replace(TOY, run=lambda context: {"top1": Measured(32.0)})
    run(with_table(paper, ours=wrong, toy=better), record=True)
    rows = paper.committed("table1")
    assert {name: cells["top1"].value for name, cells in rows.items()} == {
        "ours": 88.02,
        "toy": 32.0,
    }


def test_a_recorded_row_whose_data_is_missing_stays_and_says_so(paper):
    run(paper, record=True)
    row = run(with_table(paper, ours=replace(OURS, assets=("kodak24",)))).rows["ours"]
    assert row.state is State.RECORDED
    assert "not computed again: kodak24" in row.message


# No number can be copied


def test_a_reproduced_value_cannot_be_made_from_a_number(paper):
    source = Provenance("", "", False, 0, "", {}, {}, "", 0.0, {})
    with pytest.raises(TypeError, match="cannot be made from a number"):
        Reproduced(88.1, None, None, "", "exact", source)
    computed = run(paper).rows["ours"].cells["top1"]
    with pytest.raises(TypeError, match="cannot be made from a number"):
        replace(computed, value=88.1, made_by=None)


def test_a_row_takes_no_reported_number(paper):
    reported = paper.reported.tables["table1"].rows["ours"].cells["top1"].reported[0]
    for number in (88.1, reported, Measured(88.1)):
        with pytest.raises(TypeError, match="which no recipe computed"):
            RowResult(State.EXACT, {"top1": number})


def test_a_number_written_into_a_committed_result_is_refused(paper):
    run(paper, record=True)
    path = paper.source_folder() / "results" / "table1.json"
    stored = json.loads(path.read_text())
    stored["rows"]["ours"]["computed"]["cells"]["top1"]["value"] = 88.1
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="row ours are not as the runner wrote them"):
        run(paper, budget=0)


def test_a_computed_row_cannot_be_moved_to_another_row(paper):
    run(paper, record=True)
    path = paper.source_folder() / "results" / "table1.json"
    stored = json.loads(path.read_text())
    stored["rows"]["other"] = stored["rows"]["ours"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="row other are not as the runner wrote them"):
        read_rows(path, "madeup", "table1")


def test_a_recipe_sees_no_reported_value(paper):
    seen = []
    recipe = replace(OURS, run=lambda context: seen.append(context) or good(context))
    run(with_table(paper, ours=recipe))
    assert "88.1" not in repr(seen[0])
    assert "79.3" not in repr(seen[0])


# Renderers


def assert_nothing_is_cut_off(out: str) -> None:
    """At most 100 columns, and every line of a table ends with its border."""
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(line[-1] in "│╮┤╯" for line in lines if line[:1] in tuple("│╭├╰"))


def test_the_terminal_shows_reported_beside_reproduced_in_100_columns(paper, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(paper.reported.tables["table1"], run(paper), make_console())
    out = capsys.readouterr().out
    assert re.search(r"│ Ours \| at full size +│ 88.1 \(paper: +│ 88.02 \(exact;", out)
    assert "[79.3" in out
    assert "needs (note 1)" in out
    assert "note 1: its checkpoint, at example.org" in out
    assert "\x1b" not in out
    assert_nothing_is_cut_off(out)


def test_a_wide_table_is_printed_in_blocks_of_100_columns(paper, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = paper.reported.tables["table1"]
    columns = {f"c{i}": replace(table.columns["top1"], name=f"c{i}") for i in range(9)}
    wide = replace(table, columns=columns | dict(table.columns))
    print_table(wide, run(paper), make_console())
    out = capsys.readouterr().out
    assert out.count("Top-1 (%)") == 10
    assert out.count("= 88.02 (exact)") == 1
    assert_nothing_is_cut_off(out)


def test_a_row_that_was_not_computed_says_so_in_each_cell_that_it_has(paper):
    table = paper.reported.tables["table1"]
    row = table.rows["ours"]
    guarded = replace(row, cells={**row.cells, "top5": Cell(expected=Expected(99, 1, "measured"))})
    result = run(paper, budget=0)
    notes = Notes(result)
    texts = [
        absent_text(line, result.rows["ours"], table.columns["top5"], notes)
        for line in (row, guarded)
    ]
    assert texts == ["", "not run (note 1)"]


def test_expected_values_are_never_shown(paper):
    recipe = replace(OURS, run=lambda context: {"top1": Measured(88.02)})
    result = run(with_table(paper, ours=recipe))
    table = paper.reported.tables["table1"]
    assert "88.00" not in markdown_table(table, result)
    assert "88.00" not in page([(paper, {"table1": result})])


def test_markdown_escapes_what_would_break_a_table(paper):
    text = markdown_table(paper.reported.tables["table1"], run(paper))
    assert "Ours \\| at full size" in text
    assert "**88.02 (exact; 8802 of 10000)**" in text
    assert "31.50 ± 0.50 (small scale)" in text


def test_a_value_out_of_tolerance_is_marked_where_it_stands(paper):
    recipe = replace(OURS, run=lambda context: {"top1": Measured(80.0)})
    result = run(with_table(paper, ours=recipe))
    assert "80.00 (exact, OUT OF TOLERANCE)" in markdown_table(
        paper.reported.tables["table1"], result
    )
    assert "exact, out of tolerance" in page([(paper, {"table1": result})])


def test_the_page_is_one_file_that_shows_provenance_and_loads_nothing(paper):
    html = page([(paper, {"table1": run(paper)})])
    assert "--paper madeup --table table1" in html
    for outside in ("http:", "https:", "<script", "<link", "src="):
        assert outside not in html


def test_the_summary_has_a_line_a_paper(paper):
    text = summary_markdown([(paper, {"table1": run(paper)})])
    line = text.splitlines()[2]
    assert "it gets 88 % right" in line
    assert "88.1 (paper), [79.3 recalled]" in line
    assert "88.02 % (exact)" in line


def test_a_saved_result_reads_back_the_same(paper, tmp_path):
    wrong = replace(OURS, run=lambda context: {"top1": Measured(80.0)})
    holds = claim(lambda rows: rows["toy"]["top1"].value > 30)
    run(paper, record=True)
    result = run(with_table(paper, holds, ours=wrong))
    store.save(tmp_path, paper, result)
    assert store.load(tmp_path, paper, "table1") == result
