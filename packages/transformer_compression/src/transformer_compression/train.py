"""``transformer-compression apply``: the script that makes the compressed model."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from transformer_compression.cli import main as command_line

    raise SystemExit(command_line(["apply", *sys.argv[1:]]))

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import yaml

from transformer_compression.config import ApplyConfig
from transformer_compression.core import Data, Method
from transformer_compression.methods import find_method

SHORTHANDS = ("pattern", "bits", "group", "ratio", "count")


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` as a mapping; values are read as YAML (numbers, true, text).

    Raises:
        ValueError: not of that form.
    """
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r}: expected name=value")
        options[name.replace("-", "_")] = yaml.safe_load(value)
    return options


def steps_of(config: ApplyConfig) -> list[tuple[Method, dict[str, Any]]]:
    """The methods and their options; one given on the command line goes to all that have it.

    Raises:
        ValueError: no method takes an option that was given.
    """
    given = {
        name: getattr(config, name) for name in SHORTHANDS if getattr(config, name) is not None
    }
    if config.sparsity is not None:
        if "pattern" in given:
            raise ValueError("--sparsity and --pattern say the same; give one")
        given["pattern"] = str(config.sparsity)
    given |= parse_options(config.set)
    methods = [find_method(name) for name in config.method]
    for name in given:
        if not any(name in method.options for method in methods):
            known = "; ".join(f"{m.name}: {', '.join(m.options) or 'none'}" for m in methods)
            flag = "--sparsity" if name == "pattern" and config.sparsity else f"--{name}"
            raise ValueError(f"no method here takes {flag}; options are {known}")
    return [
        (method, {name: value for name, value in given.items() if name in method.options})
        for method in methods
    ]


def main(config: ApplyConfig) -> int:
    """Compress, say what it did, and write the result."""
    steps = steps_of(config)  # wrong options are found before anything is loaded

    from papers_shared.devices import pick_device
    from transformer_compression import storage
    from transformer_compression.compressing import compress_in_turn
    from transformer_compression.eval import evaluate, show
    from transformer_compression.models import Loaded, language_data, load_model, vision_data

    loaded = load_model(config.model, device=pick_device(config.device))
    for method, _ in steps:
        if loaded.domain not in method.domains:
            raise ValueError(
                f"{method.name} works on {' and '.join(method.domains)} models; "
                f"{config.model} is a {loaded.domain} model"
            )
    data = Data(tokenizer=loaded.tokenizer)
    if any(method.data for method, _ in steps):
        if loaded.domain == "language":
            data = language_data(
                loaded,
                text=config.text,
                windows=config.windows,
                length=config.length,
                seed=config.seed,
            )
        else:
            data = vision_data(loaded, pictures=config.pictures, seed=config.seed)
    named = []
    for method, options in steps:
        if "seed" in method.options:
            options = {"seed": config.seed, **options}
        named.append((method.name, options))
    reference = copy.deepcopy(loaded.model) if config.evaluate else None
    model, report = compress_in_turn(loaded.model, named, data)
    print(f"{' + '.join(report.methods)} on {config.model}, {sum(report.seconds):.1f} s")
    print(
        f"  parameters: {report.parameters_before:,} -> {report.parameters:,} "
        f"({report.nonzero:,} not zero)"
    )
    print(f"  bytes by the table's rule: {report.bytes_before:,.0f} -> {report.bytes:,.0f}")
    for note in dict.fromkeys(report.notes):
        print(f"  {note}")
    if config.evaluate:
        measure = partial(evaluate, text=None, window=512, windows=10, questions=0, pictures=1000)
        both: dict[str, Any] = {"dense": reference, "compressed": model}
        for name, one in both.items():
            print(f"{name}:")
            shown = Loaded(one.eval(), loaded.domain, loaded.tokenizer)
            print(show(measure(shown, reference=reference)))
    if config.output is not None:
        if config.format == "model":
            storage.save(model, report, config.output, tokenizer=loaded.tokenizer)
        else:
            storage.export(
                model, report, config.output, format=config.format, tokenizer=loaded.tokenizer
            )
            if hasattr(model.config, "quantized_inputs"):
                print(
                    "  transformer-compression alone quantizes the inputs too; other programs "
                    "read the weights"
                )
        print(f"written to {config.output}")
    return 0
