"""The walk: inputs are those of the finished model, a kill costs one layer, and nothing else changes."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smelt.compress import walk_state
from smelt.compress.calibration import Calibration
from smelt.compress.stage import Progress
from smelt.compress.walk import DOWN, GATE, GROUPS, Group, walk
from smelt.core.decoder import DecoderConfig, Family
from smelt.core.errors import CheckpointError, TrainingStoppedError
from smelt.data.batches import Batch
from smelt.model.decoder import Decoder
from smelt.train.objectives import batch_hidden, kept_places
from tests.tiny import random_tensors, tiny_config, variants

CPU = torch.device("cpu")


def batches(config: DecoderConfig, seed: int = 0) -> tuple[Batch, ...]:
    """Two batches of packed rows with padding, and one unpacked row whose end is not learned."""
    rng = np.random.default_rng(seed)
    found = []
    for lengths in (((7, 12, 3), (20,)), ((5, 5), (11, 9))):
        ids = rng.integers(2, config.vocab_size, (2, 24))
        segments = np.full(ids.shape, -1, np.int32)
        for row, cuts in enumerate(lengths):
            segments[row, : sum(cuts)] = np.repeat(np.arange(len(cuts)), cuts)
        said = rng.integers(0, 4, ids.shape).astype(np.uint8) if config.num_privileges else None
        found.append(Batch(ids, np.where(segments >= 0, ids, -100), segments, said))
    ids = rng.integers(2, config.vocab_size, (1, 15))
    said = np.zeros(ids.shape, np.uint8) if config.num_privileges else None
    found.append(Batch(ids, np.where(np.arange(15) < 10, ids, -100), None, said))
    return tuple(found)


def calibration(config: DecoderConfig, seed: int = 0) -> Calibration:
    return Calibration(source="drawn", digest=f"{seed}", batches=batches(config, seed))


def decoder(config: DecoderConfig) -> Decoder:
    return Decoder.from_tensors(config, random_tensors(config))


class Shake:
    """Changes every matrix by what it reads, the norm in front and biases too; notes what it saw."""

    name = "shake"

    def __init__(self, *, dies_at: int = -1) -> None:
        self.seen: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.order: list[tuple[str, ...]] = []
        self.norms: list[nn.Module | None] = []
        self.dies_at = dies_at

    def treat(self, group: Group) -> Mapping[str, NDArray[Any]]:
        if len(self.order) == self.dies_at:
            raise KeyboardInterrupt
        if group.norm is not None:
            group.norm.weight.data *= 1.1
        inputs = torch.cat(list(group.inputs()))
        assert inputs.shape[0] == group.num_tokens
        self.order.append(tuple(group.linears))
        self.norms.append(group.norm)
        self.seen |= dict.fromkeys(group.linears, inputs)
        kept = {}
        for name, linear in group.linears.items():
            linear.weight.data += 0.05 * inputs.mean(0)
            if linear.bias is not None:
                linear.bias.data -= 0.01
            kept[f"{name}.codes"] = (10 * linear.weight.data).to(torch.int8).numpy()
        self.made[next(iter(group.linears))] = torch.cat(list(group.outputs()))
        return kept


def seen_by_model(model: Decoder, found: tuple[Batch, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of every matrix and outputs of every attention and MLP, by plain hooks on the whole model."""
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}
    hooks = []
    places: list[Tensor] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            hooks.append(
                module.register_forward_hook(
                    lambda _m, x, _y, name=name: inputs.setdefault(name, []).append(x[0].flatten(0, 1)[places[-1]])
                )
            )
        elif name.endswith((".self_attn", ".mlp")):
            hooks.append(
                module.register_forward_hook(
                    lambda _m, _x, y, name=name: outputs.setdefault(name, []).append(y.flatten(0, 1)[places[-1]])
                )
            )
    with torch.no_grad():
        for batch in found:
            places.append(torch.from_numpy(kept_places(batch)))
            batch_hidden(model, batch, CPU)
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(x) for n, x in inputs.items()}, {n: torch.cat(x) for n, x in outputs.items()}


@pytest.mark.parametrize("name", ["llama", "llama-tied-biases", "mistral", "qwen2", "qwen3", "gemma3", "privileges"])
def test_what_a_treatment_sees_is_what_the_finished_model_sees(name: str, tmp_path: Path) -> None:
    """True-sequential: with every matrix changed on the way, each saw its inputs as they are in the end."""
    config = tiny_config("qwen3", num_privileges=4) if name == "privileges" else variants()[name]
    model, given, treatment = decoder(config), calibration(config), Shake()
    before = {name: array.copy() for name, array in model.tensors().items()}
    walk(model, given, treatment, tmp_path)
    inputs, outputs = seen_by_model(model, given.batches)
    assert set(treatment.seen) == set(inputs)
    for matrix, expected in inputs.items():
        assert torch.equal(treatment.seen[matrix], expected), matrix
    for first, made in treatment.made.items():
        if first.endswith(("o_proj", "down_proj")):  # the last of their block: it is as it will be
            assert torch.equal(made, outputs[first.rpartition(".")[0]]), first
    after = model.tensors()
    assert all(not np.array_equal(before[n], after[n]) for n in after if n.endswith("_proj.weight"))
    assert np.array_equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_groups_come_in_the_order_of_dependence_with_the_norm_they_read(family: Family, tmp_path: Path) -> None:
    config = tiny_config(family, num_layers=2)
    model, note = decoder(config), Shake()
    walk(model, calibration(config), note, tmp_path)
    assert note.order == [tuple(f"model.layers.{i}.{n}" for n in names) for i in range(2) for names in GROUPS]
    first = model.model.layers[0]
    behind = first.pre_feedforward_layernorm if family == "gemma3_text" else first.post_attention_layernorm
    assert note.norms[:4] == [first.input_layernorm, None, behind, None]
    for norm, names in ((first.input_layernorm, GROUPS[0]), (behind, GATE)):  # the group reads what the norm makes
        made: list[Tensor] = []
        hook = norm.register_forward_hook(lambda _m, _x, y, made=made: made.append(y))
        found = calibration(config).batches[:1]
        inputs, _ = seen_by_model(model, found)
        hook.remove()
        places = torch.from_numpy(kept_places(found[0]))
        assert torch.equal(made[0].flatten(0, 1)[places], inputs[f"model.layers.0.{names[0]}"])


@pytest.mark.parametrize("dies_at", [0, 3, 4, 6, 11])
def test_a_killed_walk_goes_on_and_ends_with_the_same_bits(dies_at: int, tmp_path: Path) -> None:
    config = tiny_config("gemma3_text")
    whole, whole_kept = _walked(config, tmp_path / "whole", Shake())
    with pytest.raises(KeyboardInterrupt):
        _walked(config, tmp_path / "cut", Shake(dies_at=dies_at))
    again = Shake()
    resumed, kept = _walked(config, tmp_path / "cut", again)
    assert len(again.order) == 12 - dies_at // 4 * 4  # finished layers are not treated again
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert set(kept) == set(whole_kept)
    assert all(np.array_equal(whole_kept[name], kept[name]) and kept[name].dtype == np.int8 for name in kept)


def _walked(
    config: DecoderConfig, folder: Path, treatment: Shake, **how: Any
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[Any]]]:
    model = decoder(config)
    kept = walk(model, calibration(config), treatment, folder, **how)
    return model.tensors(), kept


def test_hidden_states_in_a_file_change_no_bit(tmp_path: Path) -> None:
    config = tiny_config("mistral")
    whole, _ = _walked(config, tmp_path / "memory", Shake())
    files: list[bool] = []
    spilled, _ = _walked(
        config,
        tmp_path / "file",
        Shake(),
        memory_bytes=1000,
        on_progress=lambda _: files.append((tmp_path / "file" / "hidden.bin").is_file()),
    )
    assert all(files)
    assert all(np.array_equal(whole[name], spilled[name]) for name in whole)
    assert sorted(path.name for path in (tmp_path / "file").iterdir()) == [
        f"layer-{i:04d}.safetensors" for i in range(3)
    ]


def test_progress_counts_groups_and_tells_the_time_left(tmp_path: Path) -> None:
    told: list[Progress] = []
    _walked(tiny_config(), tmp_path, Shake(), on_progress=told.append)
    assert [one.done for one in told] == list(range(1, 13))
    assert all(one.total == 12 and one.left_s is not None for one in told)
    assert told[0].left_s > 0 and told[-1].left_s == 0


def test_another_walk_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    _walked(config, tmp_path, Shake())
    for other in ("treatment", "calibration", "weights"):
        model, treatment = decoder(config), Shake()
        treatment.name = "another" if other == "treatment" else "shake"
        if other == "weights":
            model.model.layers[2].mlp.down_proj.weight.data[0, 0] += 1e-6
        with pytest.raises(CheckpointError, match="belongs to another walk"):
            walk(model, calibration(config, int(other == "calibration")), treatment, tmp_path)


def test_a_stop_is_soon_and_leaves_the_scratch_in_order(tmp_path: Path) -> None:
    config, stop = tiny_config(), threading.Event()

    class Stops(Shake):
        def treat(self, group: Group) -> Mapping[str, NDArray[Any]]:
            if group.layer_index == 1 and next(iter(group.linears)).endswith(DOWN[0]):
                stop.set()
            return super().treat(group)

    with pytest.raises(TrainingStoppedError, match="layer 1"):
        _walked(config, tmp_path, Stops(), stopping=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["layer-0000.safetensors"]
    whole, _ = _walked(config, tmp_path / "whole", Shake())
    resumed, _ = _walked(config, tmp_path, Shake())
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_a_full_disk_is_told_and_leaves_finished_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(walk_state.os, "posix_fallocate", full)
        with pytest.raises(CheckpointError, match=r"hidden\.bin could not be written: No space left.*MB"):
            _walked(config, tmp_path, Shake(), memory_bytes=1000)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(walk_state.os, "fsync", full)
        with pytest.raises(CheckpointError, match="layer-0000.*make room and call again"):
            _walked(config, tmp_path, Shake())
    assert list(tmp_path.iterdir()) == []
    _walked(config, tmp_path, Shake())


_KILLED = """
import os, signal, sys
from pathlib import Path
from smelt.compress.walk import walk
from tests.compress.test_walk import Shake, calibration, decoder
from tests.tiny import tiny_config

def die(progress):
    if progress.done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

config = tiny_config("qwen3")
walk(decoder(config), calibration(config), Shake(), Path(sys.argv[1]), on_progress=die)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [1, 4, 7])
def test_a_process_killed_by_the_system_costs_one_layer_at_most(dies_at: int, tmp_path: Path) -> None:
    """At 4 the last group of a layer is done and its file is not yet written."""
    config = tiny_config("qwen3")
    whole, _ = _walked(config, tmp_path / "whole", Shake())
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "cut"), str(dies_at)]
    ended = subprocess.run(command, check=False, cwd=Path(__file__).parents[2], timeout=100)
    assert ended.returncode == -signal.SIGKILL
    again = Shake()
    resumed, _ = _walked(config, tmp_path / "cut", again)
    assert len(again.order) == 12 - (dies_at - 1) // 4 * 4
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_an_iterator_dropped_half_way_leaves_no_hook(tmp_path: Path) -> None:
    config = tiny_config()
    model = decoder(config)

    class Peeks(Shake):
        def treat(self, group: Group) -> Mapping[str, NDArray[Any]]:
            next(group.inputs())
            next(group.outputs())
            return {}

    before = {name: array.copy() for name, array in model.tensors().items()}
    walk(model, calibration(config), Peeks(), tmp_path)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(np.array_equal(before[name], array) for name, array in model.tensors().items())
