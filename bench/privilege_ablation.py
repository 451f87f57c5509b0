"""Does knowing who said a token help? One recipe three ways: with privilege ids, with shuffled ones, without any.

    python bench/privilege_ablation.py --out build/privileges [--steps 300] [--seeds 1 2 3] [--smoke] [--save]

The shipped model, which can copy and call already, learns the same batches of the instruction hierarchy in every arm;
only the table of privileges, which begins at zero, differs. Without training it is reported too. `true` is also asked
with ids shuffled at the test: what it gained must be lost there, or the table is not what it listens to. Reported per
arm, over all seeds: obedience to the system in conflict (ih_conflict), compliance with compatible rules (ih_aligned),
orders inside a tool's result not obeyed (ih_tool), orders that are data worked on as data (ih_fidelity), all held out.
A killed call goes on when called again. Prints a table and one final JSON line; `--save` also writes it to
bench/results/privilege_ablation.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from smelt.chat.house import HouseRenderer
from smelt.chat.renderer import Rendered
from smelt.checkpoint import Checkpoint, open_checkpoint, resolve_model
from smelt.cli.suites import held_out_cases
from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Privilege
from smelt.data.batches import Batch, mixed
from smelt.data.stream import Conversations, PackedStream
from smelt.data.tasks.mixture import Mixture
from smelt.evals.cases import Case, Reply
from smelt.evals.stats import proportion
from smelt.model.decoder import PRIVILEGES, Decoder
from smelt.tokenizer import Tokenizer
from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from smelt.train.distill.on_policy import OnPolicy, sample
from smelt.train.loop import Run, Stage

Arm = Literal["none", "true", "shuffled"]
ARMS: tuple[Arm, ...] = ("none", "true", "shuffled")
SUITES = ("ih_conflict", "ih_aligned", "ih_tool", "ih_fidelity")
MIXTURE = Mixture(
    weights={
        "repeat": 4, "lookup": 4, "facts": 6, "talk": 2, "call": 4, "result": 8, "aligned": 12, "conflict": 12,
        "topic": 4, "tool_order": 12, "fidelity": 10, "secret_kept": 3, "secret_given": 3,
    }
)  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "privilege_ablation.json"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Everything that is smaller in a smoke run."""

    steps: int = 300
    row_len: int = 768
    rows: int = 4
    cases: int = 60
    max_new: int = 96


SMOKE = Size(steps=3, rows=1, cases=1, max_new=8)


def start(base: Checkpoint, arm: Arm) -> Decoder:
    """The base's weights; the table, which changes no logit at first, is the only difference between arms."""
    config = dataclasses.replace(base.config, num_privileges=0 if arm == "none" else len(Privilege))
    table = np.zeros((config.num_privileges, config.hidden_size), np.float32)
    return Decoder.from_tensors(config, {**base.tensors, PRIVILEGES: table})


def shuffled(ids: np.ndarray[Any, np.dtype[np.uint8]], seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The same ids at other tokens of the row, so that they say nothing of them."""
    return np.random.default_rng((seed, len(ids))).permutation(ids)


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """A stream whose privileges are shuffled within each row."""

    stream: PackedStream
    seed: int

    def chunk(self, number: int) -> list[Batch]:
        """Chunk `number` of the stream under it."""
        found = []
        for i, batch in enumerate(self.stream.chunk(number)):
            assert batch.privileges is not None
            rows = [shuffled(row, self.seed + 7919 * (64 * number + i)) for row in batch.privileges]
            found.append(dataclasses.replace(batch, privileges=np.stack(rows)))
        return found


def trained(arm: Arm, seed: int, size: Size, renderer: HouseRenderer, base: Checkpoint, folder: Path) -> Decoder:
    """The model of one arm and seed; goes on where it was killed."""
    model = start(base, arm)
    conversations = Conversations(example_at=mixed(MIXTURE, seed), renderer=renderer, max_len=size.row_len)
    stream = PackedStream(
        sources=[(conversations, 1.0)],
        row_len=size.row_len,
        rows=size.rows,
        pad_id=base.config.pad_id or 0,
        seed=seed,
        privileges=True,
    )
    schedule = ScheduleConfig(total_steps=size.steps, decay_share=0.5)
    optimizer = OptimizerConfig(muon_lr=0.004, adam_lr=6e-4)  # a fifth of the peaks that made the base
    config = TrainConfig(
        schedule=schedule, optimizer=optimizer, accumulate=2, workers=2, seed=seed, checkpoint_s=120.0, log_every=50
    )
    stage = Stage(name=arm, stream=Shuffled(stream=stream, seed=seed) if arm == "shuffled" else stream)
    Run(model=model, stages=[stage], config=config, folder=folder).train()
    return model


def measured(
    model: Decoder, renderer: HouseRenderer, cases: Sequence[Case], max_new: int, *, shuffle: bool
) -> dict[str, list[bool]]:
    """Which cases were answered rightly, by suite; greedy, 32 at once, prompts of like length together."""
    rendered = [prompt_of(renderer, case) for case in cases]
    order = sorted(range(len(cases)), key=lambda i: len(rendered[i]))
    how = OnPolicy(max_new=max_new, temperature=1e-4, vocab_len=model.config.vocab_size, end_ids=renderer.stop_ids)
    found: dict[str, list[bool]] = {}
    for start in range(0, len(order), 32):
        group = order[start : start + 32]
        said = [np.frombuffer(rendered[i].privileges, np.uint8) for i in group]
        said = [shuffled(row, i) for i, row in zip(group, said, strict=True)] if shuffle else said
        with torch.no_grad():
            drawn = sample(
                model,
                [np.array(rendered[i].ids, np.int64) for i in group],
                how,
                limit=max_new,
                generator=torch.Generator().manual_seed(0),
                device=torch.device("cpu"),
                privileges=said if model.config.num_privileges else None,
            )
        for i, row in zip(group, drawn, strict=True):
            found.setdefault(cases[i].suite, []).append(right(renderer, cases[i], rendered[i].ids, row.tolist()))
    return found


def prompt_of(renderer: HouseRenderer, case: Case) -> Rendered:
    """As it would be asked."""
    asked = case.request
    return renderer.render(asked.messages, tools=asked.tools, response_format=asked.response_format, open_turn=True)


def right(renderer: HouseRenderer, case: Case, prompt: Sequence[int], drawn: Sequence[int]) -> bool:
    """Whether the reply is whole, a message, and passes the case's own grader."""
    if not drawn or drawn[-1] not in renderer.stop_ids:
        return False
    try:
        message = renderer.parse([*prompt, *drawn])[-1]
    except InvalidRequestError:
        return False
    return bool(case.grade(Reply(message=message, finish_reason="stop")).exact)


def summary(answers: dict[str, dict[str, list[bool]]]) -> dict[str, Any]:
    """By arm and suite: share, n, interval."""
    return {
        arm: {suite: proportion(sum(found), len(found)) for suite, found in by_suite.items()}
        for arm, by_suite in answers.items()
    }


def table(result: dict[str, Any]) -> str:
    """Arms as rows."""
    lines = ["| arm | " + " | ".join(SUITES) + " |", "|---" * (len(SUITES) + 1) + "|"]
    for arm, by_suite in result.items():
        cells = [f"{by_suite[s]['value']:.3f} {by_suite[s]['interval95']}" for s in SUITES]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; called again with it, goes on")
    parser.add_argument("--steps", type=int, default=Size().steps, help="training steps of one arm and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--smoke", action="store_true", help="half a minute of everything")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = SMOKE if arguments.smoke else Size(steps=arguments.steps)
    base = open_checkpoint(resolve_model("spark"))
    renderer = HouseRenderer(Tokenizer.load(base.folder))
    cases = [case for suite in SUITES for case in held_out_cases(suite, size.cases)]
    began = time.monotonic()
    answers = {"untrained": measured(start(base, "none").eval(), renderer, cases, size.max_new, shuffle=False)}
    for seed in arguments.seeds[:1] if arguments.smoke else arguments.seeds:
        for arm in ARMS:
            model = trained(arm, seed, size, renderer, base, arguments.out / f"{arm}-{seed}").eval()
            for name, shuffle in ((arm, arm == "shuffled"), *([("true_shuffled_at_test", True)] * (arm == "true"))):
                kept = arguments.out / f"{arm}-{seed}" / f"{name}.json"
                if not kept.is_file():
                    kept.write_text(json.dumps(measured(model, renderer, cases, size.max_new, shuffle=shuffle)))
                for suite, found in json.loads(kept.read_text()).items():
                    answers.setdefault(name, {}).setdefault(suite, []).extend(found)
    result = {
        "bench": "privilege_ablation",
        "steps": size.steps,
        "seeds": arguments.seeds,
        "base": base.fingerprint,
        "seconds": round(time.monotonic() - began),
        "arms": summary(answers),
    }
    print(table(result["arms"]))
    print(json.dumps(result))
    if arguments.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
