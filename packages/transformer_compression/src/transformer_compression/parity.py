"""Reads recordings of the methods' official code (see papers_shared.parity).

By content: ``kind`` says what a case is. The readers of a family stand beside its methods, in
``<family>/parity.py`` as ``KINDS``: kind -> function(case) that yields parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_error,
    name_seeded_state_dict,
    no_reader,
    seeded_input,
    values_error,
)

CaseReader = Callable[[Case], Iterable[Part]]
FAMILIES = ("quantize", "prune", "distill", "efficient")
DESCRIPTIONS = {"about", "tolerance", "library_versions"}
# Kinds whose recordings hold the noise of a factorisation or a long sum; the file's `tolerance`.
TOLERANCES = {"gptq": 1e-4, "sparsegpt": 1e-4, "repq": 1e-4, "retention": 5e-5}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; sections and kinds it does not know fail."""
    readers = _readers()
    for section, content in recording.items():
        if section == "cases":
            for index, case in enumerate(content):
                kind = case.get("kind")
                reader = readers.get(kind, partial(no_reader, f"kind {kind!r}"))
                yield case.get("case", f"case {index}"), partial(reader, case)
        elif section == "param_counts":
            for host, count in content.items():
                yield f"parameters of {host}", partial(_parameters, host, count)
        elif section == "vit_params_and_macs":
            for name, (count, macs) in content.items():
                yield f"size of {name}", partial(_vision_size, name, count, macs)
        elif section not in DESCRIPTIONS:
            yield section, partial(no_reader, f"section {section!r}")


def _readers() -> dict[str, CaseReader]:
    readers: dict[str, CaseReader] = {}
    for family in FAMILIES:
        readers |= import_module(f"transformer_compression.{family}.parity").KINDS
    return readers


# --- for the families' readers -------------------------------------------------------------------


def tolerance(case: Case) -> float:
    """What the file allows for this kind of case."""
    return TOLERANCES.get(case["kind"], 1e-5)


def tensors(case: Case) -> dict[str, Tensor]:
    """The case's inputs and state, by the part of the name after the tag.

    Names ending ``.weight`` or ``.bias``, and all of ``state``, are seeded as parameters; the
    others as inputs.
    """
    shapes = {**case.get("inputs", {})}
    state = {name: shapes.pop(name) for name in list(shapes) if name.endswith((".weight", ".bias"))}
    state |= case.get("state", {})
    empty = {name: torch.empty(shape) for name, shape in state.items()}
    found = dict(name_seeded_state_dict(empty))
    found |= {name: seeded_input(name, tuple(shape)) for name, shape in shapes.items()}
    return {name.partition(".")[2]: value for name, value in found.items()}


def compare(case: Case, ours: Mapping[str, Any], *, exact: Iterable[str] = ()) -> Iterator[Part]:
    """Every recorded output beside ours.

    Args:
        case: of the recording; ``max_change_of_output`` and ``max_diff`` are noise: ours has to
            stay below 1e-4.
        ours: name -> tensor, number or list; all recorded names must be there.
        exact: names that have to be equal.
    """
    exact = set(exact)
    for name, recorded in case["outputs"].items():
        value = ours[name]
        if name in ("max_change_of_output", "max_diff"):
            yield name, abs(float(value)), 1e-4
        elif isinstance(recorded, Mapping):
            yield name, fingerprint_error(torch.as_tensor(value), recorded), tolerance(case)
        elif name in exact:
            same = torch.equal(
                torch.as_tensor(value).flatten(), torch.as_tensor(recorded).flatten()
            )
            yield name, 0.0 if same else 1.0, 0.0
        else:
            yield name, values_error(value, recorded), tolerance(case)


# --- sizes ---------------------------------------------------------------------------------------


def _parameters(host: str, recorded: int) -> Iterator[Part]:
    from transformer_compression.hosts import count_host_parameters

    yield "parameters", abs(count_host_parameters(host) - recorded), 0


def _vision_size(name: str, parameters: int, macs: int) -> Iterator[Part]:
    from transformer_compression.hosts import vision_size

    ours = vision_size(name)
    yield "parameters", abs(ours[0] - parameters), 0
    yield "MACs", abs(ours[1] - macs), 0
