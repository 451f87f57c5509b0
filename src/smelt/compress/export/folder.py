"""A model as a folder that transformers loads, plain or in compressed-tensors' few bits, and its word on it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from smelt.checkpoint import open_checkpoint, save_checkpoint
from smelt.checkpoint.safetensors import FloatDtype
from smelt.compress.export.compare import Check, compare_logits, compare_texts, our_logits, sample_ids
from smelt.compress.export.samples import CONVERSATION, TEXTS, as_openai
from smelt.core.errors import InvalidRequestError
from smelt.core.quantization import Scheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from smelt.chat import Renderer
    from smelt.compress.export.plain import Plain
    from smelt.tokenizer import Tokenizer

DTYPES: dict[str, FloatDtype] = {"f32": "F32", "bf16": "BF16", "f16": "F16"}
SCHEMES = ("w8", "w4", "w8a8")

_SAME = 1e-3  # relative error of logits, both in float32 from the same stored numbers
_ROUNDED = 5e-2  # where inputs are rounded to 8 bits too, which our decoder leaves alone
_SOURCE = 1e-2  # of a folder in float32 or float16 against the source


def write_plain(folder: Path, plain: Plain, dtype: FloatDtype, files: Mapping[str, bytes]) -> list[str]:
    """Save in floating point; what quantized matrices stand for where there are such. Notes on that."""
    save_checkpoint(folder, plain.config, plain.tensors, dtype=dtype, files=files)
    if not plain.quantized:
        return []
    exact = "exactly" if dtype == "F32" else f"rounded to {dtype}"
    return [f"{len(plain.quantized)} matrices in few bits are written as what they stand for, {exact}"]


def write_compressed(
    folder: Path, plain: Plain, word: str, scheme: Scheme | None, dtype: FloatDtype, files: Mapping[str, bytes]
) -> list[str]:
    """Save in few bits: the codes that are there (`word` empty, stored as `scheme` says), or rounded as `word` says.

    Raises InvalidRequestError where there is nothing to keep, or where a second rounding is asked for.
    """
    if plain.quantized and word:
        raise InvalidRequestError(
            f"--type {word}: this model is in few bits already, and would be rounded a second time; "
            "leave --type out to keep its codes, or export the model it was made from"
        )
    if plain.quantized:
        kept, config = plain.quantized, plain.config
        save_checkpoint(folder, config, plain.tensors, dtype=dtype, files=files, quantized=kept, scheme=scheme)
        return [f"{len(plain.quantized)} matrices keep their codes"]
    if not word:
        raise InvalidRequestError(f"--to compressed-tensors: sought --type, one of {', '.join(SCHEMES)}")
    from smelt.compress.quantize.ptq_stage import Quantize
    from smelt.compress.quantize.rtn import check_scheme, rounded
    from smelt.compress.words import stage_of

    sought = cast(Quantize, stage_of(word, plain.config)).scheme
    check_scheme(plain.config, sought)
    codes = rounded(plain.config, plain.tensors, sought)
    save_checkpoint(folder, plain.config, plain.tensors, dtype=dtype, files=files, quantized=codes, scheme=sought)
    hint = "; `smelt shrink --stages w4` looks at data while it rounds" if word == "w4" else ""
    return [f"{len(codes)} matrices are rounded to nearest{hint}"]


def missing_reader(*, quantized: bool) -> str:
    """Which module the independent reader lacks here; empty where it is complete."""
    wanted = ("transformers", "compressed_tensors") if quantized else ("transformers",)
    return next((module for module in wanted if importlib.util.find_spec(module) is None), "")


def check(folder: Path, plain: Plain, tokenizer: Tokenizer | None, renderer: Renderer | None) -> list[Check]:
    """Everything transformers makes of the folder, against what we make of it and of the source."""
    import numpy as np

    written = open_checkpoint(folder)
    config = written.config
    if tokenizer is not None:
        ids = sample_ids(tokenizer, config, config.context_len)
    else:
        ids = [int(i) for i in np.random.default_rng(0).integers(0, config.vocab_size, min(256, config.context_len))]
    try:
        with _quiet():
            found_TV, problems = _their_logits(folder, ids)
    except Exception as error:  # whatever a reader stumbles over is what was to be found out
        problems = f"{type(error).__name__}: {str(error)[:300]}"
    if problems:
        return [Check(name="loads", passed=False, told=problems)]
    rounds_inputs = written.scheme is not None and written.scheme.activations is not None
    limit = _ROUNDED if rounds_inputs else _SAME
    checks = [compare_logits("logits, what is stored", found_TV, our_logits(config, written.tensors, ids), limit)]
    exact = not written.quantized and written.stored_dtypes <= {"F32", "F16"}
    ours_TV = our_logits(plain.config, plain.tensors, ids)
    checks.append(compare_logits("logits, the source", found_TV, ours_TV, _SOURCE if exact else None))
    if tokenizer is not None:
        checks += _check_texts(folder, tokenizer, renderer)
    return checks


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars, and its report, which calls a constant of Gemma missing where it is not."""
    import logging

    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.set_verbosity(before)


def _their_logits(folder: Path, ids: list[int]) -> tuple[NDArray[Any], str]:
    """Logits [T, V] of transformers in float32, and what it did not find, did not use or made up."""
    import torch
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(folder, dtype=torch.float32, output_loading_info=True, local_files_only=True)
    # Gemma's constant is reported where the embedding is quantized: that library makes it a tensor; its value is right.
    missing = set(info.pop("missing_keys", ())) - {"model.embed_tokens.embed_scale"}
    problems = {kind: sorted(map(str, found))[:3] for kind, found in {**info, "missing_keys": missing}.items() if found}
    with torch.inference_mode():
        logits_TV = model.eval()(torch.tensor([ids])).logits[0].float().numpy()
    return logits_TV, "; ".join(f"{kind}: {', '.join(found)}" for kind, found in problems.items())


def _check_texts(folder: Path, tokenizer: Tokenizer, renderer: Renderer | None) -> list[Check]:
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    theirs = load(folder, local_files_only=True)
    encoded = [theirs.encode(text, add_special_tokens=False) for text in TEXTS]
    checks = [compare_texts(tokenizer, encoded, 1.0)]
    if renderer is not None and theirs.chat_template:
        found = theirs.apply_chat_template(
            as_openai(CONVERSATION), add_generation_prompt=True, return_dict=False, enable_thinking=False
        )
        equal = list(found) == renderer.render(CONVERSATION, open_turn=True).ids
        # A template of others may say more than our renderer does (a date, a default); the house's is ours.
        told = f"{len(found)} ids, {'equal to' if equal else 'other than'} our renderer's"
        checks.append(Check(name="chat", passed=equal or renderer.name != "house", found=len(found), told=told))
    return checks
