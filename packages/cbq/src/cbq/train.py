"""``cbq quantize MODEL --bits w4a16 --calib text.txt -o out/``: the script behind the command."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from cbq.cli import main as command_line

    raise SystemExit(command_line(["quantize", *sys.argv[1:]]))

import errno
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from cbq.config import QuantizeConfig
from cbq.output import is_quantized, runtimes, save_quantized
from cbq.pipeline import Quantized, quantize
from cbq.settings import Settings, parse_bits, preset
from papers_shared.devices import pick_device
from papers_shared.language_models import (
    calibration_windows,
    load_language_model,
    tokenize,
    wikitext2,
)
from papers_shared.tables import budget as budgets

_PLAIN = (
    "steps", "batch", "window", "overlap", "search", "start", "rounding", "rank", "optimizer",
    "lr_rounding", "lr_steps", "lr_activations", "l2", "kl", "commitment", "held_out", "precision",
)  # fmt: skip
_LEARNED = ("rounding", "steps", "activations")


def make_settings(config: QuantizeConfig) -> Settings:
    """The preset with what the options change.

    Raises:
        ValueError: an option out of range.
    """
    changes: dict[str, Any] = parse_bits(config.bits)
    changes |= {n: v for n in _PLAIN if (v := getattr(config, n)) is not None}
    changes |= {n: getattr(config, n) for n in ("rotate", "attention", "symmetric", "seed")}
    if config.window == 1 and config.overlap is None:
        changes["overlap"] = 0
    if config.cfp is not None:
        changes["truncate"] = config.cfp in ("weights", "both")
        changes["scale_channels"] = config.cfp in ("activations", "both")
    if config.cfp_form is not None:
        changes["cfp"] = config.cfp_form
    if config.terms is not None:
        changes["clean_term"] = config.terms in ("both", "clean")
        changes["same_term"] = config.terms in ("both", "same")
    if config.train:
        if unknown := set(config.train) - set(_LEARNED):
            raise ValueError(f"--train {sorted(unknown)[0]}: expected some of {_LEARNED}")
        changes |= {f"learn_{name}": name in config.train for name in _LEARNED}
    return preset(config.preset, **changes)


def read_text(name: str, part: str) -> str:
    """The text of a file, or of WikiText-2's ``part``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8.
    """
    if name == "wikitext2":
        return wikitext2(part)
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no text file {name}; give a file, or wikitext2")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error}") from None


def show(done: int, total: int, what: str) -> None:
    """A line a window, on stderr."""
    print(f"window {done} of {total}: {what}", file=sys.stderr, flush=True)


def train(config: QuantizeConfig) -> Quantized:
    """Quantize and write; resumes from the work folder.

    Raises:
        ValueError: unsupported model, short text, or options that do not fit.
        FileNotFoundError: the model or the text is not there.
        OSError: the disk is full; what is done stays in the work folder.
    """
    settings = make_settings(config)
    budget = budgets.parse(config.budget) if config.budget else None
    text = read_text(config.calib, "valid")
    device = pick_device(config.device)
    dtype = None if config.dtype == "auto" else torch.float32
    model, tokenizer = load_language_model(config.model, dtype=dtype)
    tokens = tokenize(tokenizer, text)
    wanted = config.segments * config.length
    if len(tokens) < wanted:
        raise ValueError(
            f"the calibration text has {len(tokens)} tokens, {config.segments} segments of "
            f"{config.length} take {wanted}: give more text, or fewer --segments"
        )
    segments = calibration_windows(
        tokens, count=config.segments, length=config.length, seed=config.seed
    )
    work = config.work or config.output / "work"
    try:
        result = quantize(
            model,
            segments,
            settings,
            device=device,
            work=work,
            offload=config.offload,
            budget=budget,
            progress=show,
        )
        save_quantized(
            result, config.output, kind=config.format, tokenizer=tokenizer, source=config.model
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"the disk is full; make room and start the same command again: {work} holds "
                f"what is done"
            ) from error
        raise
    if config.work is None:
        shutil.rmtree(work)
    return result


def main(config: QuantizeConfig) -> int:
    """Quantize, and say where the model lies and what reads it."""
    if config.work is None and is_quantized(config.output):
        raise ValueError(f"{config.output} holds a quantized model; take another folder")
    result = train(config)
    fallen = sum(not report["kept"] for report in result.reports)
    settings = result.settings
    print(f"{config.output}: {len(result.weights)} layers, {settings.bits} bits")
    if fallen:
        print(f"{fallen} of {len(result.reports)} windows kept earlier codes (see cbq.json)")
    kinds = runtimes(config.format, settings.bits, settings.act_bits, symmetric=settings.symmetric)
    print(f"read by: {kinds}")
    return 0
