"""What the tables show of a model: quality, size, and what it costs on this device.

Latency and memory are measured. A method that only changes numbers within dense matrices is thus
shown to save nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared.complexity import compare_latency, peak_memory
from transformer_compression.core import Progress, Report, silent
from transformer_compression.cpu_time import compare_cpu_seconds, one_thread

PREFILL, DECODED = 128, 8
PICTURES = 16


@dataclass(frozen=True)
class Cost:
    """Of one model on this device.

    Attributes:
        forward: seconds of one pass: 128 tokens, or 16 pictures. On a CPU the CPU time of one
            thread, which is the latency of an idle core and does not measure other programs.
        speedup: the dense model's time / this one's, both run in turns; 1 without a reference.
        step: seconds a token when generating with a cache (language; 0 for vision).
        step_speedup: likewise.
        weights: bytes that the parameters and buffers hold in this process.
        peak: most bytes that torch held beyond them during one pass.
        macs: multiply-accumulates of the linear layers, dense, for one token or picture.
    """

    forward: float
    speedup: float
    step: float
    step_speedup: float
    weights: int
    peak: int
    macs: int


def language_quality(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    window: int,
    windows: int | None,
    questions: int,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """Perplexity, and accuracy on multiple-choice questions made from the same text, in percent.

    Args:
        model, tokenizer: a causal language model.
        text: a WikiText file, or any text (``questions=0``).
        window, windows: see ``perplexity``.
        questions: how many; 0: none.
        seed: of the questions' draw.
        progress: called as ``progress(done, total, what)``.
    """
    from papers_shared.language_models import make_questions, question_accuracy, tokenize
    from papers_shared.metrics.perplexity import perplexity

    tokens = tokenize(tokenizer, text)
    result = perplexity(model, tokens, window=window, windows=windows, progress=progress)
    quality = {"perplexity": result.value}
    if questions:
        made = make_questions(text, count=questions, seed=seed)
        score = question_accuracy(model, tokenizer, made, progress)
        quality["accuracy"] = 100 * score.accuracy
        quality["accuracy_per_character"] = 100 * score.accuracy_per_character
    return quality


def vision_quality(model: nn.Module, *, pictures: int | None) -> dict[str, float]:
    """Top-1 on the first test pictures of CIFAR-10 that are stored exactly, in percent."""
    from transformer_compression.vision.data import accuracy, check_fits, exact_test_pictures

    check_fits(model)
    images, labels = exact_test_pictures(limit=pictures)
    return {"top1": accuracy(model, images, labels).percent}


def linear_macs(model: nn.Module, inputs: Tensor) -> int:
    """Multiply-accumulates of all linear layers and convolutions in one pass over ``inputs``."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(inputs)
    kinds = ("mm", "addmm", "convolution")
    flops = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    return sum(n for op, n in flops.items() if op.rpartition(".")[2] in kinds) // 2


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(
        s.nbytes()
        for s in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values()
    )


def _step(model: Any, prompt: Tensor) -> Callable[[], object]:
    """Generate a few tokens after a prompt of 128, greedily, with a cache; made anew each time."""
    settings = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False}
    mask = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=mask, pad_token_id=0, **settings)


def _compare(
    functions: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of ``this``, and how many times faster than ``dense`` it is, both run in turns."""
    if device.type == "cpu":
        with one_thread():
            this = compare_cpu_seconds(functions, baseline="dense", rounds=rounds)["this"]
        return this.seconds, this.speedup
    timed = compare_latency(functions, baseline="dense", warmup=1, rounds=rounds, device=device)
    return timed["this"].latency.median, timed["this"].speedup


@torch.inference_mode()
def measure_cost(
    model: Any, *, language: bool, reference: Any = None, rounds: int = 5, seed: int = 0
) -> Cost:
    """Latency beside a reference, in turns, memory, operations.

    Args:
        model: in eval mode.
        language: tokens or pictures.
        reference: the dense model; None: the model itself.
        rounds: how often each is timed.
        seed: of the tokens or pictures.
    """
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(seed)
    if language:
        vocabulary = model.config.vocab_size
        x = torch.randint(vocabulary, (1, PREFILL), generator=draw).to(device)
    else:
        size = model.patch_embed.img_size
        x = torch.randn(PICTURES, 3, *size, generator=draw).to(device)
    other = model if reference is None else reference
    passes = {"dense": lambda: other(x), "this": lambda: model(x)}
    forward, speedup = _compare(passes, rounds, device)
    step, step_speedup = 0.0, 1.0
    if language:
        short = x[:, :16]
        runs = {"dense": _step(other, short), "this": _step(model, short)}
        whole, step_speedup = _compare(runs, rounds, device)
        step = whole / DECODED
    items = PREFILL if language else PICTURES
    return Cost(
        forward=forward,
        speedup=speedup,
        step=step,
        step_speedup=step_speedup,
        weights=weight_bytes(model),
        peak=peak_memory(lambda: model(x), device=device).bytes,
        macs=linear_macs(model, x) // items,
    )


def disk_bytes(model: Any, report: Report | None, folder: Path) -> int:
    """Bytes of the model's files: packed codes where there are any, else half precision.

    Args:
        model: any.
        report: of its compression; None: dense.
        folder: an empty folder to write to.
    """
    from papers_shared.checkpoints import save_state_dict
    from papers_shared.quantization import export_compressed_tensors

    if report is not None and report.quantized and hasattr(model, "generation_config"):
        export_compressed_tensors(model, report.quantized, folder, dtype=torch.float16)
    else:
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        state = {
            name: value.half() if value.is_floating_point() else value
            for name, value in model.state_dict().items()
            if name not in tied
        }
        save_state_dict(state, folder / "model.safetensors")
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
