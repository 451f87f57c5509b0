"""The house shape: Gemma 3's text decoder at widths of our own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smelt.core.decoder import DecoderConfig, LayerConfig, RopeConfig

if TYPE_CHECKING:
    from smelt.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths and depths. Layers see `window` tokens back, the `global_layers` everything."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    num_layers: int = 6
    global_layers: tuple[int, ...] = (5,)
    window: int = 1024
    context_len: int = 4096

    def decoder(self, tokenizer: Tokenizer) -> DecoderConfig:
        """The decoder of this shape over a house tokenizer."""
        controls = tokenizer.control_ids
        everything, near = LayerConfig(window=None, rope=0), LayerConfig(window=self.window, rope=1)
        return DecoderConfig(
            family="gemma3_text",
            vocab_size=tokenizer.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            layers=tuple(everything if i in self.global_layers else near for i in range(self.num_layers)),
            ropes=(RopeConfig(base=1_000_000.0), RopeConfig(base=10_000.0)),
            context_len=self.context_len,
            norm_offset=1.0,
            activation="gelu_tanh",
            qk_norm=True,
            post_norms=True,
            embedding_scale=math.sqrt(self.hidden_size),
            attention_scale=self.head_dim**-0.5,
            bos_id=controls["<|bos|>"],
            eos_ids=(controls["<|end|>"],),
            pad_id=controls["<|pad|>"],
        )


TINY = Shape(
    hidden_size=32,
    intermediate_size=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    num_layers=2,
    global_layers=(1,),
)
