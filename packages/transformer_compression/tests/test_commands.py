"""Commands, the registry, the taxonomy, recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from papers_shared.language_models import tiny_llama
from transformer_compression import METHODS, compare, compress, parity
from transformer_compression.bench import LANGUAGE_ROWS, Protocol, Row, measure_row
from transformer_compression.cli import main
from transformer_compression.compare import chosen_steps, markdown
from transformer_compression.figures import draw_tables, plot
from transformer_compression.hosts import HOSTS, count_host_parameters
from transformer_compression.listing import listing
from transformer_compression.measure import linear_macs, measure_cost, weight_bytes
from transformer_compression.models import Loaded
from transformer_compression.reproduce import TABLES
from transformer_compression.taxonomy import LEAVES

GOLDEN = Path(__file__).parent / "golden" / "transformer_compression.json"
RECORDING = json.loads(GOLDEN.read_text(encoding="utf-8"))


class Letters:
    """A tokenizer for tests: a token a character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) % 97 for c in text]


@pytest.mark.parametrize(("case", "run"), list(parity.checks(RECORDING)), ids=lambda v: str(v)[:40])
def test_recorded_cases(case: str, run: Any) -> None:
    parts = list(run())
    assert parts
    for part, error, tolerance in parts:
        assert error <= tolerance, f"{case}: {part}"


def test_unknown_cases_fail() -> None:
    ((_, run),) = parity.checks({"cases": [{"kind": "no_such_kind"}]})
    with pytest.raises(ValueError, match="no_such_kind"):
        list(run())
    ((_, run),) = parity.checks({"surprise": {}})
    with pytest.raises(ValueError, match="surprise"):
        list(run())


def test_every_leaf_is_listed_and_methods_name_their_leaves() -> None:
    text = listing()
    assert all(leaf.title in text for leaf in LEAVES.values())
    assert all(f"{name}: " in text for name in METHODS)
    empty = [key for key in LEAVES if not any(key in m.leaves for m in METHODS.values())]
    assert text.count("none implemented") == len(empty)
    with pytest.raises(ValueError, match="pruning"):
        listing("prunning")


def test_unknown_names_and_options_are_told() -> None:
    model = tiny_llama(layers=1)
    with pytest.raises(ValueError, match="did you mean 'gptq'"):
        compress(model, "gptk")
    with pytest.raises(ValueError, match="no option 'bitz'"):
        compress(model, "gptq", [torch.zeros(1, 8, dtype=torch.long)], bitz=3)
    with pytest.raises(ValueError, match="needs calibration data"):
        compress(model, "gptq")


def test_rows_of_the_table_use_options_that_exist() -> None:
    for steps in LANGUAGE_ROWS.values():
        for name, options in steps:
            assert set(options) <= set(METHODS[name].options), name
            assert "language" in METHODS[name].domains
    assert set(TABLES["table1"].recipes) == set(LANGUAGE_ROWS)


@pytest.mark.parametrize("host", HOSTS)
def test_parameter_counts(host: str) -> None:
    assert count_host_parameters(host) == RECORDING["param_counts"][host]


def test_a_row_measures_quality_size_and_cost(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    dense = Loaded(tiny_llama(layers=2), "language", Letters())
    protocol = Protocol(
        calibration_windows=2,
        calibration_length=32,
        window=32,
        windows=2,
        questions=0,
        draws=2,
        text=text,
        evaluation=text,
    )
    row = measure_row(dense, [("wanda_2_4", {})], protocol, tmp_path)
    assert row.values["nonzero"] < row.values["parameters"]
    assert row.values["bytes"] < 2 * row.values["parameters"]
    assert row.spread["perplexity"] > 0
    # Zeros in dense matrices: as many operations and as much memory as before.
    plain = measure_row(dense, [], protocol, tmp_path)
    assert row.values["macs"] == plain.values["macs"]
    assert row.values["weights"] == plain.values["weights"]
    fewer = measure_row(dense, [("layer_drop", {"count": 1})], protocol, tmp_path)
    assert fewer.values["macs"] < plain.values["macs"]
    assert fewer.values["weights"] < plain.values["weights"]


def test_operations_and_memory_are_the_models() -> None:
    model = tiny_llama(layers=1)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert linear_macs(model, tokens) == 16 * sum(m.weight.numel() for m in linears)
    assert weight_bytes(model) >= 4 * sum(p.numel() for p in model.parameters())
    cost = measure_cost(model, language=True, rounds=1)
    assert cost.forward > 0
    assert cost.step > 0


def test_comparison_table_and_plots(tmp_path: Path) -> None:
    rows = {
        name: Row({"perplexity": p, "bytes": b, "forward_ms": 3.0})
        for name, p, b in (("dense", 20.0, 200.0), ("wanda", 30.5, 120.0))
    }
    table = markdown(rows)
    assert "| wanda | 30.50 | 120.00 | 3.0 |" in table
    drawn = {n: r.values for n, r in rows.items()} | {"broken": {"perplexity": 1e4, "bytes": 1.0}}
    files = plot(
        drawn, tmp_path, title="a model", quality=("perplexity", "ppl"), axes={"bytes": "MB"}
    )
    (text,) = (file.read_text() for file in files)
    assert text.startswith("<?xml")
    assert "wanda" in text
    assert "left out, above 20 times the best: broken" in text


def test_recorded_results_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert draw_tables(tmp_path, ["table1"]) == []
    command = ["reproduce", "--table", "table1", "--budget", "0", "--output", str(tmp_path)]
    assert main(command) == 0
    drawn = sorted(path.name for path in tmp_path.glob("**/*.svg"))
    assert drawn == ["perplexity_bytes.svg", "perplexity_forward_ms.svg"]
    assert "drawn: " in capsys.readouterr().out


def test_a_comparison_keeps_its_rows_whatever_a_method_does(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def measure(dense: Any, steps: Any, *_: Any) -> Row:
        if steps and steps[0][0] == "gptq":
            raise AttributeError("no such layer")
        table = tmp_path / "table.json"
        kept.append(sorted(json.loads(table.read_text())["rows"]) if table.is_file() else [])
        return Row({"perplexity": 20.0, "bytes": 100.0, "forward_ms": 3.0})

    monkeypatch.setattr(compare, "measure_row", measure)
    monkeypatch.setattr(compare, "load_model", lambda *_, **__: Loaded(None, "language"))
    assert main(["compare", "--method", "rtn", "gptq", "nf4", "--output", str(tmp_path)]) == 0
    assert kept == [[], ["dense"], ["dense", "rtn"]]
    assert "gptq failed: AttributeError: no such layer" in capsys.readouterr().out
    written = json.loads((tmp_path / "table.json").read_text())
    assert list(written["rows"]) == ["dense", "rtn", "nf4"]
    assert list(written["failed"]) == ["gptq"]


def test_choosing_methods() -> None:
    assert chosen_steps(["gptq:bits=3,group=32"], "language")["gptq:bits=3,group=32"] == [
        ("gptq", {"bits": 3, "group": 32})
    ]
    with pytest.raises(ValueError, match="no option 'bots'"):
        chosen_steps(["gptq:bots=3"], "language")
    with pytest.raises(ValueError, match="not on vision models"):
        chosen_steps(["gptq", "awq"], "vision")


def test_apply_writes_a_model_that_eval_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from papers_shared import language_models

    monkeypatch.setattr(
        language_models, "load_language_model", lambda name: (tiny_llama(layers=2), Letters())
    )
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on, again and again\n" * 20)
    out = tmp_path / "out"
    arguments = ["apply", "tiny", "--method", "wanda", "gptq", "--sparsity", "0.5", "--bits", "4"]
    arguments += ["--text", str(text), "--windows", "2", "--length", "32", "--output", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "wanda + gptq on tiny" in printed
    assert (out / "compression.json").is_file()
    from transformer_compression.storage import load

    model = load(out).model
    share = (model.model.layers[0].mlp.up_proj.weight == 0).float().mean()
    assert share >= 0.5


def test_bad_arguments_are_told_in_one_line(capsys: pytest.CaptureFixture) -> None:
    for arguments, message in (
        (["apply", "x", "--method", "wandda"], "did you mean 'wanda'"),
        (["apply", "x", "--method", "wanda", "--bits", "3"], "no method here takes --bits"),
        (["apply", "x", "--method", "rtn", "--set", "bits"], "name=value"),
        (["list", "pruning2"], "known: quantization"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
