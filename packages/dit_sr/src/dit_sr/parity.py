"""Reads recordings of the authors' DiT-SR code (see papers_shared.parity).

Cases are understood as those of ResShift (papers_shared.diffusion.parity); AdaFM stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from dit_sr.model import build
from papers_shared.diffusion.parity import cases, full_size, inputs_of, network
from papers_shared.kernels.adafm import adafm
from papers_shared.parity import Part, fingerprint_error

Case = Mapping[str, Any]
BUILDERS = {"DiTSRModel": build}


def checks(recording: Case) -> Iterator[tuple[str, Callable[[], Iterable[Part]]]]:
    """Every case of a recording, to be run; what it does not know fails."""
    kinds: dict[str, Callable[..., Iterable[Part]]] = {
        "network": partial(network, BUILDERS),
        "full_size": partial(full_size, BUILDERS),
        "adafm": _adafm,
    }
    yield from cases(recording, kinds)


def _adafm(case: Case, *, limit: Callable[[str], float]) -> Iterator[Part]:
    given = inputs_of(case)
    for backend in ("reference", "matrix"):
        out = adafm(given["x"], given["scale"], patch_size=case["p"], backend=backend)
        yield backend, fingerprint_error(out, case["output"]), limit("adafm")
