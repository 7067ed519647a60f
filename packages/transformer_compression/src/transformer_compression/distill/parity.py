"""Checks of recorded distillation cases; ``transformer_compression.parity`` calls them by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from papers_shared.parity import Part, seeded_input, values_error
from transformer_compression.distill.losses import kl_divergence
from transformer_compression.distill.manifold import manifold_terms

Case = Mapping[str, Any]
TOLERANCE = 1e-5


def _distillation(case: Case) -> Iterator[Part]:
    config = case["config"]
    x = {n.partition(".")[2]: seeded_input(n, tuple(s)) for n, s in case["inputs"].items()}
    student, teacher = x["mkd.s"], x["mkd.t"]
    everything = student.shape[0] * student.shape[1]
    terms = manifold_terms(student, teacher, patches=everything, generator=None)
    zs, zt = x["kd.zs"], 2 * x["kd.zt"]
    if config["labels"] != f"arange({len(zs)}) % {zs.shape[1]}":
        raise ValueError(f"no reader for labels {config['labels']!r}")
    labels = torch.arange(len(zs)) % zs.shape[1]
    alpha, beta = config["alpha"], config["beta"]
    ours = {
        "patch": terms.patch,
        "sample": terms.sample,
        "rand_all": terms.random,
        "loss_base": (1 - alpha) * F.cross_entropy(zs, labels),
        "loss_soft_kd": alpha * kl_divergence(zs, zt, config["tau"]),
        "loss_hard_kd": alpha * F.cross_entropy(zs, zt.argmax(-1)),
        "weighted_sample": beta * config["w_sample"] * terms.sample,
        "weighted_patch": beta * config["w_patch"] * terms.patch,
    }
    for name, value in case["outputs"].items():
        yield name, values_error(ours[name], value), TOLERANCE


KINDS: Mapping[str, Callable[[Case], Iterable[Part]]] = {"distillation": _distillation}
