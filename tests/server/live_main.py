"""`python -m tests.server.live_main DIR`: serves a folder as `smelt serve` does, prints the address when it answers.

Exit status 2 and one line on standard error when it cannot start.
"""

from __future__ import annotations

import sys

from pydantic import ValidationError

from smelt.core.errors import SmeltError
from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions
from smelt.server.serve import run
from smelt.server.settings import Settings


def load(settings: Settings) -> LLM:
    # fp32: deterministic to the last digit, and a pool small enough that tests can fill it.
    return LLM.load(settings.model, options=LLMOptions(weights="fp32", threads=1, kv_bytes=2**23, name="tiny"))


def main() -> int:
    try:
        run(
            Settings(model=sys.argv[1]),
            load=load,
            on_ready=lambda ready: sys.stdout.write(f"{ready.base_url}\n") and sys.stdout.flush(),
        )
    except (SmeltError, ValidationError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
