"""One window: its blocks are trained together until their output is the float model's.

Source: sections 3.1 and 3.2 of the paper; the switches are those of ``Settings``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cbq.layers import CBQLinear
from cbq.losses import Distance, homologous
from cbq.rounding import beta_schedule, commitment
from cbq.settings import Settings
from papers_shared.language_models.blocks import call_block

LATE = 0.75  # share of the steps after which late rounding is hard
RETRIES = 2  # of a window with NaN


@dataclass
class WindowReport:
    """What happened in a window; a line of the log.

    Attributes:
        first, last: its blocks.
        loss_start, loss_end: mean over the training segments' first and last tenth of the steps;
            None without.
        held_out_start, held_out_end: on the segments that are not trained on; None without.
        kept: False: the start codes were taken, because held-out segments got worse or NaN stayed.
        flipped: share of the codes that differ from the start's.
        undecided: share of dW farther than 0.05 from 0 and 1 at the end.
        top_token: share of the squared norm of all targets that one token holds.
        seconds: wall time.
        notes: recoveries, in words.
    """

    first: int
    last: int
    steps: int
    loss_start: float | None = None
    loss_end: float | None = None
    held_out_start: float | None = None
    held_out_end: float | None = None
    kept: bool = True
    flipped: float = 0.0
    undecided: float = 0.0
    top_token: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSON."""
        return asdict(self)


@dataclass
class WindowData:
    """Inputs and targets of a window, a tensor (T, D) each segment.

    Attributes:
        inputs: ``X_q``.
        clean: the float blocks' output on the float stream, or None.
        same: the float blocks' output on ``X_q``, or None.
        arguments: of the blocks' forward, the same for all segments.
    """

    inputs: Sequence[Tensor]
    clean: Sequence[Tensor] | None
    same: Sequence[Tensor] | None
    arguments: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.inputs)


def autocast(device: torch.device, precision: str) -> Any:
    """The context of the forward passes."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def quantized_layers(blocks: Sequence[nn.Module]) -> list[CBQLinear]:
    """The layers that are trained, in order."""
    return [m for block in blocks for m in block.modules() if isinstance(m, CBQLinear)]


def trainable_state(layers: Sequence[CBQLinear]) -> list[dict[str, Tensor]]:
    """A copy of everything that a window learns."""
    return [{n: p.detach().clone() for n, p in layer.named_parameters()} for layer in layers]


@torch.no_grad()
def restore(layers: Sequence[CBQLinear], states: Sequence[Mapping[str, Tensor]]) -> None:
    """Undo what was learned since ``trainable_state``."""
    for layer, state in zip(layers, states, strict=True):
        for name, parameter in layer.named_parameters():
            parameter.copy_(state[name])


def make_optimizer(layers: Sequence[CBQLinear], settings: Settings, factor: float) -> Any:
    """An optimizer of what the settings train, a rate a kind; None where nothing is trained."""
    if settings.optimizer == "sign":
        factor /= settings.steps
    groups: list[dict[str, Any]] = []
    for names, learned, rate in (
        (("A1", "A2", "V"), settings.learn_rounding, settings.lr_rounding),
        (("step_ratio",), settings.learn_steps, settings.lr_steps),
        (
            ("act_factor",),
            settings.learn_activations and settings.act_bits < 16,
            settings.lr_activations,
        ),
    ):
        chosen = [
            p for layer in layers for n, p in layer.named_parameters() if n in names and learned
        ]
        if chosen and rate:
            groups.append({"params": chosen, "lr": rate * factor})
    for layer in layers:
        layer.requires_grad_(False)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    if not groups:
        return None
    return SignDescent(groups) if settings.optimizer == "sign" else torch.optim.Adam(groups)


class SignDescent(torch.optim.Optimizer):
    """``p -= lr sign(gradient)``, without a memory (AutoRound's, arXiv 2309.05516).

    Args:
        groups: parameter groups, each with its ``lr``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def order_of(count: int, steps: int, batch: int, seed: int) -> list[list[int]]:
    """Which segments each step sees: shuffled anew once all were seen."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, count)
    drawn: list[int] = []
    while len(drawn) < steps * batch:
        drawn += torch.randperm(count, generator=generator).tolist()
    return [drawn[i * batch : (i + 1) * batch] for i in range(steps)]


class Window:
    """Trains the blocks of one window in place.

    Args:
        blocks: with ``CBQLinear`` layers.
        train: the segments that are trained on.
        held_out: the segments that judge; may be empty.
        settings: see Settings.
        precision: float32, bfloat16 or float16.
        seed: of the order of the segments.
        tick: called after every step.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        train: WindowData,
        held_out: WindowData | None,
        settings: Settings,
        *,
        precision: str,
        seed: int,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.blocks, self.train_data, self.held_out = blocks, train, held_out
        self.settings, self.precision, self.seed, self.tick = settings, precision, seed, tick
        self.layers = quantized_layers(blocks)
        self.device = self.layers[0].step_0.device
        self.distance = Distance(settings.l2, settings.l2_weight, settings.kl)

    def run(self, report: WindowReport) -> None:
        """Train; fall back to the start where that did not help. Fills in the report."""
        start = trainable_state(self.layers)
        codes = [layer.harden().codes for layer in self.layers]
        if self.held_out is not None:
            report.held_out_start = self.evaluate(self.held_out)
        factor, precision = 1.0, self.precision
        for attempt in range(RETRIES + 1):
            losses = self._steps(factor, precision)
            if losses and all(map(math.isfinite, losses)):
                break
            restore(self.layers, start)
            what = f"NaN or Inf after {len(losses)} steps in {precision}"
            if attempt == RETRIES:
                report.kept = False
                report.notes.append(f"{what}: codes from before it kept")
                break
            if precision != "float32":
                precision = self.precision = "float32"
                report.notes.append(f"{what}: again in float32")
            else:
                factor /= 10
                report.notes.append(f"{what}: again with a tenth of the learning rates")
        for layer in self.layers:
            layer.hard = True
            layer.requires_grad_(False)
        if report.kept:
            tenth = max(1, len(losses) // 10)
            report.loss_start = sum(losses[:tenth]) / tenth
            report.loss_end = sum(losses[-tenth:]) / tenth
            self._judge(report, start)
        report.undecided = self._undecided()
        after = [layer.harden().codes for layer in self.layers]
        changed = sum(int((a != b).sum()) for a, b in zip(codes, after, strict=True))
        report.flipped = changed / sum(c.numel() for c in codes)

    def time_step(self) -> float:
        """Seconds of one step; what it learned is undone."""
        start, settings = trainable_state(self.layers), self.settings
        self.settings = replace(settings, steps=2)
        began = time.monotonic()
        self._steps(1.0, self.precision)
        seconds = (time.monotonic() - began) / 2
        self.settings = settings
        restore(self.layers, start)
        return seconds

    def _judge(self, report: WindowReport, start: Sequence[Mapping[str, Tensor]]) -> None:
        if self.held_out is None or report.held_out_start is None:
            return
        report.held_out_end = self.evaluate(self.held_out)
        # Not (end <= start): a NaN counts as worse.
        if not report.held_out_end <= report.held_out_start:
            restore(self.layers, start)
            report.kept = False
            report.notes.append("held-out segments got worse: codes from before it kept")

    def _steps(self, factor: float, precision: str) -> list[float]:
        """Losses of all steps; ends after the first that is not finite."""
        s = self.settings
        optimizer = make_optimizer(self.layers, s, factor)
        if optimizer is None:
            raise ValueError("nothing is trained: all learning rates or switches are off")
        # Small gradients are zero in float16: its losses are scaled, by as much as holds them.
        scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        rates = [group["lr"] for group in optimizer.param_groups]
        losses: list[float] = []
        for step, chosen in enumerate(order_of(len(self.train_data), s.steps, s.batch, self.seed)):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * step / s.steps)) / 2
            hard = s.rounding == "hard" or step >= LATE * s.steps
            for layer in self.layers:
                layer.hard = hard
            with torch.enable_grad():
                loss = self._loss(chosen, self.train_data, precision)
                losses.append(loss.item())
                if s.commitment and not hard and (beta := beta_schedule(step, int(LATE * s.steps))):
                    terms = [commitment(x.soft_rounding(), beta).sum() for x in self.layers]
                    count = sum(layer.lower.numel() for layer in self.layers)
                    loss = loss + s.commitment * torch.stack(terms).sum() / count
                if not math.isfinite(losses[-1]):
                    return losses
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            finite = bool(torch.stack([g.isfinite().all() for g in gradients]).all())
            if not finite and scaler.get_scale() <= 1:
                return [*losses, math.nan]
            scaler.step(optimizer)  # left out where a scaled gradient overflowed
            scaler.update()
            for layer in self.layers:
                layer.clamp_()
            self.tick()
        return losses

    def _loss(self, chosen: Sequence[int], data: WindowData, precision: str) -> Tensor:
        hidden = torch.stack([data.inputs[i] for i in chosen]).to(self.device)
        arguments = batched(data.arguments, len(chosen))
        with autocast(self.device, precision):
            for block in self.blocks:
                hidden = call_block(block, hidden, arguments)
        targets = [
            None if t is None else torch.stack([t[i] for i in chosen]).to(self.device)
            for t in (data.clean, data.same)
        ]
        return homologous(self.distance, hidden, *targets)

    @torch.no_grad()
    def evaluate(self, data: WindowData) -> float:
        """The mean loss with hard rounding; inf where it is not finite."""
        for layer in self.layers:
            layer.hard = True
        total = sum(self._loss([i], data, self.precision).item() for i in range(len(data)))
        return total / len(data) if math.isfinite(total) else math.inf

    @torch.no_grad()
    def _undecided(self) -> float:
        soft = [layer.soft_rounding() for layer in self.layers]
        apart = sum(int(((x > 0.05) & (x < 0.95)).sum()) for x in soft)
        return apart / sum(x.numel() for x in soft)


def batched(arguments: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A block's arguments for several segments, from those of one."""

    def widen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == 1:
            return value.expand(batch, *value.shape[1:])
        if isinstance(value, tuple):
            return tuple(widen(v) for v in value)
        return value

    return {name: widen(value) for name, value in arguments.items()}
