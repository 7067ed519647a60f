"""Every command and every piece of Python in the READMEs runs."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from papers_shared.tables.entries import belongs, load_entries

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "shared" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *ROOT.glob("packages/*/README.md"),
]
LONG = re.compile(r"#.*\b(hours|days|[1-9]\d minutes)\b")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[tuple[str, str]]:
    return [
        (page.parent.name, line.strip())
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: it holds the photo that the pages speak of."""
    import torch

    from papers_shared.images import write_image

    path = tmp_path_factory.mktemp("readme")
    write_image(torch.rand(3, 60, 80), path / "photo.png")
    return path


def options_exist(arguments: list[str], folder: Path) -> None:
    """For a command that takes long: its help knows each of its options."""
    if "-m" in arguments:  # accelerate launch -m adabin.train ... is python -m adabin.train ...
        arguments = [sys.executable, *arguments[arguments.index("-m") :]]
    options = [i for i, word in enumerate(arguments) if word.startswith("--")]
    verb = options[0] if options else len(arguments)
    done = run([*arguments[:verb], "--help"], folder)
    assert done.returncode == 0, done.stderr
    for word in arguments[verb:]:
        assert not word.startswith("--") or word in done.stdout, word


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_of_a_readme_works(page: str, command: str, folder: Path) -> None:
    arguments = shlex.split(command, comments=True)
    if arguments[0] == "make":  # what is not a dry run is what this test is part of
        done = run([*arguments, "--dry-run"], ROOT)
        assert done.returncode == 0, done.stderr
        return
    if arguments[:2] == ["pip", "install"]:  # tests/test_installation.py does it
        assert (ROOT / arguments[-1] / "pyproject.toml").is_file()
        return
    if LONG.search(command):
        options_exist(arguments, folder)
        return
    done = run(arguments, folder)
    missing = folder / f"{page}.missing"  # later commands of a page use what earlier ones make
    if done.returncode == 2 and ("is not on this machine" in done.stderr or missing.exists()):
        assert not os.environ.get("PAPERS_MIRROR"), done.stderr
        missing.touch()
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_python_of_a_readme_runs(page: Path, folder: Path) -> None:
    for block in blocks(page, "python"):
        done = run([sys.executable, "-c", block], folder)
        assert done.returncode == 0, done.stderr


@functools.cache
def tables_of(paper: str) -> list[str]:
    return list(load_entries([paper])[0].reported.tables)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_that_a_readme_names_exist(page: Path) -> None:
    """Make takes any name behind ``reproduce-``; the command then finds no such table."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:-C packages/(\w+) )?reproduce-(\w+)", text)
    named += re.findall(r"PAPER=(\w+) TABLE=(\w+)", text)
    for paper, table in named:
        known = tables_of(paper or page.parent.name)
        assert any(belongs(name, [table]) for name in known), (table, known)


def generated() -> list[tuple[Path, str, str]]:
    """(page, command, text) between <!-- name: command --> and <!-- end of name -->."""
    block = re.compile(r"<!-- (\w+): (.*?) -->\n(.*?)<!-- end of \1 -->", re.DOTALL)
    return [
        (page, command, text)
        for page in PAGES
        for _, command, text in block.findall(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("command", "text"), [g[1:] for g in generated()], ids=lambda _: "")
def test_a_generated_table_is_what_its_command_prints(command: str, text: str) -> None:
    done = run([sys.executable, *shlex.split(command)[1:]], ROOT)
    assert text.strip() == done.stdout.strip()


def test_the_tables_of_papers_and_of_benchmarks_are_generated() -> None:
    pages = {page for page, _, _ in generated()}
    assert {ROOT / "README.md", ROOT / "benchmarks" / "README.md"} <= pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
