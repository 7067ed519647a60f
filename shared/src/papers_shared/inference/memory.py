"""How much memory is free, which tile fits into it, and errors that mean 'too much'."""

from __future__ import annotations

import ctypes
import gc
import re
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# How PyTorch, cuDNN and cuBLAS tell of failed allocations beside torch.OutOfMemoryError.
_ALLOCATION = re.compile(
    r"out of memory|not enough memory|(can't|cannot|could not|unable to|failed to) allocate"
    r"|alloc_failed|allocator|alloc_cpu",
    re.IGNORECASE,
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


class OutOfMemory(MemoryError, ValueError):
    """Even the smallest tile does not fit: a ValueError that the user can mend."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error tells of a failed allocation, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_ALLOCATION.search(str(error)))


def release_memory() -> None:
    """Give back what a failed attempt left behind; call it outside the ``except`` block."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory of this process for the next allocation; no other library can.

    By default feature maps of some megabytes are returned to the system, and the pages of the next
    ones are cleared first, which takes a quarter of a photo's processor time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def available_memory(device: torch.device | str = "cpu") -> int:
    """The bytes that this process can still allocate on a device.

    CPU: what the system says is available, and not more than the limits of the control groups
    (containers) leave. CUDA: what the driver says is free, and what PyTorch keeps unused.

    Raises:
        ValueError: a device of another kind.
        ImportError: the system is not Linux, and psutil is missing.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        raise ValueError(f"the free memory of {device} is not known; expected cpu or cuda")
    if Path("/proc/meminfo").is_file():
        return linux_available(Path("/"))
    try:
        import psutil
    except ImportError:
        raise ImportError("how much memory is free is told by psutil: pip install psutil") from None
    return psutil.virtual_memory().available


def linux_available(root: Path) -> int:
    """MemAvailable, or what is left of the smallest limit of a control group around us.

    Args:
        root: where ``proc`` and ``sys`` lie.
    """
    fields = dict(
        line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if line
    )
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return min([available, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterable[int]:
    """What is left of each limit: version 2 (memory.max) and 1 (memory.limit_in_bytes)."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, used, cache = "", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        mount = root / "sys/fs/cgroup" / top
        group = mount / path.lstrip("/")
        # In a container the path may be the host's; the container then sees its group as the top.
        for folder in (g for g in (group, *group.parents) if g == mount or mount in g.parents):
            if not (folder / limit).is_file():
                continue
            text = (folder / limit).read_text().strip()
            if text == "max":
                continue
            stat = (folder / "memory.stat").read_text()
            found = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
            reclaimable = int(found[1]) if found else 0
            yield max(0, int(text) - int((folder / used).read_text()) + reclaimable)


def plan_tile(
    available: int,
    bytes_per_tile: Callable[[int], int],
    candidates: Iterable[int],
    *,
    share: float = 0.7,
) -> int:
    """The largest tile that fits into a share of the memory.

    Args:
        available: bytes, see ``available_memory``.
        bytes_per_tile: peak bytes of computing one tile of a side.
        candidates: sides to choose from.
        share: of the available memory that may be used.

    Raises:
        OutOfMemory: not even the smallest fits.
    """
    sides = sorted(candidates)
    fitting = [side for side in sides if bytes_per_tile(side) <= share * available]
    if not fitting:
        raise OutOfMemory(
            f"the smallest tile, {sides[0]} px, needs {bytes_per_tile(sides[0]) / 1e9:.2f} GB and "
            f"{share * available / 1e9:.2f} GB ({share:.0%} of what is free) may be used; free "
            "memory, or use another device or 16-bit precision"
        )
    return fitting[-1]


class _Living(TorchFunctionMode):
    """Counts the bytes of the tensors that torch's functions return, while these live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_of_call(fn: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most bytes that the tensors made in a call held at once.

    On the CPU those that torch's functions return; what they take meanwhile is not seen. In
    exchange it starts at once, unlike the profiler of ``papers_shared.complexity.peak_memory``.

    Args:
        fn: what is measured; called once.
        device: where it works.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        return torch.cuda.max_memory_allocated(device) - before
    with _Living() as living:
        fn()
    return living.peak
