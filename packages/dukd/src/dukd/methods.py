"""The methods of the paper's tables by name: ``METHODS[name](teacher, student).loss(lr, hr)``.

PISR is not among them: its teacher sees the high-resolution picture and is built around the
student's own network, so it takes no given teacher. Nor are CrossKD, MiPKD and DCKD, whose settings
are not known here.

Source: dukd sheet 4.5 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from dukd.csd import CSD
from dukd.distill import DUKD, Distiller, LogitsKD


def scratch(teacher: nn.Module | None, student: nn.Module, **options: Any) -> Distiller:
    """The ground truth alone; a teacher is not asked."""
    return Distiller(None, student, **{"kd_weight": 0.0, **options})


def zoom_out_without_teacher(
    teacher: nn.Module | None, student: nn.Module, **options: Any
) -> Distiller:
    """The control: zoom-out inputs with their true labels alone; a teacher is not asked."""
    return DUKD(None, student, **{"kd_weight": 0.0, "cells": 0, **options})


METHODS: Mapping[str, Callable[..., Distiller]] = {
    "scratch": scratch,
    "logits": LogitsKD,
    # Maps as FAKD's baselines compare them; which maps and weights the tables used is not known.
    "fitnet": partial(LogitsKD, features="Fitnet"),
    "at": partial(LogitsKD, features="AT"),
    "fakd": partial(LogitsKD, features="SA"),
    # Its own authors' weights.
    "fakd_authors": partial(LogitsKD, features="SA", pixel_weight=0.5, kd_weight=0.5),
    "rkd": partial(LogitsKD, features="RKD", feature_weight=1.0),
    "csd": CSD,
    "dukd": DUKD,
    "dukd_fakd": partial(DUKD, features="SA"),
    # DUKD's parts.
    "zoom_in": partial(DUKD, zoom_out=False, probability=None),
    "zoom_out": partial(DUKD, cells=0, probability=None),
    "zoom_in_out": partial(DUKD, probability=None),
    "consistency": partial(DUKD, cells=0, zoom_out=False, consistency="lr"),
    "zoom_out_true": zoom_out_without_teacher,
}
