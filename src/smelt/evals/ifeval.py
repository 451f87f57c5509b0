"""IFEval's prompts (Google, Apache-2.0, arXiv 2311.07911): 541 with verifiable instructions, fewer where held back."""

from __future__ import annotations

import json
from pathlib import Path

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.evals.cases import Case
from smelt.evals.instructions import Instruction


def cases(file: Path, params: SamplingParams) -> list[Case]:
    """One case per prompt, asked as it stands. Kinds may carry a language in front ("en:")."""
    found = []
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        instructions = tuple(
            Instruction(
                ":".join(name.split(":")[-2:]), {key: value for key, value in kwargs.items() if value is not None}
            )
            for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
        )
        request = ChatRequest(messages=(Message.of("user", row["prompt"]),), params=params)
        found.append(
            Case(suite="ifeval", language="en", grader="instructions", request=request, instructions=instructions)
        )
    return found
