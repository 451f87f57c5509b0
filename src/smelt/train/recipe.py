"""A recipe: a complete run as a Python file, its settings as a frozen dataclass.

The file has a module-level `recipe = Recipe(settings=..., smoke=..., make=...)`. `smelt train` changes settings by
name, refuses names and values that do not fit, and calls `make`; called again with the same folder, `make` goes on.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch

from smelt.core.errors import InvalidRequestError
from smelt.train.distributed import World
from smelt.train.report import Report, print_report

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where a recipe works. data: the folder of data or None; out: the folder it makes everything in.

    on_report and stopping are for its `Run`s, `say` for what else it wants told. world: the processes it runs in;
    only where `world.writes` may it write files, and `world.wait()` lets the others wait for them.
    """

    out: Path
    data: Path | None = None
    on_report: Callable[[Report], None] = print_report
    say: Callable[[str], None] = print
    stopping: threading.Event = field(default_factory=threading.Event)
    world: World = World(torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[S]):
    """settings: a frozen dataclass with every value that decides the outcome; smoke: the same for a run of seconds.

    make: does everything, from data to the finished folder, which it returns; called again it goes on.
    """

    settings: S
    smoke: S
    make: Callable[[S, Workshop], Path]


def load_recipe(path: Path) -> Recipe[Any]:
    """The recipe of a Python file, imported as part of its package where it has one.

    Raises InvalidRequestError for a file that is none or that does not load.
    """
    if not path.is_file() or path.suffix != ".py":
        others = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise InvalidRequestError(
            f"{path.name}: sought a recipe's Python file; beside it lie {', '.join(others) or 'none'}"
        )
    module = _imported(path.resolve())
    found = getattr(module, "recipe", None)
    if not isinstance(found, Recipe):
        raise InvalidRequestError(f"{path.name}: sought a module-level `recipe` of type Recipe, found {_kind(found)}")
    return found


def with_settings(settings: S, changes: Sequence[str]) -> S:
    """`settings` with `key=value` changes; a dotted key reaches into a nested dataclass.

    Raises InvalidRequestError, naming the key and what is known, for an unknown key or a value of another type.
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise InvalidRequestError(f"--set {change}: sought key=value")
        settings = cast(S, _changed(settings, key.strip().split("."), text.strip(), key.strip()))
    return settings


def known_settings(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every key that can be set, with its value; nested ones dotted."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            found |= known_settings(value, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value
    return found


def _imported(path: Path) -> types.ModuleType:
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # what the recipe imports lies beside it
    name = ".".join(names)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InvalidRequestError(f"{path.name} does not load: {error}") from error
    if Path(module.__file__ or "").resolve() != path:
        raise InvalidRequestError(f"{path.name}: another module named {name} is loaded already; rename the file")
    return module


def _changed(settings: Any, keys: list[str], text: str, whole: str) -> Any:
    hints = get_type_hints(type(settings))
    known = [item.name for item in dataclasses.fields(settings)]
    if keys[0] not in known:
        near = difflib.get_close_matches(keys[0], known, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InvalidRequestError(f"--set {whole}: unknown{meant}; known: {', '.join(known)}")
    value = getattr(settings, keys[0])
    nested = dataclasses.is_dataclass(value)
    if nested != (len(keys) > 1):
        sought = "one of its keys: " + ", ".join(known_settings(value)) if nested else "a plain key"
        raise InvalidRequestError(f"--set {whole}: sought {sought}")
    new = _changed(value, keys[1:], text, whole) if nested else _parsed(text, hints[keys[0]], whole)
    try:
        return dataclasses.replace(settings, **{keys[0]: new})
    except ValueError as error:  # the dataclass's own checks
        raise InvalidRequestError(f"--set {whole}={text}: {error}") from error


def _parsed(text: str, kind: Any, key: str) -> Any:
    """The text as a value of `kind`: bool, int, float, str, Path, Literal, a tuple of one of them, or None."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        (kind,) = [arg for arg in args if arg is not type(None)][:1]
        return _parsed(text, kind, key)
    if origin is tuple:
        return tuple(_parsed(part.strip(), args[0], key) for part in text.split(",") if part.strip())
    if origin is Literal:
        if text not in args:
            raise InvalidRequestError(f"--set {key}: sought one of {', '.join(map(str, args))}, found {text!r}")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidRequestError(f"--set {key}: sought true or false, found {text!r}")
        return text.lower() == "true"
    if kind not in (int, float, str, Path):
        raise InvalidRequestError(f"--set {key}: a value of type {kind} cannot be given on the command line")
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequestError(f"--set {key}: sought {kind.__name__}, found {text!r}") from None


def _kind(value: Any) -> str:
    return "none" if value is None else type(value).__name__
