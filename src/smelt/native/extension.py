"""The compiled module, imported where it is first needed."""

from __future__ import annotations

import importlib
from typing import Any

from smelt.core.errors import EngineError


def core() -> Any:
    """`smelt.native._core`. Raises EngineError where it has not been built."""
    try:
        return importlib.import_module("smelt.native._core")
    except ImportError as error:
        raise EngineError("the native core is not built for this Python; run `make setup`") from error
