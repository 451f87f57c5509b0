"""Commands whose options are the fields of a frozen dataclass, so that an option has one owner and one default."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Turn a function of one `options` value into a Typer command with one parameter per field.

    Fields are annotated as Typer wants them (Annotated with typer.Option or Argument); defaults are the fields' own.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(options)  # type: ignore[arg-type]  # a dataclass, as the docstring says
    ]

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        def called(**values: Any) -> None:
            command(options(**values))

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorate
