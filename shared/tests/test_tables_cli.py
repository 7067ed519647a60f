"""``python -m papers_shared.tables``: files written, exit status, one-line errors."""

import subprocess
import sys

import pytest

from papers_shared.tables.__main__ import main
from papers_shared.tables.command import ReproduceConfig, run_reproduce

REPORTED = """
paper: madeupcommand
title: A made-up paper
reference: nowhere
claim: it gets 88 % right
headline: [{table: table1, row: ours, column: top1}]
tables:
  table1:
    title: Classification
    protocol: top-1 in percent on nothing
    columns: {top1: {label: Top-1, unit: "%"}}
    rows:
      ours:
        label: Ours
        scale: exact
        cells: {top1: {reported: [{value: 88.1, origin: paper, tolerance: 0.1}]}}
      toy: {label: "Ours, small", scale: small}
      other:
        label: Another method
        needs: its checkpoint
        cells: {top1: {reported: [{value: 91.5, origin: third party}]}}
"""

REPRODUCE = """
from papers_shared.tables import Measured, Recipe, Table

def top1(context):
    context.progress(1, 1, "pictures")
    return {"top1": Measured(VALUE)}

TABLES = {"table1": Table({
    "ours": Recipe(top1, seconds=1, scale="exact"),
    "toy": Recipe(top1, seconds=1, scale="small"),
})}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that the command line finds; call it with the value that it computes."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PAPERS_MIRROR", raising=False)
    package = tmp_path / "madeup" / "src" / "madeupcommand"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "madeup" / "pyproject.toml").touch()
    (tmp_path / "madeup" / "reported.yaml").write_text(REPORTED)
    for module in ("madeupcommand", "madeupcommand.reproduce"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr("papers_shared.workspace.papers", lambda: {"madeup": "madeupcommand"})

    def install(value: object) -> None:
        (package / "reproduce.py").write_text(REPRODUCE.replace("VALUE", str(value)))

    install(88.02)
    return install


def test_reproduce_writes_tables_summary_and_page(installed, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reproduce", "--out", str(out), "--html", "--device", "cpu"]) == 0
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert written == {"madeup/table1.json", "madeup/table1.md", "summary.md", "report.html"}
    assert "1 exact, 1 small, 1 needs" in capsys.readouterr().out


def test_a_value_off_its_tolerance_ends_in_status_1_and_is_named(installed, tmp_path, capsys):
    installed(80.0)
    assert main(["reproduce", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "FAILED madeup, table1, row ours: column top1: 80.0000" in capsys.readouterr().err


def test_summary_and_report_compute_nothing(installed, tmp_path, capsys):
    assert main(["summary"]) == 0
    assert "not yet (skipped)" in capsys.readouterr().out
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "not run" in (tmp_path / "report.html").read_text()


def test_a_papers_own_command_reproduces_that_paper_alone(installed, tmp_path, capsys):
    config = ReproduceConfig(table=["table1"], budget="0", output=tmp_path / "out")
    assert run_reproduce(config, "madeup") == 0
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("out/**/*.*")}
    assert written == {"out/madeup/table1.json", "out/madeup/table1.md"}
    assert run_reproduce(config, "madup") == 2
    assert "did you mean 'madeup'?" in capsys.readouterr().err


def test_list_tells_what_each_row_takes(installed, capsys):
    assert main(["list"]) == 0
    assert "ours: Ours (exact, 1 s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paper", "madup"], "no installed paper is called 'madup'; did you mean 'madeup'?"),
        (["--table", "tabel1"], "no table is called 'tabel1'; did you mean 'table1'?"),
        (["--table", "tabel1", "--table", "table1"], "no table is called 'tabel1'"),
        (["--budget", "soon"], "write 15m, 900s, 2h, 0 or all"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(installed, tmp_path, capsys, arguments, message):
    assert main(["reproduce", "--out", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_read_only_output_folder_is_refused_before_anything_runs(installed, tmp_path, capsys):
    installed("never()")
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(0o555)
    assert main(["reproduce", "--out", str(folder)]) == 2
    assert "name another with --out" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_file_in_place_of_the_output_folder_is_refused(installed, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["reproduce", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    ["--help", "reproduce --help", "reproduce --budget x", "reproduce --paper nobody"],
)
def test_help_and_wrong_arguments_do_not_load_torch(arguments):
    code = f"""
import sys
from papers_shared.tables.__main__ import main
from papers_shared.tables.command import ReproduceConfig, run_reproduce
try:
    main({arguments.split()!r})
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
