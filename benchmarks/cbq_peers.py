"""CBQ beside AWQ, OmniQuant's learned clipping and AutoRound's rounding, SmolLM2-135M.

``python benchmarks/cbq_peers.py --bits 2 4 [--methods awq lwc autoround]`` prints a table and
writes results/bench/cbq_peers.json; about half an hour of one core a width, so that nothing is
run without ``--bits``. The peers are those of packages/transformer_compression: one scale a row,
asymmetric, float activations. Model, calibration tokens (16 windows of 512 of WikiText-2 valid,
seed 0) and evaluation (the first 20 windows of 512 of test) are those of CBQ's table
``small_full``, whose recorded rows are shown beside. Only where ranges start differs: each peer
searches or learns its own, the rows of CBQ's table begin with one activation-weighted search.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "awq": ("AWQ, range search within", {"search": "mse"}),
    "lwc": ("OmniQuant's learned clipping, 60 steps", {"steps": 60}),
    "autoround": ("AutoRound's signed gradients, 60 steps", {"steps": 60}),
}
RECORDED = Path(__file__).parents[1] / "packages/cbq/results/small_full.json"


def recorded(bits: int) -> dict[str, dict[str, float]]:
    """RTN, GPTQ and CBQ of the table, where they were recorded."""
    rows = json.loads(RECORDED.read_text(encoding="utf-8"))["rows"]
    found = {}
    for name in ("rtn", "gptq", "cbq"):
        if row := rows.get(f"{name}_w{bits}a16"):
            cells = row["computed"]["cells"]
            found[name] = {
                "perplexity": cells["ppl"]["value"],
                "cpu_minutes": cells["cpu_minutes"]["value"],
            }
    return found


def measure(bits: list[int], methods: list[str]) -> dict[str, Any]:
    """bits -> method -> perplexity and CPU minutes."""
    from cbq.recipes import SMALL
    from papers_shared.language_models import calibration_windows, tokenize, wikitext2
    from papers_shared.metrics.perplexity import perplexity
    from transformer_compression import Data, compress
    from transformer_compression.models import load_model

    dense = load_model(SMALL["model"])
    windows = calibration_windows(
        tokenize(dense.tokenizer, wikitext2("valid")),
        count=SMALL["segments"],
        length=SMALL["length"],
        seed=0,
    )
    test = tokenize(dense.tokenizer, wikitext2("test"))
    results: dict[str, Any] = {"settings": dict(SMALL), "bits": {}}
    for width in bits:
        rows: dict[str, Any] = recorded(width)
        for method in methods:
            data = Data(windows, tokenizer=dense.tokenizer)
            start = time.process_time()
            model, _ = compress(
                copy.deepcopy(dense.model), method, data, bits=width, **METHODS[method][1]
            )
            minutes = (time.process_time() - start) / 60
            found = perplexity(model.eval(), test, window=SMALL["length"], windows=SMALL["windows"])
            rows[method] = {"perplexity": found.value, "cpu_minutes": minutes}
            print(f"W{width}A16 {method}: {found.value:.2f}, {minutes:.1f} CPU minutes", flush=True)
        results["bits"][str(width)] = rows
    return results


def main() -> int:
    """Run the peers and save them beside CBQ's recorded rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--bits", type=int, nargs="+", help="of the weights")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    if not options.bits:
        print("cbq_peers: not run, it needs --bits (see its docstring)")
        return 0
    from papers_shared.tables.benchmark import save_benchmark

    results = measure(options.bits, options.methods)
    save_benchmark("cbq_peers", results, distributions=("torch", "transformers"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
