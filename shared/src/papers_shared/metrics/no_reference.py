"""CLIPIQA, MUSIQ and MANIQA: the quality of a picture without a reference, through ``pyiqa``.

``pyiqa`` is not among the package's own requirements (``pip install 'papers-shared[iqa]'``); it
downloads the weights of a metric when the metric is first used.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from papers_shared.metrics.restoration import _batch

Name = Literal["clipiqa", "musiq", "maniqa"]
# What tells one from another score of the same name.
_WHAT: dict[Name, str] = {
    "clipiqa": "CLIPIQA RN50",
    "musiq": "MUSIQ KonIQ-10k",
    "maniqa": "MANIQA KonIQ-10k",
}


class NoReference:
    """A learned score of single pictures; higher is better.

    clipiqa: 0 to 1, how much nearer CLIP sees the picture to five good prompts than to their
    opposites. musiq: about 0 to 100, maniqa: about 0 to 1, both trained on KonIQ-10k. All at the
    picture's own size.

    Scores may differ between versions of ``pyiqa``: the version is part of the protocol.

    Args:
        name: which score.
        device: where it is computed.
        autocast: on a GPU in float16 where torch's autocast says so, as the released evaluation
            scripts do; the CPU always works in float32.

    Raises:
        ValueError: there is no such score.

    Source: Wang et al., AAAI 2023 (CLIPIQA); Ke et al., ICCV 2021 (MUSIQ); Yang et al., CVPRW 2022
    (MANIQA).
    """

    def __init__(
        self, name: Name, *, device: str | torch.device = "cpu", autocast: bool = True
    ) -> None:
        if name not in get_args(Name):
            raise ValueError(f"unknown score {name!r}; expected one of {', '.join(get_args(Name))}")
        self.name = name
        self.device = torch.device(device)
        self.autocast = autocast and self.device.type == "cuda"

    @property
    def protocol(self) -> str:
        precision = "fp16 autocast" if self.autocast else "float32"
        return f"{_WHAT[self.name]} uint8 pyiqa {_pyiqa(self.name).__version__} {precision}"

    def __call__(self, image: Tensor) -> Tensor:
        """Args: images. Returns: float64 (B,).

        Raises:
            ImportError: ``pyiqa`` is not installed.
            FileNotFoundError: its weights cannot be had.
        """
        image = _batch(image)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        with torch.no_grad(), torch.autocast(self.device.type, torch.float16, self.autocast):
            scores = self.model(image.to(self.device))
        return scores.double().flatten()

    @cached_property
    def model(self) -> Any:
        """pyiqa's metric with its weights; loading it takes seconds."""
        pyiqa = _pyiqa(self.name)
        try:
            return pyiqa.create_metric(self.name, device=self.device)
        except ImportError as error:  # pyiqa imports some packages only here
            raise ImportError(
                f"{self.name} needs a package behind pyiqa ({error}): pip install "
                "'papers-shared[iqa]', which asks for a setuptools that still has pkg_resources"
            ) from None
        except OSError as error:  # those of urllib, requests and huggingface_hub are OSErrors
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FileNotFoundError(
                f"{self.name} needs weights that pyiqa could not download ({reason}); run "
                f"`pyiqa {self.name} -t PICTURE` once where there is a connection, and copy what "
                f"it left in torch's hub folder (and Hugging Face's) to {torch.hub.get_dir()}"
            ) from None


def _pyiqa(name: str) -> Any:
    try:
        import pyiqa
    except ImportError as error:
        raise ImportError(
            f"{name} needs the package pyiqa ({error}): pip install 'papers-shared[iqa]'"
        ) from None
    return pyiqa
