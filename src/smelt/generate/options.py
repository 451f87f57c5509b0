"""How a model folder is served: weights, memory, limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smelt.core.decoder import DecoderConfig
from smelt.core.errors import UnsupportedError

MEBIBYTE = 1 << 20
DEFAULT_KV_BYTES = 128 * MEBIBYTE
DEFAULT_MAX_OUTPUT_LEN = 16_384  # gpt-4o-mini's own limit


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMOptions:
    """Settings of one loaded model.

    weights: "w8" (int8 in groups of 32, activations int8) or "fp32". threads: None lets the native core choose from
    affinity, quota and cores. kv_bytes: memory for keys and values; None takes 128 MiB, more where one full context
    needs more, never over half of the memory that is free. context_len and max_output_len can only lower the
    model's own. max_waiting: requests in the queue before OverloadedError.
    """

    weights: Literal["w8", "fp32"] = "w8"
    threads: int | None = None
    kv_bytes: int | None = None
    block_size: int = 16
    max_batch_tokens: int = 256
    max_running: int = 16
    max_waiting: int = 256
    context_len: int | None = None
    max_output_len: int | None = None
    name: str | None = None
    grammar_cache: int = 64


@dataclass(frozen=True, slots=True)
class Window:
    """The limits that follow from a model, the options and the machine's memory. Lengths in tokens."""

    num_blocks: int
    context_len: int
    max_output_len: int


def window(config: DecoderConfig, options: LLMOptions, *, num_blocks: int | None = None) -> Window:
    """Blocks in the key/value pool and the context they allow; `num_blocks` where the pool exists already.

    A context that does not fit into the memory is lowered to what fits, and that is the limit requests are held
    to. Raises UnsupportedError when not even one block fits.
    """
    block_bytes = config.kv_bytes_per_token * options.block_size + config.state_bytes  # a block keeps a state
    wanted = min(config.context_len, options.context_len or config.context_len)
    if num_blocks is None:
        budget = options.kv_bytes
        if budget is None:
            one_context = -(-wanted // options.block_size) * block_bytes
            budget = min(max(DEFAULT_KV_BYTES, one_context), free_memory_bytes() // 2)
        num_blocks = budget // block_bytes
        if num_blocks < 1:
            raise UnsupportedError(
                f"no room for keys and values: one block of {options.block_size} tokens needs {block_bytes} bytes, "
                f"{budget} are available; give more memory or a smaller model"
            )
    context_len = min(wanted, num_blocks * options.block_size)
    max_output_len = min(options.max_output_len or DEFAULT_MAX_OUTPUT_LEN, context_len)
    return Window(num_blocks, context_len, max_output_len)


def free_memory_bytes() -> int:
    """Memory this process may still take: what the kernel calls available, within the control group's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(int(limit) - used, 0))
    except (OSError, ValueError):
        return free
    return free
