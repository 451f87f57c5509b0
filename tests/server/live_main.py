"""`python -m tests.server.live_main DIR [--small]`: serves a folder as `smelt serve` does, prints its address.

Exit status 2 and one line on standard error when it cannot start.
"""

from __future__ import annotations

import sys

from pydantic import ValidationError

from smelt.core.errors import SmeltError
from smelt.generate.llm import LLM
from smelt.generate.options import LLMOptions
from smelt.server.serve import load_model, run
from smelt.server.settings import Settings


def load_small(settings: Settings) -> LLM:
    """fp32 on one thread: deterministic to the last digit; and a pool that tests can fill."""
    return LLM.load(settings.model, options=LLMOptions(weights="fp32", threads=1, kv_bytes=2**23))


def main() -> int:
    try:
        run(
            Settings(model=sys.argv[1]),
            load=load_small if "--small" in sys.argv else load_model,
            on_ready=lambda ready: sys.stdout.write(f"{ready.base_url}\n") and sys.stdout.flush(),
        )
    except (SmeltError, ValidationError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
