"""Benchmark files name the machine and the versions."""

import json

import pytest

from papers_shared.tables import benchmark


def test_a_benchmark_is_written_with_its_machine(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "workspace_root", lambda: tmp_path)
    path = benchmark.save_benchmark("sums", {"ms": 3.5}, distributions=["torch"])
    data = json.loads(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "results" / "bench" / "sums.json"
    assert data["ms"] == 3.5
    assert data["machine"]["cpu"]
    assert set(data["machine"]["versions"]) == {"torch"}
    assert "results/bench/sums.json" in capsys.readouterr().out.replace("\\", "/")


def test_outside_of_a_checkout_nothing_is_written(monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "workspace_root", lambda: None)
    with pytest.raises(FileNotFoundError, match="inside the checkout"):
        benchmark.save_benchmark("sums", {}, distributions=[])
