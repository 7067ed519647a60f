"""Reads the recorded degradation primitives of ResShift's pipeline (``resshift.json``).

An entry is understood through its content alone: the function, its arguments, how its picture is
made. What is not understood raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from papers_shared._basicsr import basicsr_module
from papers_shared.data import degradation_stages, degradations
from papers_shared.parity import CannotRun, Part, fingerprint_error, seeded_input

Case = Mapping[str, Any]
_FINGERPRINT = {"shape", "mean", "std", "abs_max", "picked"}
_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda t: t,
    "sigmoid of the seeded input": torch.sigmoid,
    "tanh of the seeded input": torch.tanh,
}
_KERNELS = {function: name for name, function in degradations.KERNELS.items()}


def degradation_parts(case: Case, *, tolerance: float) -> Iterator[Part]:
    """Compare every recorded primitive with ours.

    Args:
        case: a section of ``kind`` degradation: pictures (``name``, ``shape``, ``transform``),
            and entries, plain or in groups, with ``fn``, ``args``, ``input`` and a fingerprint.
        tolerance: largest error, relative to the recorded largest magnitude.

    Yields:
        (entry's name, error, tolerance).

    Raises:
        ValueError: an entry that cannot be interpreted, or none at all.
        CannotRun: basicsr is not installed.
    """
    entries = dict(_entries(case))
    if not entries:
        raise ValueError("the section holds no entry with a function ('fn')")
    for name, entry in entries.items():
        try:
            value = _value(entry, case, entries)
        except ImportError:
            raise CannotRun("needs basicsr (Python < 3.13)") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: cannot be interpreted: {error!r}") from None
        yield name, fingerprint_error(value, entry), tolerance


def _entries(group: Case) -> Iterator[tuple[str, Case]]:
    for name, entry in group.items():
        if name == "kind" and entry == "degradation":
            continue
        if not isinstance(entry, Mapping):
            raise ValueError(f"{name}: {entry!r} is neither an entry nor a group of entries")
        if "fn" in entry:
            if unknown := entry.keys() - {"fn", "args", "input"} - _FINGERPRINT:
                raise ValueError(f"{name}: unknown {sorted(unknown)[0]!r}")
            yield name, entry
        elif "transform" not in entry:  # not a picture either: a group
            yield from _entries(entry)


def _value(entry: Case, case: Case, entries: Mapping[str, Case]) -> Tensor:
    function, args = entry["fn"], dict(entry["args"])
    if function in _KERNELS and "input" not in entry:
        return degradations.blur_kernel(_KERNELS[function], **args)
    if function not in _ON_IMAGES:
        known = ", ".join([*_KERNELS, *_ON_IMAGES])
        raise ValueError(f"unknown function {function!r}; known: {known}")
    if "kernel" in args:  # the name of another entry
        args["kernel"] = _value(entries[args["kernel"]], case, entries)
    return _ON_IMAGES[function](_image(entry["input"], case), **args)


def _image(source: Case, case: Case) -> Tensor:
    if unknown := source.keys() - {"of", "interpolate"}:
        raise ValueError(f"input: unknown {sorted(unknown)[0]!r}")
    picture = case[source["of"]]
    if picture["transform"] not in _TRANSFORMS:
        raise ValueError(f"unknown transform {picture['transform']!r}")
    seeded = seeded_input(picture["name"], tuple(picture["shape"]))
    image = _TRANSFORMS[picture["transform"]](seeded)
    if "interpolate" in source:
        image = functional.interpolate(image, **source["interpolate"])
    return image


def _usm_sharp(image: Tensor, *, radius: int, sigma: float) -> Tensor:
    return basicsr_module("utils.img_process_util").USMSharp(radius, sigma)(image)


def _jpeg(image: Tensor, *, differentiable: bool, quality: list[float]) -> Tensor:
    if differentiable:
        raise ValueError("DiffJPEG with differentiable rounding is not part of the pipeline")
    return degradation_stages.jpeg(image, quality)


def _interpolate(image: Tensor, *, scale_factor: float, mode: str) -> Tensor:
    return degradation_stages.resize(image, mode, scale=scale_factor)


_ON_IMAGES: dict[str, Callable[..., Tensor]] = {
    "filter2D": degradation_stages.blur,
    "USMSharp": _usm_sharp,
    "DiffJPEG": _jpeg,
    "interpolate": _interpolate,
}
