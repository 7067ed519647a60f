"""GPTQ and SparseGPT beside llm-compressor, on one model and the very same calibration tokens.

``python benchmarks/compression_peers.py --peer FOLDER`` prints a table and writes
results/bench/compression_peers.json. llm-compressor pins torch and transformers to versions that
differ from this workspace's, so it is not a dependency: FOLDER is one of

    pip install --target FOLDER --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0
    pip install --target FOLDER datasets multiprocess dill xxhash pyarrow pandas loguru

(without ``--no-deps`` it installs its own torch). The peer runs in a process of its own that sees
FOLDER first. Without --peer nothing is run. Each side gets a symmetric 4-bit grid from the largest
magnitude of a row, blocks of 128 columns, damping 1 %; both prune 2:4 with the same solver
settings. Perplexity: WikiText-2 (tokenised variant), window 512, the first windows of test.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("gptq", "sparsegpt_2_4")
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq": ("gptq", {"bits": 4, "symmetric": True, "search": "none", "rule": "gptq"}),
    "sparsegpt_2_4": ("sparsegpt_2_4", {}),
}


def peer(method: str, folder: Path) -> None:
    """Compress the saved model with llm-compressor (in the process that sees it)."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from llmcompressor.modifiers.quantization import GPTQModifier
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokens = load_file(folder / "tokens.safetensors")["tokens"]
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32)
    grid = QuantizationArgs(
        num_bits=4, symmetric=True, strategy="channel", observer="memoryless_minmax"
    )
    modifier = (
        GPTQModifier(
            config_groups={"all": QuantizationScheme(targets=["Linear"], weights=grid)},
            ignore=["lm_head"],
            dampening_frac=0.01,
            block_size=128,
            actorder=None,
        )
        if method == "gptq"
        else SparseGPTModifier(
            sparsity=0.5,
            mask_structure="2:4",
            ignore=["lm_head"],
            dampening_frac=0.01,
            block_size=128,
        )
    )
    # It asks for a processor although the tokens are given.
    unused = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    start = time.perf_counter()
    oneshot(
        model=model,
        processor=unused,
        dataset=torch.utils.data.DataLoader(rows, batch_size=1),
        recipe=[modifier],
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens),
        pipeline="sequential",
        sequential_targets=["LlamaDecoderLayer"],
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - start
    weights = {
        n: p.detach().contiguous() for n, p in model.named_parameters() if n.endswith("proj.weight")
    }
    save_file(weights, folder / f"{method}.safetensors")
    (folder / f"{method}.json").write_text(json.dumps({"seconds": seconds}))


def _share(masks: Iterable[Tensor]) -> float:
    found = list(masks)
    return sum(int(x.sum()) for x in found) / sum(x.numel() for x in found)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides' perplexity and seconds, and the share of equal weights."""
    import copy

    import torch
    from safetensors.torch import load_file, save_file

    from papers_shared.language_models import tokenize, wikitext2
    from papers_shared.metrics.perplexity import perplexity
    from transformer_compression import compress
    from transformer_compression.models import language_data, load_model

    dense = load_model(options.model)
    data = language_data(dense, windows=options.windows, length=options.length, seed=0)
    test = tokenize(dense.tokenizer, wikitext2("test")[:400_000])

    def quality(model: Any) -> float:
        return perplexity(model, test, window=512, windows=options.evaluation).value

    results: dict[str, Any] = {"model": options.model, "dense": quality(dense.model), "rows": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dense.model.save_pretrained(folder / "dense")
        save_file({"tokens": torch.cat(list(data.batches))}, folder / "tokens.safetensors")
        for method in METHODS:
            made, report = compress(
                copy.deepcopy(dense.model), OURS[method][0], data, **OURS[method][1]
            )
            path = os.pathsep.join([str(options.peer), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, __file__, "--worker", method, "--folder", str(folder)]
            subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)
            theirs = copy.deepcopy(dense.model)
            weights = load_file(folder / f"{method}.safetensors")
            missing, unexpected = theirs.load_state_dict(weights, strict=False)
            if unexpected or [n for n in missing if "proj" in n]:
                raise ValueError(f"the peer's weights do not fit: {unexpected or missing}")
            mine = dict(made.named_parameters())
            near = {n: (mine[n] - w).abs() <= 0.02 * w.abs().max() for n, w in weights.items()}
            row = {
                "ours": quality(made.eval()),
                "peer": quality(theirs),
                "ours_seconds": sum(report.seconds),
                "peer_seconds": json.loads((folder / f"{method}.json").read_text())["seconds"],
                "equal_weights": _share(near.values()),
                "equal_weights_by_block": [
                    _share(x for n, x in near.items() if f".layers.{block}." in n)
                    for block in range(dense.model.config.num_hidden_layers)
                ],
            }
            row["perplexity_ratio"] = row["ours"] / row["peer"]
            row["times_faster"] = row["peer_seconds"] / row["ours_seconds"]
            results["rows"][method] = row
    return results


def main() -> int:
    """Run both sides and save what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--peer", type=Path, help="folder that holds llm-compressor")
    parser.add_argument("--model", default="smollm2-135m", help="as transformer-compression takes")
    parser.add_argument("--windows", type=int, default=8, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens each")
    parser.add_argument("--evaluation", type=int, default=10, help="windows of the perplexity")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer(options.worker, options.folder)
        return 0
    if options.peer is None:
        print("compression_peers: not run, it needs --peer FOLDER (see its docstring)")
        return 0
    from papers_shared.tables.benchmark import save_benchmark

    results = measure(options)
    for method, row in results["rows"].items():
        print(
            f"{method}: perplexity {row['ours']:.2f} ours, {row['peer']:.2f} llm-compressor "
            f"(dense {results['dense']:.2f}); {row['ours_seconds']:.0f} s against "
            f"{row['peer_seconds']:.0f} s; {100 * row['equal_weights']:.1f} % equal weights"
        )
    save_benchmark("compression_peers", results, distributions=("torch", "transformers"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
