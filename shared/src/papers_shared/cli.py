"""One way from a dataclass and a YAML file to a command line.

A command is a dataclass: its fields are the options, their metadata the help texts. Values come
from the defaults, then ``--config FILE.yaml``, then the options given. What runs is named as a
string and imported only once the arguments are right, so ``--help`` and errors answer at once.

    @dataclass
    class TrainConfig:
        epochs: int = option(400, "how often the training set is seen")

    COMMANDS = {"train": Command("train a network", TrainConfig, "adabin.train:main")}

    def main(argv=None):
        return run("adabin", "Binary networks ...", COMMANDS, argv)
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

DEBUG_VARIABLE = "PAPERS_DEBUG"
T = TypeVar("T")


def option(default: Any, help: str, *, positional: bool = False, short: str = "") -> Any:
    """A dataclass field with a help text; ``positional`` ones carry no dashes.

    A ``default`` of ``...`` makes the option required; ``short`` is another name, such as ``-o``.
    """
    metadata = {"help": help, "positional": positional, "short": short}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Command:
    """One verb of a program.

    Attributes:
        help: one line.
        config: the dataclass of its options.
        run: ``module:function``; called with an instance of ``config``; returns an exit status
            or None.
        configs: folder of named configurations for ``--config NAME`` (inside the package).
    """

    help: str
    config: type
    run: str
    configs: str = ""


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run(
    program: str,
    description: str,
    commands: Mapping[str, Command],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv``, build the command's configuration, run it, return the exit status.

    Errors that a user can mend (ValueError, OSError, ImportError) are printed as one line with
    status 2; ``PAPERS_DEBUG=1`` shows the traceback instead.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog=program, description=description, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, command in commands.items():
        sub = verbs.add_parser(
            name, help=command.help, description=_summary(command), allow_abbrev=False
        )
        _add_options(sub, command)
    try:
        known, unknown = parser.parse_known_args(argv)
        command = commands[known.verb]
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]}{_instead(unknown[0], command)}; see {program} "
                f"{known.verb} --help"
            )
        values = vars(known)
        values.pop("verb")
        config: Any = load_config(
            command.config,
            find_config(values.pop("config", None), command.configs),
            {name: value for name, value in values.items() if value is not None},
        )
        module, _, function = command.run.partition(":")
        return getattr(importlib.import_module(module), function)(config) or 0
    except SystemExit as stop:  # argparse's own, --help among them
        return stop.code if isinstance(stop.code, int) else 2
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def find_config(name: str | None, folder: str) -> Path | None:
    """The YAML file called ``name``: a path, or the stem of one in the package's folder.

    Args:
        name: as given; None stays None.
        folder: ``package/subfolder`` of the named configurations, or ''.

    Raises:
        FileNotFoundError: there is no such file; the known names are listed.
    """
    if name is None:
        return None
    if Path(name).is_file():
        return Path(name)
    known = {}
    if folder:
        from papers_shared.workspace import package_folder

        package, _, inside = folder.partition("/")
        known = {p.stem: p for p in sorted((package_folder(package) / inside).glob("*.yaml"))}
    if name in known:
        return known[name]
    raise FileNotFoundError(f"no configuration file {name}; named ones: {', '.join(known) or '-'}")


def load_config(
    cls: type[T], path: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> T:
    """Build a configuration: defaults, then the YAML file, then ``overrides``.

    Raises:
        ValueError: a key is unknown (the nearest valid one is named), a value has the wrong type,
            or a required one is missing.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from None
        if not isinstance(loaded, Mapping):
            raise ValueError(f"{path} must hold keys and values, not {type(loaded).__name__}")
        values |= _checked(cls, loaded, str(path))
    values |= _checked(cls, overrides or {}, "command line")
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING and f.name not in values:
            raise ValueError(f"{_flag(f.name)} is required: {f.metadata.get('help', '')}")
    return cls(**values)


def _checked(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    out = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(name, names)}")
        out[name] = convert(value, hints[name], f"{where}: {key}")
    return out


def _instead(given: str, command: Command) -> str:
    """What to write for an option that there is not."""
    name = given.partition("=")[0]
    bare, dashed = (
        [f.name for f in _fields(command) if bool(f.metadata.get("positional")) == positional]
        for positional in (True, False)
    )
    if any(name == _flag(argument) for argument in bare):
        return f", {name[2:].upper()} is written without {name}"
    return _nearest(name, [_flag(argument) for argument in dashed])


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` (a string of the command line, or a YAML value) as the type ``hint``.

    Supports str, int, float, bool, Path, Literal, Optional, and list/tuple of them.

    Raises:
        ValueError: it cannot be read as that type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return convert(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value not in args:
            near = _nearest(str(value), [str(a) for a in args])
            raise ValueError(f"{where} is {value!r}{near} (one of {', '.join(map(str, args))})")
        return value
    if origin in (list, tuple):
        items = list(value) if isinstance(value, list | tuple) else [value]
        if origin is tuple and args[-1] is not ... and len(items) != len(args):
            raise ValueError(f"{where} needs {len(args)} values, not {len(items)}")
        return origin(convert(item, args[0], where) for item in items)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return str(value).lower() in ("true", "yes", "on", "1")
    elif hint in (int, float, Path, str):
        wrong = isinstance(value, bool | list | dict) or value is None
        if not wrong and not (hint is int and isinstance(value, float) and value != int(value)):
            try:
                return hint(value)  # also YAML 1.1's habit of reading 1e-4 as text
            except (TypeError, ValueError):
                pass
    raise ValueError(f"{where} is {value!r}, expected {getattr(hint, '__name__', hint)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _summary(command: Command) -> str:
    doc = (command.config.__doc__ or "").strip()
    return doc if doc and not doc.startswith(command.config.__name__ + "(") else command.help


def _add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    if command.configs or any(not f.metadata.get("positional") for f in _fields(command)):
        parser.add_argument("--config", help="YAML file with any of the options below")
    hints = typing.get_type_hints(command.config)
    for f in _fields(command):
        hint = hints[f.name]
        text = f.metadata.get("help", "").replace("%", "%%")
        required = f.default is MISSING and f.default_factory is MISSING
        default = f.default if f.default_factory is MISSING else f.default_factory()
        many = typing.get_origin(hint) in (list, tuple)
        if f.metadata.get("positional"):
            parser.add_argument(
                f.name,
                help=text,
                nargs=("+" if required else "*") if many else (None if required else "?"),
            )
            continue
        if not required and default not in (None, (), ""):
            text += f" (default: {default})"
        shape: dict[str, Any] = {"nargs": "+"} if many else {}
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        if hint is bool:
            shape = {"action": argparse.BooleanOptionalAction}
        elif not many:
            shape = {"metavar": "|".join(map(str, choices)) or f.name.rpartition("_")[2].upper()}
        names = [f.metadata["short"], _flag(f.name)] if f.metadata.get("short") else [_flag(f.name)]
        parser.add_argument(*names, dest=f.name, help=text, default=None, **shape)


def _fields(command: Command) -> Sequence[dataclasses.Field]:
    return dataclasses.fields(command.config)
