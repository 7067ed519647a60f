"""What a quantization is made with: every switch, and the named presets. No torch here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

Search = Literal["none", "mse", "weighted"]
StartKind = Literal["zero", "adaround", "gptq"]
Rounding = Literal["hard", "late"]
Optimizer = Literal["sign", "adam"]
CFPName = Literal["paper", "msmodelslim"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All switches of CBQ; the defaults are the preset ``best``.

    Attributes:
        bits, act_bits: of weights and of the linears' inputs (16: float).
        group: inputs a scale; -1: a scale a row.
        symmetric: no zero points.
        search: start scales: the range, or the best of 70 shrunk ones (``weighted``: by the
            inputs' mean squares in the float model, so that all methods start from the same).
        start: V0: ``zero`` (one half everywhere), ``adaround`` (the fractional part; without
            training that is rounding to nearest), ``gptq`` (GPTQ's compensated columns).
        rounding: ``hard`` from the first step, or ``late``: soft, and hard in the last quarter.
        rank: of LoRA-Rounding's logits; 0: a full matrix (AdaRound).
        learn_rounding, learn_steps, learn_activations: what is trained.
        refloor: floor(W / S) with the step of the moment rather than the start's.
        window, overlap: blocks that are reconstructed together, and shared by neighbours.
        steps, batch: optimizer steps a window, segments a step.
        optimizer: ``adam``, or ``sign``: AutoRound's descent by the gradient's sign.
        lr_rounding, lr_steps, lr_activations: its rates; of the steps relative to their size.
            Under ``sign`` divided by the number of optimizer steps: with the cosine, half of it is
            what a value can travel within a window.
        l2, l2_weight, kl: the distance (cbq.losses.Distance).
        clean_term, same_term: targets from the float stream, and from the quantized one.
        commitment: weight of L_com, a mean over elements.
        truncate: CFP for weights. scale_channels: CFP for activations. cfp: form of both.
        rotate: fold the two free Hadamard rotations into the weights first.
        attention: also quantize q, k and v a token and head, where act_bits < 16.
        damping: of GPTQ's Hessian.
        held_out: share of the segments that only judge whether a window got better.
        precision: of the forward passes; auto: bfloat16 where the processor has it.
        seed: of every draw.
    """

    bits: int = 4
    act_bits: int = 16
    group: int = -1
    symmetric: bool = False
    search: Search = "weighted"
    start: StartKind = "adaround"
    rounding: Rounding = "hard"
    rank: int = 0
    learn_rounding: bool = True
    learn_steps: bool = True
    learn_activations: bool = True
    refloor: bool = False
    window: int = 2
    overlap: int = 1
    steps: int = 64
    batch: int = 1
    optimizer: Optimizer = "sign"
    lr_rounding: float = 1.7
    lr_steps: float = 0.24
    lr_activations: float = 0.024
    l2: Literal["token", "mean", "sum"] = "mean"
    l2_weight: float = 1.0
    kl: float = 0.0
    clean_term: bool = True
    same_term: bool = False
    commitment: float = 0.0
    truncate: bool = False
    scale_channels: bool = False
    cfp: CFPName = "paper"
    rotate: bool = False
    attention: bool = True
    damping: float = 0.01
    held_out: float = 0.125
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            allowed = get_args(hints[field.name])
            value = getattr(self, field.name)
            if allowed and value not in allowed:
                raise ValueError(
                    f"{field.name}={value!r}: expected one of {', '.join(map(str, allowed))}"
                )
        wrong = [
            (not 2 <= self.bits <= 8, f"bits={self.bits}: expected 2 to 8"),
            (not 2 <= self.act_bits <= 16, f"act_bits={self.act_bits}: expected 2 to 16"),
            (self.steps < 0, f"steps={self.steps}: expected 0 or more"),
            (self.batch < 1, f"batch={self.batch}: expected 1 or more"),
            (self.rank < 0, f"rank={self.rank}: expected 0 (full) or more"),
            (not 0 <= self.held_out < 1, f"held_out={self.held_out}: expected 0 to below 1"),
            (not 0 <= self.overlap < self.window, "overlap: expected 0 to below the window"),
            (
                bool(self.steps) and not (self.clean_term or self.same_term),
                "clean_term and same_term are both off: a window has no target",
            ),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise ValueError(message)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


PRESETS: dict[str, Settings] = {
    # Ours, what worked best here: AutoRound's optimizer over windows of blocks.
    "best": Settings(),
    # LoRA-Rounding by Adam from GPTQ's codes: a hundredth of the learned values.
    "lora": Settings(
        start="gptq",
        rank=5,
        optimizer="adam",
        lr_rounding=1e-2,
        lr_steps=1e-3,
        lr_activations=1e-3,
        l2="token",
        same_term=True,
    ),
    # As the paper has it, as far as it is known: learning rates, rank and epochs are remembered.
    "paper": Settings(
        search="none",
        start="adaround",
        rounding="late",
        rank=5,
        steps=384,
        optimizer="adam",
        lr_rounding=1e-4,
        lr_steps=1e-4,
        lr_activations=1e-6,
        l2="sum",
        kl=1.0,
        same_term=True,
        commitment=0.01,
        truncate=True,
        scale_channels=True,
        held_out=0.0,
    ),
    # The peers, through the same code and from the same start scales.
    "gptq": Settings(start="gptq", steps=0, window=1, overlap=0),
    "rtn": Settings(steps=0, window=1, overlap=0),
}


def preset(name: str, **changes: Any) -> Settings:
    """A named preset with changes.

    ``best`` takes one block a window below 4 bits if not told otherwise: with tens of steps two
    blocks that begin at the nearest of 4 or 8 values end behind blocks alone (small_ablation).

    Raises:
        ValueError: unknown name or a value out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
    base = PRESETS[name]
    if name == "best" and changes.get("bits", base.bits) < 4 and "window" not in changes:
        base = replace(base, window=1, overlap=0)
    return replace(base, **changes)


def parse_bits(text: str) -> dict[str, int]:
    """``w4a16``, ``w3a16g64`` or ``w2a16g32`` -> bits, act_bits and group.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"w(\d+)a(\d+)(?:g(\d+))?", text.lower())
    if not found:
        raise ValueError(f"bits {text!r}: expected wNaM or wNaMgK, such as w4a16 or w2a16g64")
    weight, activation, group = found.groups()
    return {"bits": int(weight), "act_bits": int(activation), "group": int(group or -1)}
