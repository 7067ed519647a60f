"""What DESIGN calls the contract: the same shape and the same promises in every package."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

FILES = (
    "README.md",
    "pyproject.toml",
    "Makefile",
    "reported.yaml",
    "src/{}/train.py",
    "src/{}/eval.py",
    "src/{}/reproduce.py",
    "src/{}/parity.py",
    "src/{}/catalogue.yaml",
    "tests/golden/{}.json",
)
HEAVY = ("torchvision", "diffusers", "transformers.models", "lpips", "basicsr")

# DESIGN's layers of papers_shared; a module imports only from layers below its own, or its own.
LAYERS = {
    "workspace": 0, "assets": 1, "checkpoints": 1, "images": 1, "complexity": 1, "cli": 1,
    "devices": 1,
    "name_seeded": 1, "packing": 1, "_basicsr": 1, "_calflops": 1,
    "_counting": 1, "kernels": 2, "data": 2, "networks": 2,
    "metrics": 2, "diffusion": 3, "quantization": 3, "language_models": 3, "training": 3,
    "inference": 3, "restoration": 3, "tables": 4, "parity": 4, "reproduce": 5,
}  # fmt: skip
# Readers of recordings and recipes stand beside what they check, and are loaded by layer 4.
ENDS = ("parity", "reproduce")


def imports(path: Path) -> set[str]:
    """Every module that a source file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def loaded_by(code: str) -> set[str]:
    """sys.modules after running ``code`` in a fresh interpreter."""
    code += "\nimport sys; print('\\nMODULES', *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("file", FILES)
def test_every_package_has_the_same_files(root: Path, package: str, file: str) -> None:
    assert (root / "packages" / package / file.format(package)).is_file()


def test_a_package_says_what_it_builds(package: str) -> None:
    module = importlib.import_module(package)
    if hasattr(module, "METHODS"):
        assert all(callable(method) for method in module.METHODS.values())
    else:
        assert module.VARIANTS
        assert callable(module.build)
        assert callable(module.load_official)


def test_a_package_trains_evaluates_and_reproduces(package: str) -> None:
    for name in ("train", "eval"):
        assert callable(importlib.import_module(f"{package}.{name}").main)
    assert importlib.import_module(f"{package}.reproduce").TABLES


def test_importing_a_package_loads_no_heavy_library(root: Path, package: str) -> None:
    source = root / "packages" / package / "src" / package
    methods = not (source / "model.py").is_file()  # a paper of methods has no network of its own
    loaded = loaded_by(f"import {package}" + ("" if methods else f", {package}.model"))
    assert not [name for name in HEAVY if name in loaded]


def test_help_and_bad_arguments_load_no_torch(package: str) -> None:
    (script,) = (s for s in entry_points(group="console_scripts") if s.value.startswith(package))
    module, _, function = script.value.partition(":")
    loaded = loaded_by(
        f"from {module} import {function} as main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['train', '--help']) == 0\n"
        "assert main(['train', '--no-such-option', '1']) == 2\n"
        "assert main(['train', '--config', 'no-such-file.yaml']) == 2"
    )
    assert "torch" not in loaded


def test_packages_never_import_each_other(root: Path, package: str) -> None:
    others = {path.parent.name for path in root.glob("packages/*/pyproject.toml")} - {package}
    for path in (root / "packages" / package).rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & others, path


def test_shared_imports_no_paper_and_only_lower_layers(root: Path) -> None:
    papers = {path.parent.name for path in root.glob("packages/*/pyproject.toml")}
    source = root / "shared" / "src" / "papers_shared"
    for path in source.rglob("*.py"):
        inside = path.relative_to(source).with_suffix("").parts
        if inside == ("__init__",) or inside[-1] in ENDS:
            continue
        own = LAYERS[inside[0]]
        for name in imports(path):
            assert name.partition(".")[0] not in papers, f"{path} imports {name}"
            parts = name.split(".")
            if parts[0] == "papers_shared" and len(parts) > 1:
                assert LAYERS.get(parts[1], 0) <= own, f"{path} imports {name}"


def test_the_workspace_uses_the_live_shared_folder(root: Path) -> None:
    import papers_shared

    assert Path(papers_shared.__file__).is_relative_to(root / "shared" / "src")


def test_every_reported_row_has_a_recipe_or_says_what_it_needs(root: Path, package: str) -> None:
    from papers_shared.tables.entries import check_recipes
    from papers_shared.tables.schema import load

    paper = load(root / "packages" / package / "reported.yaml")
    tables = importlib.import_module(f"{package}.reproduce").TABLES
    check_recipes(paper, tables)
    for name, reported in paper.tables.items():
        recipes = tables[name].recipes if name in tables else {}
        assert recipes.keys() == {row.name for row in reported.rows.values() if row.scale}
