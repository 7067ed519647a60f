"""One forward pass on a copy of a network, and what its modules, operators or calls cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from papers_shared._calflops import CalflopsCounter

# The shape of the one input, batch included, or the forward pass's arguments by position or name.
Inputs = Sequence[int] | Tensor | Sequence[Tensor] | Mapping[str, Tensor]
# What one call costs: the module it belongs to, the kind of operation, and the count.
Entry = tuple[str, str, int]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def module_macs(module: nn.Module, given: Tensor, made: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return made.numel() * module.in_features
    if isinstance(module, CONVOLUTIONS):
        return made.numel() * math.prod(module.kernel_size) * module.in_channels // module.groups
    if isinstance(module, TRANSPOSED):
        return given.numel() * math.prod(module.kernel_size) * module.out_channels // module.groups
    return 0


def copy_on(model: nn.Module, device: str) -> nn.Module:
    # Handing deepcopy the finished copies of all tensors saves copying the weights themselves.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values()):
            _memorize(value, memo, device)
        for value in vars(module).values():  # tensors that are neither
            _memorize(value, memo, device)
    return copy.deepcopy(model, memo).eval()


def _memorize(value: Any, memo: dict[int, Any], device: str) -> None:
    if isinstance(value, Tensor) and id(value) not in memo:
        moved = value.detach().to(device, copy=True)
        memo[id(value)] = nn.Parameter(moved, False) if isinstance(value, nn.Parameter) else moved


def _forward(network: nn.Module, inputs: Inputs, device: str) -> None:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = {name: value.to(device) for name, value in inputs.items()}
    elif isinstance(inputs, Tensor):
        args = [inputs.to(device)]
    elif all(isinstance(item, int) for item in inputs):
        args = [torch.zeros(*inputs, device=device)]
    else:
        args = [item.to(device) for item in inputs]  # type: ignore[union-attr]
    try:
        with torch.no_grad():
            network(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        if device != "meta":
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{type(network).__name__} does not run on the meta device ({reason}); check the "
            "inputs, or count with device='cpu'"
        ) from error


def count_modules(
    network: nn.Module,
    inputs: Inputs,
    count: Callable[[nn.Module, Tensor, Tensor], int],
    *,
    device: str,
) -> list[Entry]:
    entries: list[Entry] = []

    def watch(name: str, module: nn.Module) -> None:
        kind = "linear" if isinstance(module, nn.Linear) else "convolution"

        def hook(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if number := count(module, given[0], made):
                entries.append((name, kind, number))

        module.register_forward_hook(hook)

    for name, module in network.named_modules():
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            watch(name, module)
    _forward(network, inputs, device)
    return entries


def count_calls(network: nn.Module, inputs: Inputs, *, device: str) -> list[Entry]:
    entries: list[Entry] = []
    running = [""]  # the modules whose forward pass is under way, innermost last

    def watch(name: str, module: nn.Module) -> None:
        def leave(*_: Any) -> None:
            running.pop()

        module.register_forward_pre_hook(lambda *_: running.append(name))
        module.register_forward_hook(leave)

    for name, module in network.named_modules():
        watch(name, module)
    with CalflopsCounter(lambda kind, number: entries.append((running[-1], kind, number))):
        _forward(network, inputs, device)
    return entries


def count_operators(network: nn.Module, inputs: Inputs, *, device: str) -> list[Entry]:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        _forward(network, inputs, device)
    root = type(network).__name__
    flops = {
        (name.removeprefix(root).removeprefix("."), str(operator)): number
        for name, operators in counter.get_flop_counts().items()
        if name != "Global"
        for operator, number in operators.items()
    }
    # A module's figure includes those of the modules it calls; what is left is its own.
    own = dict(flops)
    for name, operator in flops:
        caller = name
        while caller:
            caller = caller.rpartition(".")[0]
            if (caller, operator) in flops:  # a ModuleList is called by nobody
                own[caller, operator] -= flops[name, operator]
                break
    return [(*key, number) for key, number in own.items() if number]
