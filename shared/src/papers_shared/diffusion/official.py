"""The authors' checkpoints of ResShift-like networks: how their state dicts become our networks.

Our module names are the authors'; shift masks and position indices follow from the configuration
and are not taken from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from papers_shared.checkpoints import load_strict, unwrap
from papers_shared.diffusion.swin_unet import UNetConfig, rebuild_buffers

N = TypeVar("N", bound=nn.Module)
REBUILT = ("attn_mask", "relative_position_index")


@dataclass(frozen=True)
class Layout(Generic[N]):
    """How a package's networks are stored.

    Attributes:
        build: makes a network of a configuration.
        variants: name -> configuration.
        foreign: part of a name that only another network's state dict has -> what that is.
    """

    build: Callable[[Any], N]
    variants: Mapping[str, UNetConfig]
    foreign: Mapping[str, str]

    def load(self, state_dict: Mapping[str, Tensor], config: UNetConfig | Mapping[str, Any]) -> N:
        """A network with the weights of a state dict in the authors' layout, in eval mode.

        Args:
            state_dict: names to tensors, with or without ``module.`` and ``_orig_mod.``;
                ``attn_mask`` and ``relative_position_index`` may be absent or of another size,
                all else must fit.
            config: which network it is.

        Raises:
            ValueError: it is another network's or another variant's, which the message names;
                names are missing, unexpected or of another shape; or a weight is NaN or infinite.
        """
        # torch.compile leaves its mark inside names too, of the parts that were compiled.
        state = unwrap({n.replace("_orig_mod.", ""): v for n, v in unwrap(state_dict).items()})
        self.refuse_foreign(state)
        config = type(next(iter(self.variants.values()))).of(config)
        self._refuse_other_variants(state, config)
        broken = [n for n, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise ValueError(
                f"{len(broken)} entries of the checkpoint hold NaN or infinity ({broken[0]} "
                "first): the file is damaged or its training had diverged; get it again or take "
                "an earlier one"
            )
        model = self.build(config)
        load_strict(model, rebuild_buffers(model, state), what="the checkpoint")
        return model.eval()

    def recognise(self, state: Mapping[str, Tensor]) -> str | None:
        """The variant whose names and shapes a state dict has, without prefixes; None: none."""
        given = _shapes(state)
        return next(
            (n for n, config in self.variants.items() if self._shapes(config) == given), None
        )

    def refuse_foreign(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError for the state dict of another network."""
        for mark, what in self.foreign.items():
            if any(mark in name for name in state):
                raise ValueError(f"the checkpoint is not of this network but {what}")

    def _shapes(self, config: UNetConfig) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            return _shapes(self.build(config).state_dict())

    def _refuse_other_variants(self, state: Mapping[str, Tensor], config: UNetConfig) -> None:
        if _shapes(state) == self._shapes(config):
            return
        if found := self.recognise(state):
            names = (name for name, known in self.variants.items() if known == config)
            raise ValueError(
                f"the checkpoint is of variant {found!r}, not {next(names, 'the given one')!r}; "
                f"choose variant {found!r}"
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is learned."""
    return {n: tuple(value.shape) for n, value in state.items() if not n.endswith(REBUILT)}
