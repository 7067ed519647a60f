"""Reading other people's checkpoints safely, and writing our own whole or not at all.

Pickled checkpoints are opened with ``weights_only=True`` alone; beyond tensors only the plain
containers of ``ALLOWED`` are accepted, and a file that asks for anything else is refused with
the names it asked for. There is no fallback. Prefer safetensors:
``python -m papers_shared.checkpoints convert model.pth model.safetensors``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Containers of plain data that training scripts store beside the weights: argparse's, OmegaConf's.
ALLOWED = (
    "argparse.Namespace",
    "builtins.dict",
    "builtins.list",
    "collections.defaultdict",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "typing.Any",
)

# Where the state dict sits in the usual files, the averaged weights first.
CONTAINERS = (
    "params_ema",
    "ema_state_dict",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
)
PREFIXES = ("module.", "_orig_mod.")


def load_file(path: Path | str, *, sha256: str | None = None) -> Any:
    """Everything that a checkpoint file holds, loaded on the CPU without running its code.

    Args:
        path: a ``.safetensors`` file, or whatever ``torch.save`` wrote.
        sha256: the expected checksum; compared before the file is opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the checksum is wrong, the file is truncated or no checkpoint, or its pickle
            asks for objects outside the allow-list.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give the path of an existing file")
    if sha256 is not None:
        _check_sha256(path, sha256)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            return load_safetensors(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); get it again"
            ) from None
    return _load_pickle(path)


def _check_sha256(path: Path, expected: str) -> None:
    import hashlib

    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != expected:
        raise ValueError(
            f"{path} was not opened: its sha256 is {actual}, expected {expected}; get it again"
        )


def _load_pickle(path: Path) -> Any:
    import pickle

    asked: list[str] = []
    # Older, non-zip files cannot be inspected beforehand; weights_only guards them alone.
    with contextlib.suppress(Exception):
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    allowed = _allowed_objects(asked, path)
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        if "GLOBAL " in reason:
            asks = reason.partition("GLOBAL ")[2].split()[0]
            raise ValueError(_refusal(path, [asks])) from None
        raise ValueError(f"{path} is not a checkpoint torch.load can read safely") from None
    except (RuntimeError, EOFError, OSError, KeyError, IndexError):
        raise ValueError(
            f"{path} is truncated or no checkpoint at all; get it again (its checksum tells)"
        ) from None


def _refusal(path: Path, names: Sequence[str]) -> str:
    return (
        f"{path} was refused: it is a pickle that asks for {', '.join(names)}, not only tensors; "
        "convert it to safetensors on a machine where its code is trusted"
    )


def _allowed_objects(asked: Sequence[str], path: Path) -> list[Any]:
    """The objects for the names that a file asks for; ValueError when one is not allowed."""
    import importlib

    if refused := [name for name in asked if name not in ALLOWED]:
        raise ValueError(_refusal(path, refused))
    objects = []
    for name in asked:
        module, _, attribute = name.rpartition(".")
        try:
            objects.append(getattr(importlib.import_module(module), attribute))
        except ImportError:
            package = module.partition(".")[0]
            raise ValueError(f"{path} holds {name}; pip install {package} to read it") from None
    return objects


def unwrap(checkpoint: Any, *, key: str | None = None) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without DataParallel's and compile's prefixes.

    Args:
        checkpoint: what ``load_file`` returned.
        key: the entry that holds it; by default the first of ``CONTAINERS`` that is there.

    Raises:
        ValueError: no state dict (a mapping of names to tensors) is found.
    """
    state = checkpoint
    if key is not None:
        if not isinstance(state, Mapping) or key not in state:
            known = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"the checkpoint has no entry {key!r}; it has {known}")
        state = state[key]
    elif isinstance(state, Mapping):
        state = next((state[k] for k in CONTAINERS if isinstance(state.get(k), Mapping)), state)
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            "no state dict found: expected a mapping of parameter names to tensors, or one under "
            f"{', '.join(CONTAINERS)}; name the entry that holds it"
        )
    out = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        while all(name.startswith(prefix) for name in out):
            out = {name.removeprefix(prefix): value for name, value in out.items()}
    return out


def load_state_dict(
    path: Path | str, *, sha256: str | None = None, key: str | None = None
) -> dict[str, Tensor]:
    """``unwrap(load_file(path))``."""
    try:
        return unwrap(load_file(path, sha256=sha256), key=key)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from None


def file_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files.

    Raises:
        ValueError: the file is not whole.
    """
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None


def load_strict(model: nn.Module, state: Mapping[str, Tensor], *, what: str = "") -> None:
    """Load ``state`` into ``model``; every name and shape must agree, else nothing changes.

    Args:
        model: receives the values, in its own dtypes.
        state: names to tensors.
        what: what the state dict is called in the message.

    Raises:
        ValueError: names are missing, unexpected or of another shape; the first few are listed.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(names)} {kind} ({_first(names)})"
            for kind, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if names
        ]
        raise ValueError(
            f"{what or 'the state dict'} does not fit {type(model).__name__}: "
            f"{'; '.join(parts)}; is it the checkpoint of another architecture or variant?"
        )
    model.load_state_dict(state)


def _first(names: Sequence[str], count: int = 4) -> str:
    more = f", and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path``; on success it is renamed onto it, else removed.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as error:
        raise type(error)(
            f"cannot write {path}: {error.strerror}; choose another output folder"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_state_dict(
    state: Mapping[str, Tensor], path: Path | str, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as safetensors, atomically.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """Command line: ``convert SOURCE TARGET.safetensors``, ``show SOURCE``."""
    parser = argparse.ArgumentParser(
        prog="python -m papers_shared.checkpoints",
        description="Convert a checkpoint to safetensors, or list what it holds.",
    )
    parser.add_argument("action", choices=["convert", "show"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--key", help="the entry that holds the state dict")
    parser.add_argument("--half", action="store_true", help="floating-point entries as float16")
    args = parser.parse_args(argv)
    try:
        state = load_state_dict(args.source, key=args.key)
        if args.action == "show":
            for name, value in state.items():
                print(f"{name}  {tuple(value.shape)}  {str(value.dtype).removeprefix('torch.')}")
        elif args.target is None or args.target.suffix != ".safetensors":
            parser.error("convert needs a target that ends in .safetensors")
        else:
            if args.half:
                state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
            save_state_dict(state, args.target, metadata=file_metadata(args.source))
            print(f"{args.target}: {len(state)} entries")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
