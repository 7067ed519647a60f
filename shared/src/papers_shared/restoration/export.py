"""ONNX files of restoration networks: any batch, any height, any width, checked before they stay.

The file takes and gives pictures in [0, 1], not clamped, as ``Restorer`` does. Inside, the network
sees sides that are whole multiples of its alignment, so that its windows are no matter of the
size: padding and cropping are put around it as ONNX operators. It is exported as a function of
cells, squares of that many pixels laid into channels: their numbers are then the symbols, sides are
multiples of a symbol, and what windows divide them into stays simple (with the sides as symbols
the export of IPT-V2 takes thirty times as long). A network whose fast operators
cannot be exported has a method ``export_mode()``, a context manager within which ``forward`` uses
torch's own operators alone and treats sizes as symbols.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from papers_shared.checkpoints import atomic_path
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.prepare import open_restorer
from papers_shared.restoration.restore_commands import ExportConfig

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4  # of the range of pictures, or of the results' where these go beyond
FIRST_OPSET = 18
LARGEST_SIDE = 2**15


def export_onnx(restorer: Restorer, path: Path | str, *, opset: int = FIRST_OPSET) -> float:
    """Write the merged form of a network as ONNX, once it agrees with PyTorch.

    Args:
        restorer: in whatever form, on the CPU in float32.
        path: of the file; its metadata tell paper, task, configuration and value range.
        opset: version of ONNX's operators, 18 or later.

    Returns:
        the largest difference from PyTorch over ``check_sizes``.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is missing.
        ValueError: the opset; a network that cannot be exported; results that differ by more
            than ``TOLERANCE``: then there is no file.
    """
    path = Path(path)
    if opset < FIRST_OPSET:
        raise ValueError(f"opset {opset}: expected {FIRST_OPSET} or later")
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: expected a name that ends with .onnx")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it to write {path.name}")
    onnx = _onnx()
    merged = restorer.merge().requires_grad_(False)
    model = _any_size(_core(merged, opset), restorer.multiple, restorer.scale)
    _describe(model, merged)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    difference = check_onnx(data, merged)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return difference


def check_onnx(model: bytes | str, restorer: Restorer) -> float:
    """The largest difference between an ONNX model and a network, in units of the range.

    Args:
        model: the file's content, or its path.
        restorer: on the CPU in float32.

    Raises:
        ValueError: it is above ``TOLERANCE``.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch, height, width in check_sizes(restorer.multiple):
        x = _picture((batch, restorer.channels, height, width), generator)
        with torch.no_grad():
            wanted = restorer(x)
        (made,) = session.run(None, {"image": x.numpy()})
        if made.shape != tuple(wanted.shape):
            raise ValueError(
                f"onnxruntime gives {made.shape} for a picture of {tuple(x.shape)}, PyTorch "
                f"{tuple(wanted.shape)}"
            )
        reach = max(1.0, wanted.abs().max().item())
        difference = (torch.from_numpy(made) - wanted).abs().max().item() / reach
        if not difference <= TOLERANCE:
            raise ValueError(
                f"onnxruntime and PyTorch differ by {difference:.1e} of the range on a picture of "
                f"{width} x {height}; allowed is {TOLERANCE:.0e}; no file was kept"
            )
        largest = max(largest, difference)
    return largest


def check_sizes(multiple: int) -> list[tuple[int, int, int]]:
    """(batch, height, width): whole multiples, odd sides, one window, less than its half."""
    m = multiple
    return [
        (2, 3 * m, 2 * m),
        (1, 2 * m + 3, m + 5),
        (3, max(1, m - 1), 2 * m + 1),
        (1, 1, m // 2 + 1),
    ]


def _picture(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Smooth with some noise, as photos are: white noise drives attention to its extremes."""
    batch, channels, height, width = shape
    coarse = torch.rand(batch, channels, height // 8 + 2, width // 8 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth + 0.02 * torch.randn(shape, generator=generator)).clamp(0, 1)


def _onnx() -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export needs {error.name}: pip install 'papers-shared[onnx]'") from None
    return onnx


class _ExplicitAttention(TorchFunctionMode):
    """Attention as products and a softmax: the exporter's own takes four axes only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    if dropout_p or is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
        raise ValueError("attention with dropout, causal or boolean masks is not exported")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query * scale) @ key.transpose(-1, -2)
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ value


class _OfCells(nn.Module):
    """The network on pictures whose cells are laid into channels."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.restorer, self.side = restorer, restorer.multiple

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C side^2, H / side, W / side) as of pixel_unshuffle -> (B, C, H s, W s)."""
        return self.restorer(F.pixel_shuffle(cells, self.side))


def _core(restorer: Restorer, opset: int) -> onnx.ModelProto:
    """The network of cells: input ``cells``, output ``large``."""
    most = LARGEST_SIDE // restorer.multiple
    # Three at least: with one window, or one between windows, networks and shape rules go other
    # ways. The graph does for fewer, too, which ``check_onnx`` sees to.
    rows, columns = (torch.export.Dim(name, min=3, max=most) for name in ("rows", "columns"))
    shape = {0: torch.export.Dim("batch", min=1, max=LARGEST_SIDE), 2: rows, 3: columns}
    given = torch.rand(2, restorer.channels * restorer.multiple**2, 4, 3)
    try:
        with _quiet(), torch.no_grad():
            with _export_mode(restorer.network), _ExplicitAttention():
                program = torch.export.export(_OfCells(restorer), (given,), dynamic_shapes=(shape,))
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["cells"],
                output_names=["large"],
                opset_version=opset,
            )
    except (RuntimeError, ValueError, TypeError) as error:  # the exporter's own are all of these
        cause = " ".join(str(error).split())[:400]
        raise ValueError(
            f"{restorer.family.package}'s network cannot be exported: {cause}"
        ) from error
    assert made is not None
    return made.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what does not concern a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export_mode(network: nn.Module) -> contextlib.AbstractContextManager[Any]:
    mode = getattr(network, "export_mode", None)
    return contextlib.nullcontext() if mode is None else mode()


def _any_size(core: onnx.ModelProto, multiple: int, scale: int) -> onnx.ModelProto:
    """Padding and cells before the core, cropping after it: input ``image``, output ``restored``.

    A side is padded by reflection, by replication where it is too short for that, as
    ``papers_shared.inference.tiles.pad_to_multiple`` does.
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"size_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(*values: int, scalar: bool = False) -> str:
        sides = [] if scalar else [len(values)]
        tensor = helper.make_tensor("value", TensorProto.INT64, sides, values)
        return node("Constant", value=tensor)

    zero, one = constant(0, scalar=True), constant(1, scalar=True)
    shape = node("Shape", "image")
    padded, ends = "image", []
    for axis in (2, 3):
        side = node("Gather", shape, constant(axis, scalar=True), axis=0)
        added = node("Mod", node("Neg", side), constant(multiple, scalar=True))
        last = node("Sub", side, one)
        index = node("Range", zero, node("Add", side, added), one)
        mirrored = node("Sub", node("Mul", constant(2, scalar=True), last), index)
        beyond = node("Where", node("Less", added, side), mirrored, last)
        index = node("Where", node("Less", index, side), index, beyond)
        padded = node("Gather", padded, index, axis=axis)
        ends.append(node("Mul", side, constant(scale, scalar=True)))
    channels = core.graph.input[0].type.tensor_type.shape.dim[1].dim_value // multiple**2
    cells = node("SpaceToDepth", padded, blocksize=multiple)
    # ONNX puts the channels of a pixel side by side, torch the pixels of a channel.
    order = torch.arange(channels * multiple**2).view(multiple**2, channels).T.flatten().tolist()
    nodes.append(helper.make_node("Gather", [cells, constant(*order)], ["cells"], axis=1))
    ends = [node("Unsqueeze", end, constant(0)) for end in ends]
    crop = helper.make_node(
        "Slice",
        ["large", constant(0, 0), node("Concat", *ends, axis=0), constant(2, 3)],
        ["restored"],
    )
    made = core.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    body = list(core.graph.node)
    del core.graph.node[:], core.graph.input[:], core.graph.output[:]
    core.graph.node.extend([*nodes, *body, crop])
    for name, count, owner, factor in (
        ("image", channels, core.graph.input, ""),
        ("restored", made, core.graph.output, f"{scale}*" if scale > 1 else ""),
    ):
        sides = ["N", count, f"{factor}H", f"{factor}W"]
        owner.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
    return core


def _describe(model: onnx.ModelProto, restorer: Restorer) -> None:
    """Put into the file what it is."""
    from onnx import helper

    task = restorer.task
    model.doc_string = f"{restorer.family.package}: {task}; RGB or grey pictures in [0, 1]"
    model.producer_name = "papers_shared"
    told = {
        "paper": restorer.family.package,
        "task": json.dumps(task.to_dict()),
        "network": json.dumps(restorer.config.to_dict()),
        "range": "0..1",
        "scale": str(task.scale),
        "channels": str(task.channels),
        "multiple": str(restorer.multiple),
    }
    helper.set_model_props(model, told)


def run_export(config: ExportConfig, family: RestorationFamily) -> int:
    """Write a network as ONNX.

    Raises:
        FileNotFoundError: no such weights.
        ImportError: onnx, onnxruntime or onnxscript is missing.
        ValueError: an option does not fit, or the file would not agree with PyTorch.
    """
    restorer = open_restorer(family, config.weights, variant=config.variant, kind=config.task)
    difference = export_onnx(restorer, config.output, opset=config.opset)
    size = config.output.stat().st_size / 1e6
    print(
        f"{config.output}: {restorer.task}, {size:.1f} MB, any batch and size, pictures in [0, 1]; "
        f"within {difference:.0e} of PyTorch's results"
    )
    return 0
