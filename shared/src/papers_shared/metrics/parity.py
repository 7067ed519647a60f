"""Reads recordings of basicsr's image functions (``basicsr_metrics.json``).

Each top-level section is a kind of case. A case is understood through its content alone (the kind,
its arguments, how its picture is made), and what is not understood fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from papers_shared import images
from papers_shared.data import degradations
from papers_shared.data.resize import imresize
from papers_shared.metrics.restoration import NIQE, PSNR, SSIM
from papers_shared.parity import CannotRun, Part, fingerprint_difference, normal

Case = Mapping[str, Any]
# These keys, and all plain texts, tell about a recording; every other key is a section of cases.
_ABOUT = {"note", "image_rule", "fingerprint", "tolerance"}


def checks(recording: Case) -> Iterator[tuple[str, Callable[[], Iterable[Part]]]]:
    """Yield (case, run) for everything that a recording holds.

    Args:
        recording: the parsed JSON file.

    Returns:
        pairs of a case's name and a function that gives its parts (what is compared, absolute
        error, tolerance) and raises ValueError where the case cannot be interpreted.
    """
    tolerances = recording.get("tolerance", {})
    for kind, section in recording.items():
        if kind in _ABOUT or (kind not in _READERS and isinstance(section, str)):
            continue
        for label, case in _cases(kind, section):
            yield f"{kind}{label}", _runner(kind, case, tolerances)


def _cases(kind: str, section: Any) -> Iterator[tuple[str, Any]]:
    if kind == "color" and isinstance(section, Mapping) and "image" in section:
        for name, entry in section.items():
            if name != "image":
                yield f" {name}", {"name": name, "image": section["image"], "output": entry}
    elif isinstance(section, Sequence) and not isinstance(section, str):
        for number, case in enumerate(section):
            yield f"[{number}]{_label(case)}", case
    else:
        yield "", section


def _label(case: Any) -> str:
    shown = ("fn", "scale", "quality", "seed", "crop_border") if isinstance(case, Mapping) else ()
    values = {key: case[key] for key in shown if key in case}
    return "".join(
        f" {key} {value:.4g}" if isinstance(value, float) else f" {key} {value}"
        for key, value in values.items()
    )


def _runner(kind: str, case: Any, tolerances: Case) -> Callable[[], Iterable[Part]]:
    def run() -> Iterable[Part]:
        if kind not in _READERS:
            raise ValueError(f"no reader for section {kind!r}; known: {', '.join(_READERS)}")
        if not isinstance(case, Mapping):
            raise ValueError(f"a case of {kind!r} is a mapping, got {type(case).__name__}")
        read, keys = _READERS[kind]
        if unknown := set(case) - keys - {"note"}:
            raise ValueError(f"{kind}: cannot interpret the key {sorted(unknown)[0]!r}")
        try:
            return list(read(case, tolerances))
        except KeyError as error:
            raise ValueError(f"{kind}: the key {error} is missing") from None
        except ImportError as error:
            if "basicsr" not in str(error):
                raise
            raise CannotRun("needs basicsr (Python < 3.13)") from None

    return run


def _picture(spec: Sequence[Any]) -> Tensor:
    """The recording's ``image_rule``: uint8 (3, H, W), channels in the order stored.

    A pattern of sines by row, column and channel, plus seeded noise.
    """
    tag, height, width, noise = spec
    z = normal(f"img:{tag}", (height, width, 3)).double()
    row = torch.arange(height, dtype=torch.float64)[:, None, None]
    column = torch.arange(width, dtype=torch.float64)[None, :, None]
    channel = torch.arange(3, dtype=torch.float64)
    waves = torch.sin(0.13 * row + 0.2 * channel) * torch.cos(0.09 * column + 0.31 * channel)
    levels = (127.5 + 80 * waves + noise * z).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(2, 0, 1)


def _unit(picture: Tensor) -> Tensor:
    return picture.float() / 255


def _bgr(picture: Tensor) -> Tensor:
    """BGR <-> RGB."""
    return picture.flip(-3)


def _hwc(image: Tensor) -> Tensor:
    """basicsr's layout, in which its outputs were recorded."""
    return image.permute(1, 2, 0)


def _psnr_ssim(case: Case, tolerances: Case) -> Iterator[Part]:
    a, b = (_bgr(_picture(case[key])) for key in ("a", "b"))
    for key, recorded in case.items():
        if not (parsed := re.fullmatch(r"(psnr|ssim)(_pt)?_(bgr|y)", key)):
            continue
        name, floating, channels = parsed.groups()
        kind: Callable[..., PSNR | SSIM] = PSNR if name == "psnr" else SSIM
        metric = kind(
            channels="y" if channels == "y" else "rgb",
            crop_border=case["crop_border"],
            quantize=not floating,
        )
        ours = metric(_unit(a), _unit(b)).item()
        # Two infinite values are equal; their difference is not a number.
        yield key, 0.0 if ours == recorded else abs(ours - recorded), tolerances[name]


def _color(case: Case, tolerances: Case) -> Iterator[Part]:
    pattern = r"(rgb2ycbcr|bgr2ycbcr|ycbcr2rgb|ycbcr2bgr)(_y_only)?_(uint8|float)"
    parsed = re.fullmatch(pattern, case["name"])
    if not parsed or (parsed[2] and parsed[1].startswith("ycbcr")):
        raise ValueError(f"color: cannot interpret the entry {case['name']!r}")
    function, y_only, kind = parsed.groups()
    picture = _picture(case["image"])
    if kind == "float":
        picture = _unit(picture)
    if function.startswith("bgr"):
        picture = _bgr(picture)
    if y_only:
        ours = images.rgb_to_y(picture)[0]
    elif function.endswith("ycbcr"):
        ours = _hwc(images.rgb_to_ycbcr(picture))
    else:
        overflow = case["output"].get("overflow", "modulo 256")
        if overflow not in ("modulo 256", "clip"):
            raise ValueError(f"color: cannot interpret overflow {overflow!r}")
        ours = images.ycbcr_to_rgb(picture, wrap=overflow == "modulo 256")
        ours = _hwc(_bgr(ours) if function.endswith("bgr") else ours)
    yield case["name"], fingerprint_difference(ours, case["output"]), tolerances["color"]


def _imresize(case: Case, tolerances: Case) -> Iterator[Part]:
    if case["input"] != "uint8/255 float32 HWC":
        raise ValueError(f"imresize: cannot interpret input {case['input']!r}")
    ours = imresize(_unit(_picture(case["image"])), case["scale"], antialias=case["antialiasing"])
    difference = fingerprint_difference(_hwc(ours), case["output"])
    yield "output", difference, tolerances["imresize"]
    if "output_uint8_sum" in case:
        total = images.to_uint8(ours).sum(dtype=torch.int64).item()
        difference = abs(total - case["output_uint8_sum"])
        yield "output_uint8_sum", difference, tolerances["imresize_uint8_sum"]


def _niqe(case: Case, tolerances: Case) -> Iterator[Part]:
    if case["convert_to"] != "y":
        raise ValueError(f"niqe: cannot interpret convert_to {case['convert_to']!r}")
    ours = NIQE(crop_border=case["crop_border"])(_bgr(_picture(case["image"]))).item()
    yield "value", abs(ours - case["value"]), tolerances["niqe"]


def _kernels(case: Case, tolerances: Case) -> Iterator[Part]:
    names = {function: name for name, function in degradations.KERNELS.items()}
    if case["fn"] not in names:
        raise ValueError(f"kernels: cannot interpret fn {case['fn']!r}")
    ours = degradations.blur_kernel(names[case["fn"]], **case["args"])
    yield "output", fingerprint_difference(ours, case["output"]), tolerances["kernels"]


def _random_kernels(case: Case, tolerances: Case) -> Iterator[Part]:
    ours = degradations.random_blur_kernel(
        dict(zip(case["kernel_list"], case["kernel_prob"], strict=True)),
        kernel_size=case["kernel_size"],
        sigma_range=case["sigma"],
        rotation_range=case["rotation"],
        generalized_beta_range=case["betag"],
        plateau_beta_range=case["betap"],
        noise_range=case["noise_range"],
        seed=case["seed"],
    )
    yield "output", fingerprint_difference(ours, case["output"]), tolerances["random_kernels"]


def _jpeg(case: Case, tolerances: Case) -> Iterator[Part]:
    ours = degradations.jpeg(_bgr(_unit(_picture(case["image"]))), case["quality"])
    difference = fingerprint_difference(_hwc(_bgr(ours)), case["output"])
    yield "output", difference, tolerances["jpeg"]


def _noise(case: Case, tolerances: Case) -> Iterator[Part]:
    functions: dict[str, Callable[..., Tensor]] = {
        "random_add_gaussian_noise": degradations.random_gaussian_noise,
        "random_add_poisson_noise": degradations.random_poisson_noise,
    }
    if case["fn"] not in functions:
        raise ValueError(f"noise: cannot interpret fn {case['fn']!r}")
    ours = functions[case["fn"]](
        _bgr(_unit(_picture(case["image"]))),
        seed=case["numpy_seed"],
        **{_NOISE_ARGUMENTS.get(key, key): value for key, value in case["args"].items()},
    )
    difference = fingerprint_difference(_hwc(_bgr(ours)), case["output"])
    yield "output", difference, tolerances["noise"]


_NOISE_ARGUMENTS = {"gray_prob": "grey_probability"}


def _crop_augment(case: Case, tolerances: Case) -> Iterator[Part]:
    picture = _picture(case["image"])
    parsed = re.fullmatch(r"every (\d+)(?:st|nd|rd|th) pixel of image", case["lq"])
    if not parsed:
        raise ValueError(f"crop_augment: cannot interpret lq {case['lq']!r}")
    step = int(parsed[1])
    high, low = degradations.paired_random_crop(
        picture,
        picture[:, ::step, ::step],
        patch=case["gt_patch"],
        scale=case["scale"],
        seed=case["random_seed"],
    )
    for name, ours in (("gt", high), ("lq_out", low)):
        yield name, fingerprint_difference(_hwc(ours), case[name]), tolerances["crop_augment"]


# kind -> its reader and all keys that the reader interprets
_READERS: dict[str, tuple[Callable[[Case, Case], Iterator[Part]], set[str]]] = {
    "psnr_ssim": (
        _psnr_ssim,
        {"a", "b", "crop_border"}
        | {f"{m}{pt}_{c}" for m in ("psnr", "ssim") for pt in ("", "_pt") for c in ("bgr", "y")},
    ),
    "color": (_color, {"name", "image", "output"}),
    "imresize": (
        _imresize,
        {"image", "scale", "antialiasing", "input", "output", "output_uint8_sum"},
    ),
    "niqe": (_niqe, {"image", "crop_border", "convert_to", "value"}),
    "kernels": (_kernels, {"fn", "args", "output"}),
    "random_kernels": (
        _random_kernels,
        {"seed", "kernel_list", "kernel_prob", "kernel_size", "sigma", "betag", "betap"}
        | {"rotation", "noise_range", "output"},
    ),
    "jpeg": (_jpeg, {"image", "quality", "output"}),
    "noise": (_noise, {"fn", "image", "numpy_seed", "args", "output"}),
    "crop_augment": (
        _crop_augment,
        {"image", "lq", "random_seed", "gt_patch", "scale", "gt", "lq_out"},
    ),
}
