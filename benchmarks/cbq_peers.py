"""CBQ beside AWQ, OmniQuant's learned clipping and AutoRound's rounding, SmolLM2-135M.

``python benchmarks/cbq_peers.py --bits w4a16 w2a16 w4a4 [--methods awq lwc autoround] [--seed 1]``
writes results/bench/cbq_peers.json; about 20 minutes of one core a width, so that nothing is run
without ``--bits``, and what the file holds already is kept. The peers are those of
packages/transformer_compression. Model, calibration tokens (16 windows of 512 of WikiText-2
valid), evaluation (the first 20 windows of 512 of test), bfloat16 autocast, the search of start
scales and what is quantized at A4 are those of CBQ's table ``small_full``; at W3A16 and W4A8 they
are those of ``small_ablation`` (the first six blocks, 8 windows for either). benchmarks/tables.py
shows the recorded rows of these beside. AWQ searches the same way on the weights that it has
scaled.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import torch

METHODS = ("awq", "lwc", "autoround")
ABLATED = ("w3a16", "w4a8")


def measure(bits: str, methods: list[str], seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Method, perplexity and CPU minutes, one after the other."""
    from cbq.recipes import SMALL, first_blocks
    from cbq.reproduce import ABLATION, ABLATION_STEPS, STEPS
    from cbq.settings import parse_bits
    from papers_shared.language_models import calibration_windows, tokenize, wikitext2
    from papers_shared.metrics.perplexity import perplexity
    from transformer_compression import Data, compress
    from transformer_compression.models import load_model

    small = ABLATION if bits in ABLATED else SMALL
    # CBQ trains every block in two windows.
    steps = 2 * (ABLATION_STEPS if bits in ABLATED else STEPS)
    dense = load_model(small["model"])
    windows = calibration_windows(
        tokenize(dense.tokenizer, wikitext2("valid")),
        count=small["segments"],
        length=small["length"],
        seed=seed,
    )
    test = tokenize(dense.tokenizer, wikitext2("test"))
    widths = parse_bits(bits)
    activations = widths["act_bits"] if widths["act_bits"] < 16 else 0
    options = {
        "bits": widths["bits"],
        "group": widths["group"],
        "search": "weighted",
        "activation_bits": activations,
        "attention": bool(activations),
    }
    for method in methods:
        own: dict[str, Any] = {"clip": False} if method == "awq" else {"steps": steps, "seed": seed}
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            data = Data(windows, tokenizer=dense.tokenizer)
            model = copy.deepcopy(dense.model)
            with first_blocks(model, small["blocks"]):
                model, _ = compress(model, method, data, **options, **own)
            minutes = (time.process_time() - start) / 60
            found = perplexity(model.eval(), test, window=small["length"], windows=small["windows"])
        yield method, {"perplexity": found.value, "cpu_minutes": minutes}


def main() -> int:
    """Run the peers that the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--bits", nargs="+", help="such as w4a16")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0, help="of the calibration windows")
    options = parser.parse_args()
    if not options.bits:
        print("cbq_peers: not run, it needs --bits (see its docstring)")
        return 0
    from papers_shared.tables.benchmark import benchmark_file, save_benchmark

    path = benchmark_file("cbq_peers")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    for bits in options.bits:
        held = rows.setdefault(bits, {})
        seed = str(options.seed)
        missing = [name for name in options.methods if seed not in held.get(name, {})]
        for name, found in measure(bits, missing, options.seed):
            held.setdefault(name, {})[seed] = found
            print(
                f"{bits} {name}: {found['perplexity']:.2f}, {found['cpu_minutes']:.1f} CPU minutes"
            )
            save_benchmark("cbq_peers", {"rows": rows}, distributions=("torch", "transformers"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
