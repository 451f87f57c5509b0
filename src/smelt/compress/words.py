"""Stages by the words people say: a word becomes a stage with its defaults, changed by `stage.key=value`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from smelt.compress.distil import Distil, Finetune
from smelt.compress.linear.stage import Linearise
from smelt.compress.prune.shapes import Share
from smelt.compress.prune.stage import Prune
from smelt.compress.quantize.ptq_stage import Quantize
from smelt.compress.quantize.qat import QuantizeAware
from smelt.compress.share.stage import Repeat
from smelt.compress.share.stage import Share as ShareLayers
from smelt.compress.sparse.gradual import RetrainSparse
from smelt.compress.sparse.stage import Sparsify
from smelt.compress.stage import Stage
from smelt.core.decoder import DecoderConfig
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import ActivationFormat, Scheme, WeightFormat
from smelt.train.recipe import with_settings

KEPT = 0.7
"""Share of the parameters that a prune without a target leaves."""

# Of 4-bit weights: the widest that divides every row; the native core runs no narrower ones. Pruned rows may want a
# narrower one still, which shows when they are there (`fit_groups`).
_GROUPS = (64, 32)


def _w8(config: DecoderConfig) -> Quantize:
    eight = WeightFormat(bits=8)
    return Quantize(scheme=Scheme(weights=eight, head=eight), method="rtn")


def _w4(config: DecoderConfig) -> Quantize:
    return Quantize(scheme=_four(config), method="gptq", fit_groups=True)


def _four(config: DecoderConfig) -> Scheme:
    widths = [width for _, width in config.matrix_shapes().values()]
    group = next((size for size in _GROUPS if all(width % size == 0 for width in widths)), None)
    return Scheme(weights=WeightFormat(bits=4, group_size=group), head=WeightFormat(bits=8))


def _w8a8(config: DecoderConfig) -> Quantize:
    eight = WeightFormat(bits=8)
    scheme = Scheme(weights=eight, head=eight, activations=ActivationFormat(bits=8))
    return Quantize(scheme=scheme, method="rtn")


WORDS: Mapping[str, Callable[[DecoderConfig], Stage]] = {
    "prune": lambda config: Prune(target=Share(of_parameters=KEPT)),
    "distil": lambda config: Distil(),
    "finetune": lambda config: Finetune(),
    "sparsify": lambda config: Sparsify(),
    "retrain-sparse": lambda config: RetrainSparse(),
    "share": lambda config: ShareLayers(),
    "repeat": lambda config: Repeat(),
    "linearise": lambda config: Linearise(),
    "quantize": _w8,
    "w8": _w8,
    "w4": _w4,
    "w8a8": _w8a8,
    "quantize-aware": lambda config: QuantizeAware(scheme=_four(config), fit_groups=True),
}
"""What each word makes of a source's shape. w8, w4 and w8a8 are the stage `quantize` in other formats."""

DEFAULT = ("prune", "distil", "quantize")


def stage_of(word: str, config: DecoderConfig) -> Stage:
    """The stage of a word. Raises InvalidRequestError, naming those there are."""
    if word not in WORDS:
        raise InvalidRequestError(f"stages: no stage {word!r}; there are {', '.join(WORDS)}")
    return WORDS[word](config)


def changed(stages: Sequence[Stage], changes: Sequence[str]) -> tuple[Stage, ...]:
    """The stages with `stage.key=value`; `stage.2.key=value` changes the second stage of that name alone.

    Raises InvalidRequestError for a stage that is not among them, and for what `with_settings` refuses.
    """
    made = list(stages)
    for change in changes:
        path, equals, value = change.partition("=")
        name, _, key = path.strip().partition(".")
        number, _, rest = key.partition(".")
        only = int(number) if number.isdigit() else None
        key = rest if only is not None else key
        places = [i for i, stage in enumerate(made) if stage.name == name]
        if not equals or not key or not places:
            names = ", ".join(dict.fromkeys(stage.name for stage in made))
            raise InvalidRequestError(f"--set {change}: sought stage.key=value with a stage among {names}")
        if only is not None and not 1 <= only <= len(places):
            raise InvalidRequestError(f"--set {change}: there are {len(places)} stages named {name}, counted from 1")
        for i in places if only is None else [places[only - 1]]:
            made[i] = with_settings(made[i], [f"{key}={value}"])
    return tuple(made)


def scratch_control(stages: Sequence[Stage]) -> Stage | None:
    """A control for the last repair: its steps on fresh weights, at the rates of a start from scratch."""
    repairs = [stage for stage in stages if isinstance(stage, Distil)]
    if not repairs:
        return None
    last: Any = repairs[-1]
    control: Stage = replace(last, fresh=True, muon_lr=10 * last.muon_lr, adam_lr=10 * last.adam_lr)
    return control
