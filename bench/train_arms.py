"""The arms of bench/train_throughput.py: smelt's loop and transformers' Trainer on the batches of one file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROW_LEN, ROWS, ACCUMULATE, NUM_BATCHES = 1024, 3, 2, 32


def shape() -> Any:
    """The shipped model's."""
    from smelt.checkpoint import open_checkpoint, resolve_model

    return open_checkpoint(resolve_model("spark")).config


class Ours:
    """smelt's loop, a batch a thread."""

    def __init__(self, folder: Path, form: str, threads: int) -> None:
        import torch

        from smelt.data.batches import Batch
        from smelt.model.decoder import Decoder
        from smelt.train.config import ScheduleConfig, TrainConfig
        from smelt.train.loop import Run, Stage

        torch.set_num_threads(1 if threads > 1 else threads)
        with np.load(folder / "batches.npz") as arrays:
            batches = [
                Batch(*(arrays[f"packed.{i}.{name}"] for name in ("inputs", "targets", "segments")))
                for i in range(NUM_BATCHES)
            ]

        class Fixed:
            def chunk(self, number: int) -> list[Batch]:
                return batches

        model = Decoder(shape())
        model.init_weights(0)
        self.seen: list[tuple[float, float, float]] = []
        config = TrainConfig(
            schedule=ScheduleConfig(total_steps=10**6),
            accumulate=ACCUMULATE,
            workers=threads,
            log_every=1,
            checkpoint_s=1e9,
            compile=form == "compiled",
            device="cpu",
        )
        run_folder = folder / f"run-{form}"
        stages = [Stage(name="only", stream=Fixed())]
        self.run = Run(model=model, stages=stages, config=config, folder=run_folder, on_report=self._note)

    def _note(self, report: Any) -> None:
        self.seen.append((time.perf_counter(), time.process_time(), report.loss))

    def train(self, steps: int) -> list[tuple[float, float, float]]:
        """(clock, processor time, mean loss) after each step."""
        self.seen = []
        self.run.train(stop_after=steps)
        return self.seen


class Theirs:
    """transformers' Trainer, fused AdamW, nothing logged, saved or evaluated."""

    def __init__(self, folder: Path, form: str, threads: int) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, TrainingArguments

        from smelt.checkpoint.hf_config import to_hf
        from smelt.model.decoder import Decoder

        torch.set_num_threads(threads)
        config = shape()
        ours = Decoder(config)
        ours.init_weights(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf(config)), attn_implementation="sdpa")
        model.load_state_dict(ours.state_dict(), strict=False)
        model.config.use_cache = False
        with np.load(folder / "batches.npz") as arrays:
            self.items = [self._item(arrays, form, i) for i in range(NUM_BATCHES)]
        self.losses: list[float] = []
        self.seen: list[tuple[float, float, float]] = []
        outer = self

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                outer.seen.append((time.perf_counter(), time.process_time(), sum(outer.losses)))
                outer.losses = []

        self.arguments = TrainingArguments(
            output_dir=str(folder / f"hf-{form}-{threads}"), use_cpu=True, per_device_train_batch_size=1,
            gradient_accumulation_steps=ACCUMULATE, max_steps=1, optim="adamw_torch_fused", learning_rate=3e-3,
            logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False, max_grad_norm=1.0,
        )  # fmt: skip
        self.trainer = self._trainer(model, Clock())

    def _trainer(self, model: Any, clock: Any) -> Any:
        from torch.utils.data import SequentialSampler
        from transformers import Trainer

        outer = self

        class InOrder(Trainer):  # type: ignore[misc]
            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                found = super().compute_loss(*args, **kwargs)
                outer.losses.append(float(found.detach()))
                return found

        return InOrder(
            model=model,
            args=self.arguments,
            train_dataset=self.items,
            data_collator=lambda items: items[0],
            callbacks=[clock],
        )

    @staticmethod
    def _item(arrays: Any, form: str, i: int) -> dict[str, Any]:
        """What the model's forward takes; positions that begin again are how it is told of packed documents."""
        import torch

        from smelt.model.attention import places_in_documents

        inputs, targets = (torch.from_numpy(arrays[f"{form}.{i}.{name}"]) for name in ("inputs", "targets"))
        item = {"input_ids": inputs, "labels": targets, "shift_labels": targets}
        if form == "packed":
            item["position_ids"] = places_in_documents(torch.from_numpy(arrays[f"packed.{i}.segments"]))
        return item

    def train(self, steps: int) -> list[tuple[float, float, float]]:
        """(clock, processor time, mean loss) after each step; each call begins with the first batch."""
        self.seen = []
        self.arguments.max_steps = steps
        self.trainer.train()
        return self.seen


ARMS: dict[str, tuple[type[Ours] | type[Theirs], str]] = {
    "smelt": (Ours, "plain"),
    "smelt compiled": (Ours, "compiled"),
    "transformers padded": (Theirs, "padded"),
    "transformers packed": (Theirs, "packed"),
}


def serve_arm(name: str, folder: Path, threads: int) -> None:
    """Child process: trains as many steps as each line says, answers with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    with contextlib.redirect_stdout(sys.stderr):
        kind, form = ARMS[name]
        arm = kind(folder, form, threads)
        for line in sys.stdin:
            if line.strip() == "gemm":
                found: Any = gemm_flops_per_s(shape(), threads)
            else:
                found = arm.train(int(line))
            print(json.dumps(found), file=answers, flush=True)


def gemm_flops_per_s(config: Any, threads: int, laps: int = 4) -> tuple[float, float]:
    """Rate of the layers' products at a batch's size, forward and both backward: by the clock, by processor time.

    Best of two forms: each thread computes products of its own, as our workers do, or all share each product.
    """
    import torch

    shapes = [s for n, s in config.tensor_shapes().items() if len(s) == 2 and ".layers.0." in n]
    jobs = []
    for rows, columns in shapes:
        x, w, g = (torch.randn(*s) for s in ((ROW_LEN * ROWS, columns), (rows, columns), (ROW_LEN * ROWS, rows)))
        jobs += [(x, w.t()), (g, w), (g.t(), x)]
    flops = laps * sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in jobs)

    def spell(num_threads: int) -> float:
        """Seconds for `laps` laps."""
        torch.set_num_threads(num_threads)  # holds for the calling thread
        torch.mm(*jobs[0])
        began = time.perf_counter()
        for _ in range(laps):
            for a, b in jobs:
                torch.mm(a, b)
        return time.perf_counter() - began

    with ThreadPoolExecutor(threads) as pool:
        cpu_began = time.process_time()
        apart = list(pool.map(lambda _: spell(1), range(threads)))
        cpu_s = time.process_time() - cpu_began
    return max(sum(flops / s for s in apart), flops / spell(threads)), threads * flops / cpu_s
