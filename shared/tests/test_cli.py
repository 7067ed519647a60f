"""One dataclass, one YAML file, one command line; errors are one line with the remedy."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from papers_shared.cli import Command, load_config, option, run


@dataclass(frozen=True)
class Options:
    """Do something."""

    photos: list[Path] = option([], "pictures", positional=True)
    learning_rate: float = option(0.1, "step size")
    epochs: int = option(3, "passes")
    mode: Literal["fast", "slow"] = option("fast", "how")
    flag: bool = option(False, "yes or no")
    limit: int | None = option(None, "at most")
    stages: tuple[int, ...] = option((1, 2), "depths")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Runs the program; returns (status, the options that arrived)."""
    module = types.ModuleType("fake_program")
    arrived: list[Options] = []
    module.main = lambda config: arrived.append(config)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_program", module)
    commands = {"go": Command("do it", Options, "fake_program:main")}

    def call(*argv: str) -> tuple[int, Options | None]:
        arrived.clear()
        status = run("prog", "A program.", commands, ["go", *argv])
        return status, arrived[0] if arrived else None

    return call


def test_defaults_then_file_then_options(call, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("learning_rate: 1e-4\nepochs: 7\nstages: [3, 4]\n")
    status, options = call("--config", str(file), "--epochs", "9", "a.png", "--flag")
    assert status == 0
    assert options == Options([Path("a.png")], 1e-4, 9, flag=True, stages=(3, 4))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning-rate", "1"], "did you mean '--learning-rate'"),
        (["--photos", "a.png"], "unknown option --photos, PHOTOS is written without --photos"),
        (["--epochs", "many"], "epochs is 'many', expected int"),
        (["--epochs", "2.5"], "expected int"),
        (["--mode", "fats"], "did you mean 'fast'"),
        (["--config", "none.yaml"], "no configuration file none.yaml"),
    ],
)
def test_bad_options_are_one_line_and_status_2(call, capsys, argv, message) -> None:
    status, options = call(*argv)
    error = capsys.readouterr().err
    assert (status, options) == (2, None)
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "did you mean 'learning_rate'"),
        ("epochs: [1]", "expected int"),
        ("epochs: true", "expected int"),
        ("- 1", "keys and values"),
        ("a: b: c", "not YAML"),
    ],
)
def test_bad_files_name_the_key_and_the_file(call, capsys, tmp_path, text, message) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    status, _ = call("--config", str(file))
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert "c.yaml" in error
    assert error.count("\n") == 1


def test_help_shows_every_option_with_its_default(call, capsys) -> None:
    status, _ = call("--help")
    text = capsys.readouterr().out
    assert status == 0
    for part in ("--learning-rate", "step size (default: 0.1)", "fast|slow", "--no-flag"):
        assert part in text


def test_a_required_option_is_asked_for() -> None:
    @dataclass
    class Needs:
        output: Path = option(..., "where to write")

    with pytest.raises(ValueError, match="--output is required: where to write"):
        load_config(Needs)


def test_errors_of_the_program_are_one_line_unless_debugged(monkeypatch, capsys) -> None:
    module = types.ModuleType("failing_program")

    def fail(config: Options) -> None:
        raise ValueError("the picture\nis empty")

    module.main = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing_program", module)
    commands = {"go": Command("do it", Options, "failing_program:main")}
    assert run("prog", "", commands, ["go"]) == 2
    assert capsys.readouterr().err == "prog: error: the picture is empty\n"
    monkeypatch.setenv("PAPERS_DEBUG", "1")
    with pytest.raises(ValueError, match="picture"):
        run("prog", "", commands, ["go"])
