"""A causal language model in, a quantized one out: all windows, in order.

model, tokenizer = load_language_model("smollm2-135m")
tokens = tokenize(tokenizer, text)
segments = calibration_windows(tokens, count=16, length=512, seed=0)
result = quantize(model, segments, preset("best", bits=2))
result.model.generate(...)
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cbq.adapters import check_model
from cbq.layers import CBQLinear, HardLinear
from cbq.reconstruct import Window, WindowData, WindowReport, autocast
from cbq.rotation import rotate
from cbq.settings import Settings
from cbq.start import InputStatistics, observe, scale_channels, start_block
from cbq.state import Finished, WorkFolder, model_identity
from cbq.windows import finished_after, windows
from papers_shared.language_models import block_linears, capture_inputs
from papers_shared.language_models.blocks import block_names, call_block
from papers_shared.quantization import Grid, QuantizedWeight

FEWEST_STEPS = 4  # of a window, however small the budget
Progress = Callable[[int, int, str], None]


@dataclass
class Quantized:
    """The result.

    Attributes:
        model: the model that was given, its blocks' linear layers replaced by ``HardLinear``.
        weights: full name of a layer -> its codes.
        act_factors: full name -> learned share of a token's range.
        settings: what it was made with.
        reports: one a window.
        seconds: wall time.
    """

    model: Any
    weights: dict[str, QuantizedWeight]
    act_factors: dict[str, float]
    settings: Settings
    reports: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def pick_precision(wanted: str, device: torch.device) -> str:
    """``auto`` -> bfloat16 where the processor multiplies it in hardware, else float32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    capable = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if capable else "float32"


def quantize(
    model: Any,
    segments: Sequence[Tensor],
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    work: Path | None = None,
    offload: bool = False,
    budget: float | None = None,
    grids: dict[str, Grid] | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Quantized:
    """Quantize the linear layers of all decoder blocks, in place.

    The model lies on the CPU: only the blocks of one window are moved to ``device``, in float32.

    Args:
        model: a causal language model of transformers. In 16 bits it takes half the memory and
            comes to the same codes as in float32; a rotation makes it float32.
        segments: token ids (1, T) or (T,), all of one length.
        settings: see Settings.
        device: where blocks are run and trained.
        work: a folder to resume from and to log into; None keeps nothing.
        offload: leave the codes of finished blocks in ``work`` and read them from there; the
            model's finished layers then hold no weights (``save_quantized`` needs none).
        budget: seconds; the steps of a window are cut so that the whole takes about as long (timed
            in the first window; the report says how many, and what all of them would take).
        grids: start scales by full layer name, taken where given and filled in where not: methods
            that share it start from the same.
        progress: called as ``progress(windows done, windows, what)``.

    Raises:
        ValueError: unsupported model, segments of several lengths, another run in ``work``, or
            ``offload`` without it.
        OSError: ``work`` cannot be written (disk full).
    """
    if offload and work is None:
        raise ValueError("offload leaves finished blocks in the work folder: name one")
    run = _Run(model, segments, settings, torch.device(device), work, offload, grids, progress)
    return run.all(budget)


class _Run:
    """The state of a run between windows."""

    def __init__(
        self,
        model: Any,
        segments: Sequence[Tensor],
        settings: Settings,
        device: torch.device,
        work: Path | None,
        offload: bool,
        grids: dict[str, Grid] | None,
        progress: Progress,
    ) -> None:
        self.model, self.settings, self.device, self.progress = model, settings, device, progress
        self.offload = offload
        self.blocks = check_model(model)
        self.names = block_names(model)
        self.grids = {} if grids is None else grids
        model.eval().requires_grad_(False)
        segments = [s.reshape(1, -1) for s in segments]
        if len({s.shape for s in segments}) > 1:
            raise ValueError("the calibration segments have several lengths; cut them to one")
        self.held_out = round(settings.held_out * len(segments)) if settings.steps else 0
        if len(segments) <= self.held_out or not segments:
            raise ValueError(
                f"{len(segments)} calibration segments, of which {self.held_out} are held out: "
                f"more are needed"
            )
        self.work: WorkFolder | None = None
        if work is not None:
            identity = model_identity(model, list(self.blocks))
            self.work = WorkFolder(work, settings, torch.cat(segments), identity)
        if settings.rotate:
            rotate(model.float(), seed=settings.seed)
        self.precision = pick_precision(settings.precision, device)
        self.dtype = model.dtype
        self._convert_outside(torch.float32)
        stream = capture_inputs(model, segments)
        self.arguments = _to(stream.arguments[0], device)
        self.clean = [h.float().cpu() for h in stream.hidden]  # X_fp, at the first block not begun
        self.noisy = list(self.clean)  # X_q, at the window's first block
        self.students: dict[int, nn.Module] = {}
        self.weights: dict[str, QuantizedWeight] = {}
        self.factors: dict[str, float] = {}
        self.notes: list[str] = []  # of the window at hand
        self.steps: int | None = None  # of a window, where a budget set them
        self.plan = windows(len(self.blocks), size=settings.window, overlap=settings.overlap)

    def _convert_outside(self, dtype: torch.dtype) -> None:
        """Embeddings, head and final norm to a dtype."""
        within = {id(p) for p in self.blocks.parameters()}
        for parameter in self.model.parameters():
            if id(parameter) not in within:
                parameter.data = parameter.data.to(dtype)

    # ---- the walk

    def all(self, budget: float | None) -> Quantized:
        started = time.monotonic()
        reports = self.work.reports() if self.work else []
        first = len(reports)
        if budget is not None and reports:
            self.steps = reports[0]["steps"]
        self._replay(first)
        for index in range(first, len(self.plan)):
            report = self._window(index, budget)
            reports.append(report)
            spent = time.monotonic() - started
            left = spent / (index + 1 - first) * (len(self.plan) - index - 1)
            self.progress(index + 1, len(self.plan), f"{_line(report)}, about {_time(left)} left")
        self._convert_outside(self.dtype)
        return Quantized(
            self.model,
            self.weights,
            self.factors,
            self.settings,
            reports,
            time.monotonic() - started,
        )

    def _window(self, index: int, budget: float | None) -> dict[str, Any]:
        began = time.monotonic()
        window, done = self.plan[index], finished_after(self.plan)[index]
        settings = self.settings
        for block in window:
            if block not in self.students:
                self._begin(block, window.start)
        report = WindowReport(window.start, window.stop - 1, settings.steps)
        report.top_token = _top_token(self.clean)
        report.notes += self.notes
        self.notes = []
        if settings.steps:
            clean = self.clean if settings.clean_term else None
            same = None
            if settings.same_term:
                same = self._forward([self.blocks[i] for i in window], self.noisy)
            train, judge = (
                WindowData(
                    self._rows(self.noisy, piece),
                    None if clean is None else self._rows(clean, piece),
                    None if same is None else self._rows(same, piece),
                    self.arguments,
                )
                for piece in (slice(self.held_out, None), slice(0, self.held_out))
            )
            trainer = Window(
                [self.students[i] for i in window],
                train,
                judge if self.held_out else None,
                settings,
                precision=self.precision,
                seed=settings.seed + 7919 * (index + 1),
            )
            if budget is not None and self.steps is None:
                self.steps = self._steps_within(budget, trainer, time.monotonic() - began, report)
            if self.steps is not None:
                report.steps = self.steps
                trainer.settings = replace(settings, steps=report.steps)
            trainer.run(report)
        finished = {block: self._finish(block) for block in done}
        report.seconds = time.monotonic() - began
        line = {"window": index, **report.to_dict()}
        if self.work is not None:
            open_blocks = {i: _layer_state(self.students[i]) for i in window if i not in done}
            self.work.save_window(finished, open_blocks, line)
        self._release(done)
        return line

    @staticmethod
    def _rows(hidden: Sequence[Tensor], piece: slice) -> list[Tensor]:
        return [h[0] for h in hidden[piece]]

    def _steps_within(
        self, budget: float, trainer: Window, begun: float, report: WindowReport
    ) -> int:
        """Steps of every window such that all of them take about ``budget`` seconds."""
        step = trainer.time_step()
        count, wanted = len(self.plan), self.settings.steps
        fixed = begun / (report.last - report.first + 1) * len(self.blocks)
        steps = int((budget - fixed) / (count * step))
        steps = min(wanted, max(FEWEST_STEPS, steps))
        report.notes.append(
            f"budget of {_time(budget)}: {steps} of {wanted} steps a window; all would take about "
            f"{_time(fixed + count * step * wanted)}, none (the start codes) {_time(fixed)}"
        )
        return steps

    def _begin(self, index: int, window_start: int) -> None:
        """Statistics of a block's inputs, then its start codes; the float stream moves on."""
        statistics = self._pass_float(index)
        block = self.blocks[index]
        hessians = {}
        if self.settings.start == "gptq":
            inputs = self._forward(
                [self.students[i] for i in range(window_start, index)], self.noisy
            )
            with autocast(self.device, self.precision):
                seen, _ = observe(block, inputs, self.arguments, hessians=True, device=self.device)
            hessians = seen.hessians
        names = {n: f"{self.names[index]}.{n}" for n in block_linears(block)}
        own = {n: self.grids[full] for n, full in names.items() if full in self.grids}
        self.students[index] = start_block(
            block,
            statistics,
            hessians,
            self.settings,
            seed=self.settings.seed * 1_000_003 + index,
            grids=own,
        )
        self.grids.update({names[n]: grid for n, grid in own.items()})

    def _pass_float(self, index: int) -> InputStatistics:
        block = self.blocks[index].to(self.device, torch.float32)
        for precision in (self.precision, "float32"):
            with autocast(self.device, precision):
                statistics, after = observe(
                    block, self.clean, self.arguments, hessians=False, device=self.device
                )
            if precision == "float32" or all(bool(h.isfinite().all()) for h in after):
                break
            self.notes.append(f"block {index} overflows in {precision}: its targets in float32")
        self.clean = after
        if self.settings.scale_channels:
            scale_channels(block, statistics, self.settings)
        return statistics

    @torch.no_grad()
    def _forward(self, blocks: Sequence[nn.Module], hidden: Sequence[Tensor]) -> list[Tensor]:
        def run(segment: Tensor, precision: str) -> Tensor:
            h = segment.to(self.device)
            with autocast(self.device, precision):
                for block in blocks:
                    h = call_block(block, h, self.arguments)
            return h.float().cpu()

        out = [run(segment, self.precision) for segment in hidden]
        return [
            h if bool(h.isfinite().all()) else run(segment, "float32")
            for h, segment in zip(out, hidden, strict=True)
        ]

    def _finish(self, index: int) -> Finished:
        """Harden a block and put it into the model; the quantized stream moves past it."""
        student = self.students.pop(index)
        layers: Finished = {}
        for name, layer in list(student.named_modules()):
            if isinstance(layer, CBQLinear):
                layers[name] = layer.harden(), layer.act_factor.detach().clone()
        self._install(index, student, layers)
        return layers

    def _install(self, index: int, student: nn.Module, layers: Finished) -> None:
        for name, (quantized, factor) in layers.items():
            parent, _, child = name.rpartition(".")
            layer = student.get_submodule(name)
            assert isinstance(layer, CBQLinear)
            hard = HardLinear(
                quantized.dequantize(), layer.bias, act_bits=layer.act_bits, act_factor=factor
            )
            setattr(student.get_submodule(parent), child, hard.to(self.device))
            self.weights[f"{self.names[index]}.{name}"] = quantized.cpu()
            self.factors[f"{self.names[index]}.{name}"] = float(factor)
        self.noisy = self._forward([student], self.noisy)
        for parameter in student.parameters():
            parameter.data = parameter.data.to(self.dtype)
        self.blocks[index] = student.to("cpu")

    def _release(self, done: Sequence[int]) -> None:
        """Leave what is finished on disk: codes mapped from their file, no weights."""
        if not self.offload:
            return
        assert self.work is not None
        for index in done:
            for name, (quantized, _) in self.work.load_block(index, self.settings).items():
                self.weights[f"{self.names[index]}.{name}"] = quantized
                layer: Any = self.blocks[index].get_submodule(name)
                layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)
        _return_freed_pages()

    # ---- going on after an interruption

    def _replay(self, count: int) -> None:
        """Bring both streams and the open blocks to where they were after ``count`` windows."""
        assert self.work is not None or not count
        for index in range(count):
            window, done = self.plan[index], finished_after(self.plan)[index]
            for block in window:
                if block not in self.students:
                    self._pass_float(block)
                    self.students[block] = self._shell(block)
            for block in done:
                layers = self.work.load_block(block, self.settings)  # type: ignore[union-attr]
                self._install(block, self.students.pop(block), layers)
            self._release(done)
        for block, student in self.students.items():
            state = self.work.load_open(block)  # type: ignore[union-attr]
            for name, layer in student.named_modules():
                if isinstance(layer, CBQLinear):
                    mine = {n: state[f"{name}.{n}"] for n in layer.state_dict()}
                    layer.load_state_dict(mine)

    def _shell(self, index: int) -> nn.Module:
        """A block with layers of the right shapes, to be filled from disk."""
        block = self.blocks[index]
        s = self.settings
        grids = {}
        for name, linear in block_linears(block).items():
            out, inputs = linear.weight.shape
            group = inputs if s.group == -1 else s.group
            ones = torch.ones(out, inputs // group, device=self.device)
            grids[name] = Grid(ones, ones, s.bits, group, s.symmetric)
        plain = replace(s, start="adaround", truncate=False)
        return start_block(block, InputStatistics(), {}, plain, seed=0, grids=grids)


def _return_freed_pages() -> None:
    """Ask the C library for what it keeps of freed memory, where it can be asked (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _layer_state(student: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{n}": value
        for name, layer in student.named_modules()
        if isinstance(layer, CBQLinear)
        for n, value in layer.state_dict().items()
    }


def _to(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return tuple(map(move, value)) if isinstance(value, tuple) else value

    return {name: move(value) for name, value in arguments.items()}


def _top_token(hidden: Sequence[Tensor]) -> float:
    """Share of all tokens' squared norm that the largest token holds."""
    norms = torch.cat([h.double().square().sum(-1).flatten() for h in hidden])
    return float(norms.max() / norms.sum())


def _line(report: Mapping[str, Any]) -> str:
    text = f"blocks {report['first']}-{report['last']}"
    if report["loss_end"] is not None:
        text += f", loss {report['loss_start']:.4g} -> {report['loss_end']:.4g}"
        if report["held_out_end"] is not None:
            text += f", held out {report['held_out_start']:.4g} -> {report['held_out_end']:.4g}"
    notes = "".join(f"; {note}" for note in report["notes"])
    return f"{text}, {report['seconds']:.0f} s{notes}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
