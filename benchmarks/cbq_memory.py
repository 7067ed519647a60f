"""Memory of `cbq quantize`: weights as float32, as stored, and with finished blocks on disk.

``python benchmarks/cbq_memory.py [--quick]`` prints a line a way and writes
results/bench/cbq_memory.json (Linux; minutes). A Llama with random weights in bfloat16 is saved
and quantized at W4A16 by the preset ``rtn``, which needs the least beside the model; the peak is
of the process's own pages: what is mapped from files, the system can drop.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"hidden": 1024, "intermediate": 2816, "layers": 24, "heads": 16, "kv_heads": 4}
WAYS = {
    "float32": ["--dtype", "float32"],
    "as stored": [],
    "as stored, offloaded": ["--offload"],
}


def make_model(folder: Path, layers: int) -> float:
    """Save the model and a tokenizer; millions of parameters."""
    import torch

    from papers_shared.language_models import load_language_model, tiny_llama

    tokenizer = load_language_model("smollm2-135m")[1]
    sizes = {**SIZES, "layers": layers, "vocabulary": len(tokenizer)}
    model = tiny_llama(**sizes).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters()) / 1e6


def peak_own_memory(command: list[str]) -> float:
    """Run a command; the largest RssAnon seen, in MB.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak / 1024


def main() -> int:
    """Quantize the model in each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="two blocks alone")
    quick = parser.parse_args().quick
    from papers_shared.tables.benchmark import save_benchmark

    with tempfile.TemporaryDirectory() as folder:
        layers = 2 if quick else SIZES["layers"]
        parameters = make_model(Path(folder, "model"), layers)
        peaks = {}
        for way, options in WAYS.items():
            quantize = ["-m", "cbq.cli", "quantize", f"{folder}/model", "--calib", "wikitext2"]
            short = ["--preset", "rtn", "--search", "none", "--segments", "4", "--length", "128"]
            out = ["-o", f"{folder}/{way.replace(' ', '_')}"]
            peaks[way] = peak_own_memory([sys.executable, *quantize, *short, *options, *out])
            print(f"{way}: {peaks[way]:.0f} MB", flush=True)
    results = {"parameters_millions": parameters, "layers": layers, "peak_mb": peaks}
    save_benchmark("cbq_memory", results, distributions=("torch", "transformers", "safetensors"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
