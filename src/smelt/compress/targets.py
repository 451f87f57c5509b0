"""What a chain is to reach, in one word, and the stages that reach it: `30%`, `8MB`, `2M-params`, `500tok/s`.

A per cent is of the source's bytes on disk. Pruning takes at most a third of the parameters a shot, because what is
beyond does not come back (reference: Minitron); a smaller target is reached in several shots, each with its repair.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from smelt.compress.chain.gates import Gates
from smelt.compress.prune.shapes import Bytes, Share, Speed
from smelt.compress.prune.shapes import Target as Fit
from smelt.compress.prune.stage import Prune
from smelt.compress.quantize.ptq_stage import Quantize
from smelt.compress.stage import Stage
from smelt.core.cost import Floats, Rates
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme

ONE_SHOT = 2 / 3
"""Share of the parameters that one pruning leaves at least."""

_HEADER_BYTES = 160  # of a safetensors file, per tensor: a name, a shape, offsets
_FORMS = re.compile(r"(\d+(?:\.\d+)?)\s*(%|kB|MB|GB|[kMB]?-params|tok/s)")
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "-params": 1.0, "k-params": 1e3, "M-params": 1e6, "B-params": 1e9}


@dataclass(frozen=True, kw_only=True)
class Target:
    """kind: what is bounded; amount: bytes, parameters, tokens a second."""

    kind: Literal["bytes", "parameters", "speed"]
    amount: float
    word: str

    def gates(self, gates: Gates) -> Gates:
        """With the target as a gate, where none of its kind was asked for."""
        if self.kind == "bytes" and gates.max_bytes is None:
            return replace(gates, max_bytes=int(self.amount))
        if self.kind == "speed" and gates.min_tok_s is None:
            return replace(gates, min_tok_s=self.amount)
        return gates


def read_target(word: str, source_bytes: int) -> Target:
    """The target of a word. Raises InvalidRequestError, with an example of each form, for anything else."""
    found = _FORMS.fullmatch(word.strip())
    amount = float(found[1]) if found else 0.0
    if found is None or amount <= 0 or (found[2] == "%" and amount >= 100):
        raise InvalidRequestError(
            f"--to {word}: sought 30% (of the source's bytes), 8MB, 2M-params or 500tok/s; found none of these"
        )
    unit = found[2]
    if unit == "%":
        return Target(kind="bytes", amount=source_bytes * amount / 100, word=word)
    if unit == "tok/s":
        return Target(kind="speed", amount=amount, word=word)
    kind: Literal["bytes", "parameters"] = "parameters" if unit.endswith("-params") else "bytes"
    return Target(kind=kind, amount=amount * _UNITS[unit], word=word)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the source: its shape, what its weights are stored in, and the bytes of its other files."""

    config: DecoderConfig
    floats: Floats
    other_bytes: int


def aimed(
    stages: Sequence[Stage], target: Target, sizes: Sizes, rates: Rates | None, *, chosen: bool
) -> tuple[tuple[Stage, ...], list[str]]:
    """The stages with their pruning set to the target, and what there is to say of that.

    chosen: the user named the stages; otherwise pruning and repair are left out where quantizing alone is enough, and
    repeated where one shot is not. rates: of this machine, for a speed. Raises InvalidRequestError where the stages
    named cannot reach the target.
    """
    stored = final_form(stages, sizes.floats)
    fit = _fit(target, sizes, stored, rates)
    burden = fit.burden(sizes.config, sizes.config)
    prunes = [i for i, stage in enumerate(stages) if isinstance(stage, Prune)]
    if burden <= 1.0:
        if chosen or not prunes:
            return tuple(stages), [f"{target.word} is met without pruning to it"]
        rest = tuple(stage for stage in stages if not isinstance(stage, Prune) and stage.name != "distil")
        if not rest:
            raise InvalidRequestError(f"--to {target.word}: the source is that small already")
        return rest, [f"{target.word} is met by {', '.join(s.name for s in rest)} alone: nothing is pruned"]
    if not prunes:
        raise InvalidRequestError(
            f"--to {target.word}: the stages named leave {burden:.2f} times too much; sought prune among them"
        )
    return _shots(stages, prunes, fit, 1.0 / burden, chosen=chosen)


def final_form(stages: Sequence[Stage], floats: Floats) -> Floats | Scheme:
    """What the last stage stores weights in."""
    schemes = [stage.scheme for stage in stages if isinstance(stage, Quantize)]
    return schemes[-1] if schemes else floats


def _fit(target: Target, sizes: Sizes, stored: Floats | Scheme, rates: Rates | None) -> Fit:
    if target.kind == "parameters":
        return Share(of_parameters=target.amount / sizes.config.num_parameters)
    if target.kind == "speed":
        if rates is None:
            raise InvalidRequestError("a speed is a target of this machine: its rates are needed")
        return Speed(tok_s=target.amount, rates=rates)
    parts = 1 if not isinstance(stored, Scheme) else 4
    beside = sizes.other_bytes + _HEADER_BYTES * parts * len(sizes.config.tensor_shapes())
    room = int(target.amount) - beside
    if room <= 0:
        raise InvalidRequestError(
            f"--to {target.word}: tokenizer, configuration and the weights' header alone take {beside:,} bytes"
        )
    return Bytes(at_most=room, stored=stored)


def _shots(
    stages: Sequence[Stage], prunes: Sequence[int], fit: Fit, share: float, *, chosen: bool
) -> tuple[tuple[Stage, ...], list[str]]:
    """Pruning in equal steps, each followed by what follows the first one, the last exactly to the target."""
    num = len(prunes) if chosen else max(1, math.ceil(math.log(share) / math.log(ONE_SHOT) - 1e-9))
    if share ** (1 / num) < ONE_SHOT - 1e-9:
        needed = math.ceil(math.log(share) / math.log(ONE_SHOT) - 1e-9)
        raise InvalidRequestError(
            f"--to leaves {share:.0%} of the parameters, and one pruning takes a third at most: sought {needed} times "
            f"prune,distil among the stages, found {num}"
        )
    each = share ** (1 / num)
    if chosen:
        made = list(stages)
        for number, i in enumerate(prunes):
            made[i] = _pruned(stages[i], fit if number == num - 1 else Share(of_parameters=each))
        return tuple(made), []
    first = prunes[0]
    repair = [stage for stage in stages[first + 1 : first + 2] if stage.name == "distil"]
    rest = stages[first + 1 + len(repair) :]
    made = list(stages[:first])
    for number in range(num):
        made += [_pruned(stages[first], fit if number == num - 1 else Share(of_parameters=each)), *repair]
    said = [] if num == 1 else [f"{share:.0%} of the parameters are left: {num} shots of pruning with a repair each"]
    return (*made, *rest), said


def _pruned(stage: Stage, fit: Fit) -> Stage:
    assert isinstance(stage, Prune)
    return replace(stage, target=fit)
