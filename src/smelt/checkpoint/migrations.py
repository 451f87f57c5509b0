"""Folders of older format versions, brought to today's by numbered steps.

`smelt.json` carries `format_version`. A folder without it came from elsewhere and is read as plain Hugging Face
form. When a version is left behind, the step that leads from it is appended to STEPS and FORMAT_VERSION grows
by one; a step sees and returns the parsed documents and the lazily loaded tensors, never the disk.

Version 1: Hugging Face form (config.json, safetensors), smelt.json with format_version and made_by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smelt.core.errors import CheckpointError, UnsupportedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a step may change: config.json, and tensors by name (shapes known before data is read)."""

    config: Mapping[str, Any]
    tensors: Mapping[str, NDArray[np.float32]]


Step = Callable[[Content], Content]

STEPS: tuple[Step, ...] = ()
FORMAT_VERSION = 1 + len(STEPS)


def migrate(content: Content, version: Any, steps: Sequence[Step] = STEPS) -> Content:
    """`content` in the newest form; `steps[i]` leads from version i+1 to i+2.

    Raises CheckpointError for a version that is no version, UnsupportedError for one from the future.
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise CheckpointError(f"smelt.json: format_version must be a whole number >= 1, found {version!r:.40}")
    if version > len(steps) + 1:
        raise UnsupportedError(
            f"smelt.json: format_version {version} is newer than this smelt, which reads up to {len(steps) + 1}; "
            "update smelt"
        )
    for step in steps[version - 1 :]:
        content = step(content)
    return content
