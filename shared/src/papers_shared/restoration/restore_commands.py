"""Options of the commands that restoration networks share. No torch: ``--help`` answers at once.

A package subclasses them for its own defaults: which of the shipped weights, which task.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option
from papers_shared.restoration.task import Kind

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "float16", "bfloat16"]
WEIGHTS_HELP = (
    "weights that ship with the package (see the README for their names; default: those for this "
    "command), a file in the authors' layout, one that train wrote, or a folder of save_pretrained"
)
PRECISION_HELP = "of the network; bfloat16 has 8 bits for a value: it shows in smooth areas"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network a command runs, and how."""

    weights: str = option("", WEIGHTS_HELP)
    variant: str = option("", "network of a file that does not say it itself; guessed if left out")
    merge: bool = option(True, "run the merged (re-parameterised) form: the same result, sooner")
    precision: Precision = option("float32", PRECISION_HELP)
    device: Device = option("auto", "where to compute")


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(NetworkConfig):
    """Restore photos: any size, grey, alpha, 16 bits; results are PNG files beside them.

    A folder gives the same results with any number of processes (accelerate launch).
    """

    photos: list[Path] = option(..., "pictures or folders of pictures", positional=True)
    output: Path | None = option(None, "file or folder of the results", short="-o")
    tile: int | None = option(None, "side of the tiles in pixels of the photo (default: by memory)")
    overlap: int | None = option(
        None, "of the tiles in the photo's pixels (default: the network's)"
    )
    batch_size: int = option(1, "tiles at once")
    recursive: bool = option(False, "also photos in subfolders")
    overwrite: bool = option(True, "write results that are there already again")
    max_pixels: int | None = option(None, "largest result (default: by memory)")


@dataclass(frozen=True, kw_only=True)
class EnlargeConfig(RestoreConfig):
    """Enlarge photos: any size, grey, alpha, 16 bits; results are PNG files beside them.

    A folder gives the same results with any number of processes (accelerate launch).
    """

    scale: int | None = option(None, "of the result, if smaller than the network's")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a network as ONNX, for any batch and any size, checked against PyTorch."""

    weights: str = option("", WEIGHTS_HELP)
    variant: str = option("", "network of a file that does not say it itself; guessed if left out")
    task: Kind | None = option(None, "of a file that does not say what it undoes")
    output: Path = option(Path("model.onnx"), "file to write", short="-o")
    opset: int = option(18, "version of ONNX's operators, 18 or later")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Time a network on this machine: milliseconds, pictures a second, peak memory."""

    weights: str = option("", "as for the other commands; left out: fresh weights of --variant")
    variant: str = option("", "name of a network; see the README")
    scale: int | None = option(None, "of a variant that enlarges (default: its own)")
    size: tuple[int, int] = option((1280, 720), "width and height of the result")
    runs: int = option(10, "rounds that count")
    warmup: int = option(2, "calls before them")
    unmerged: bool = option(False, "also the form of training")
    compile: bool = option(False, "also through torch.compile")
    channels_last: bool = option(False, "also with channels last in memory")
    precision: Precision = option("float32", PRECISION_HELP)
    threads: int | None = option(None, "of the CPU (default: torch's choice)")
    device: Device = option("auto", "where to compute")
    output: Path | None = option(None, "JSON file of the figures", short="-o")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(NetworkConfig):
    """Measure a network on pictures by the protocol of its task."""

    data: list[str] = option([], "sets of pictures, by name or folder (default: the task's)")
    task: Kind | None = option(None, "what to undo (default: what the weights are made for)")
    level: float | None = option(None, "sigma or JPEG quality (default: the weights')")
    first: int | None = option(None, "only the first pictures of each set, this many")
    tile: int | None = option(None, "side of the tiles in pixels (default: whole pictures)")
    seed: int = option(0, "of the noise")
    output: Path | None = option(None, "JSON file of the scores", short="-o")
