"""Does the chain keep its promises on a trained model? Pruning and repair, few bits, zeros, each against a bar.

    python bench/shrink.py [--model spark] [--recipe spark] [--data ../shared/data] [--corpus DIR]
                           [--parts prune,quantize,qat,sparse,static] [--out build/bench-shrink] [--save] [--smoke]

prune     30 % of the parameters away, repaired with a tenth of the model's training tokens; beside it the same shape
          from scratch with the same teacher, tokens and order, at the rates of a start from scratch; three seeds
quantize  8 bits; 4 bits in groups of 64 and 32, rounded, by GPTQ and by AWQ
qat       training in 4 bits against rounding to nearest with a searched range
sparse    half of the weights zero, by magnitude, Wanda and SparseGPT
static    8-bit inputs with a scale a token (dynamic) and with one from calibration (static)

Every model is made by the words and settings that `smelt shrink --stages ... --set ...` takes, through the same chain,
on the recipe's own mixture (bench/shrink_material.py). All are examined on the same held-out documents; intervals are
of a bootstrap over these, paired. KL to the source stands beside bits per byte: where a model is sure and wrong, as one
is that is older than its recipe's texts, any noise gains bits; `--without` leaves such tasks out of the exam. A bar
`holds` or `fails` where the whole interval lies on one side of it, else it is `undecided`. Called again with the same
--out it goes on where it stopped. Prints a card and one final JSON line; `--save` also writes it to
bench/results/shrink_MODEL.json, beside the parts that stand there of the same exam.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from shrink_material import Answers, Exam, Setting, make_material

from smelt.checkpoint import Checkpoint, open_checkpoint, resolve_model, save_checkpoint
from smelt.compress.chain.material import text_bytes
from smelt.compress.chain.measure import MeasureSettings
from smelt.compress.chain.run import Chain, Outcome, Watch, run_chain
from smelt.compress.chain.speed import SpeedSettings
from smelt.compress.chain.store import Artifact, artifact_of
from smelt.compress.stage import Material
from smelt.compress.words import changed, scratch_control, stage_of
from smelt.evals.stats import ratio
from smelt.tokenizer import Tokenizer

PARTS = ("prune", "quantize", "qat", "sparse", "static")
RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
TOKEN_SHARE = 0.1  # of the model's own training
Nats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is told beside the material. tokens: of a repair; steps: of training in few bits, its batches."""

    tokens: int
    qat_steps: int = 200
    workers: int = 1
    seeds: Sequence[int] = SEEDS
    changes: tuple[str, ...] = ()


@dataclass
class Bench:
    """Makes models through the chain and examines them; holds what was found."""

    source: Checkpoint
    material: Material
    exam: Exam
    out: Path
    asked: Asked
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)

    def chain(self, stages: str, *changes: str, control: bool = False) -> Outcome:
        """The chain of `smelt shrink --stages STAGES --set CHANGE ...`; stages that were made before are not again."""
        made = changed([stage_of(word, self.source.config) for word in stages.split(",")], changes)
        chain = Chain(
            stages=made,
            material=self.material,
            measuring=MeasureSettings(speed=SpeedSettings(rounds=0)),
            control=scratch_control(made) if control else None,
        )
        return run_chain(chain, self.source.folder, self.out / "chain", Watch(say=_quietly))

    def arm(self, name: str, artifact: Artifact, seconds: dict[str, float] | None = None) -> Answers:
        """Examine a model under a name; what it costs stands in the card."""
        found = self.exam.answers(artifact, name)
        tokens = self.exam.num_learned
        self.arms[name] = {
            "bytes": artifact.num_bytes,
            "parameters": open_checkpoint(artifact.folder).config.num_parameters,
            "bits_per_byte": round(float(found.nats.sum()) / math.log(2) / self.exam.num_bytes, 6),
            "increase": share(found.nats - self.whole, self.whole),
            "kl": round(float(found.kl.sum()) / tokens, 6),
            **({} if seconds is None else {"seconds": seconds}),
        }
        told = self.arms[name]
        print(f"{name}: bits per byte {words(told['increase'])}, KL {told['kl']:.5f} a token", flush=True)
        return found

    def made(self, name: str, stages: str, *changes: str) -> Answers:
        """The examined result of a chain."""
        outcome = self.chain(stages, *changes)
        return self.arm(name, outcome.result, {step.done.name: step.done.wall_s for step in outcome.steps})

    @property
    def whole(self) -> Nats:
        """The source's nats."""
        return self.exam.answers(self.chain_source, "the source").nats

    @property
    def chain_source(self) -> Artifact:
        """The source as an artifact."""
        return artifact_of(self.source.folder)

    def gaps(self, found: Answers) -> dict[str, Nats]:
        """What a model lost, in cross-entropy (as the bars are put) and in KL to the source."""
        return {"bits": found.nats - self.whole, "KL": found.kl}

    def claim(
        self, words: str, found: dict[str, Any], *, least: float | None = None, most: float | None = None
    ) -> None:
        """Hold what was found against a bar."""
        low, high = found["interval95"]
        if least is not None:
            verdict = "holds" if low >= least else "fails" if high < least else "undecided"
        else:
            assert most is not None
            verdict = "holds" if high <= most else "fails" if low > most else "undecided"
        bar = {"at_least": least} if least is not None else {"at_most": most}
        self.claims[words] = {**found, **bar, "verdict": verdict}


def share(tops: Nats, bottoms: Nats) -> dict[str, Any]:
    """Sum over sum with its interval, documents drawn for both alike."""
    found = ratio(tops.tolist(), bottoms.tolist(), [str(i) for i in range(len(tops))])
    total = float(bottoms.sum())
    return {**found, "value": round(float(tops.sum()) / total, 6) if total else 0.0}


def words(found: dict[str, Any]) -> str:
    low, high = found["interval95"]
    return f"{found['value']:+.3%} [{low:+.2%}, {high:+.2%}]"


def prune(bench: Bench) -> None:
    """A part: repaired and from scratch, seed by seed; then all seeds' documents together."""
    lost, left, behind, base = [], [], [], []
    for seed in bench.asked.seeds:
        changes = (f"distil.tokens={bench.asked.tokens}", "distil.batch=2", f"distil.seed={seed}")
        changes += (f"distil.workers={bench.asked.workers}", *bench.asked.changes)
        outcome = bench.chain("prune,distil", *changes, control=True)
        assert outcome.control is not None
        pruned, repaired = (step.done for step in outcome.steps)
        lost.append(bench.arm("pruned 30 %", outcome.steps[0].artifact, {"prune": pruned.wall_s}))
        left.append(bench.arm(f"repaired, seed {seed}", outcome.result, {"distil": repaired.wall_s}))
        control = {"distil": outcome.control.done.wall_s}
        base.append(bench.arm(f"from scratch, seed {seed}", outcome.control.artifact, control).nats)
        behind.append(left[-1].nats - base[-1])
        bench.claim(f"prune: repaired against from scratch, seed {seed}", share(behind[-1], base[-1]), most=0.0)
    for seed, before, after in zip(bench.asked.seeds, lost, left, strict=True):
        recovered(bench, f"prune: gap closed by the repair, seed {seed}", [(before, after)], least=0.85)
    recovered(bench, "prune: gap closed by the repair, all seeds", list(zip(lost, left, strict=True)), least=0.85)
    together = share(np.sum(behind, 0), np.sum(base, 0))
    bench.claim("prune: repaired against from scratch, all seeds", together, most=0.0)


def recovered(bench: Bench, claim: str, pairs: Sequence[tuple[Answers, Answers]], *, least: float) -> None:
    """The share of what the first of each pair lost that the second has again; a bar in bits, and in KL."""
    for unit in ("bits", "KL"):
        before, after = (np.sum([bench.gaps(pair[i])[unit] for pair in pairs], 0) for i in (0, 1))
        bench.claim(f"{claim}, in {unit}", share(before - after, before), least=least)


def quantize(bench: Bench) -> None:
    """A part: 8 bits, and 4 in two sizes of groups by three methods."""
    bench.made("w8", "w8")
    bench.claim("quantize: 8 bits", bench.arms["w8"]["increase"], most=0.001)
    for group in (64, 32):
        grouped = f"quantize.scheme.weights.group_size={group}"
        for method in ("rtn", "gptq", "awq"):
            bench.made(f"w4 g{group} {method}", "w4", grouped, f"quantize.method={method}")
        best = min(("gptq", "awq"), key=lambda method: bench.arms[f"w4 g{group} {method}"]["bits_per_byte"])
        bench.claim(
            f"quantize: 4 bits, groups of {group}, {best}", bench.arms[f"w4 g{group} {best}"]["increase"], most=0.015
        )


def qat(bench: Bench) -> None:
    """A part: what training wins back of what rounding loses, in the word's own format; ranges searched in both."""
    rounded = bench.made("w4 rtn, searched", "w4", "quantize.method=rtn", "quantize.range=mse")
    steps = (f"quantize-aware.steps={bench.asked.qat_steps}", f"quantize-aware.workers={bench.asked.workers}")
    trained = bench.made("w4 quantize-aware", "quantize-aware", *steps, "quantize-aware.batch=2")
    recovered(bench, "qat: recovered of the 4-bit gap", [(rounded, trained)], least=0.3)


def sparse(bench: Bench) -> None:
    """A part: the gaps of methods that look at inputs, against magnitude's."""
    gaps = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        found = bench.made(f"half zero, {method}", "sparsify", f"sparsify.method={method}", "sparsify.share=0.5")
        gaps[method] = bench.gaps(found)
    for unit in ("bits", "KL"):
        best = min(("wanda", "sparsegpt"), key=lambda method: float(gaps[method][unit].sum()))
        part = share(gaps[best][unit], gaps["magnitude"][unit])
        bench.claim(f"sparse: {best}'s gap as a share of magnitude's, in {unit}", part, most=1 / 3)


def static(bench: Bench) -> None:
    """A part: scales of inputs from calibration against a scale a token."""
    dynamic = bench.made("w8a8 dynamic", "w8a8").nats
    for observer in ("minmax", "percentile"):
        inputs = "quantize.scheme.activations"
        found = bench.made(
            f"w8a8 static, {observer}", "w8a8", f"{inputs}.dynamic=false", f"{inputs}.observer={observer}"
        )
        bench.claim(f"static: int8 by {observer} against dynamic", share(found.nats - dynamic, dynamic), most=0.02)


RUN: dict[str, Callable[[Bench], None]] = {
    "prune": prune,
    "quantize": quantize,
    "qat": qat,
    "sparse": sparse,
    "static": static,
}


def _quietly(line: str) -> None:
    """The chain's own lines, set off."""
    print(f"    {line}", flush=True)


def card(bench: Bench) -> None:
    """The arms as a table, then every bar."""
    print(f"\n{'':<26}{'parameters':>12}{'bytes':>12}{'bits per byte':>15}{'KL':>9}  bits against the source")
    for name, arm in bench.arms.items():
        print(
            f"{name:<26}{arm['parameters']:>12,}{arm['bytes']:>12,}{arm['bits_per_byte']:>15.5f}{arm['kl']:>9.5f}  "
            f"{words(arm['increase'])}"
        )
    print()
    for name, claim in bench.claims.items():
        bar = f">= {claim['at_least']:.1%}" if "at_least" in claim else f"<= {claim['at_most']:.1%}"
        print(f"{claim['verdict'].upper():<10}{name}: {words(claim)}, sought {bar}")


def tiny_model(folder: Path) -> Path:
    """A random model over the shipped tokenizer: for a smoke run."""
    from recipes.house import Shape
    from smelt.model.decoder import Decoder
    from smelt.train.finetune.folder import kept_files

    shipped = resolve_model("spark")
    shape = Shape(
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        num_layers=3,
        global_layers=(2,),
    )
    model = Decoder(shape.decoder(Tokenizer.load(shipped)))
    model.init_weights(0)
    save_checkpoint(folder, model.config, model.tensors(), files=kept_files(shipped), replace=True)
    return folder


def saved(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What was found, beside what stands in the file of the same model and exam."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    if before.get("fingerprint") == found["fingerprint"] and before.get("exam") == found["exam"]:
        found = found | {key: before[key] | found[key] for key in ("arms", "claims", "cpu_s")}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="spark", help="a folder or a shipped name")
    parser.add_argument("--recipe", choices=["spark", "ember"], default="spark", help="whose mixture")
    parser.add_argument("--data", type=Path, default=None, help="folder of public data; generated tasks alone without")
    parser.add_argument("--corpus", type=Path, default=None, help="running text, for a recipe that has it")
    parser.add_argument("--parts", default=",".join(PARTS), help="by comma")
    parser.add_argument("--out", type=Path, default=Path("build/bench-shrink"))
    parser.add_argument("--exam-tokens", type=int, default=Setting.exam_tokens, help="held-out learned tokens")
    parser.add_argument("--without", default="", help="tasks left out of the exam, by comma")
    parser.add_argument("--tokens", type=int, default=0, help="of a repair; 0: a tenth of the model's training")
    parser.add_argument("--workers", type=int, default=1, help="batches computed at once while training")
    parser.add_argument("--save", action="store_true", help="write bench/results/shrink_MODEL.json too")
    parser.add_argument("--smoke", action="store_true", help="everything in seconds; its numbers mean nothing")
    found = parser.parse_args()
    if unknown := set(found.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return found


def opened(args: argparse.Namespace) -> Bench:
    """The model, its material and its exam, in small for a smoke run."""
    setting = Setting(
        recipe=args.recipe,
        data=args.data,
        corpus=args.corpus,
        exam_tokens=args.exam_tokens,
        without=tuple(args.without.split(",")) if args.without else (),
    )
    if args.smoke:
        setting = Setting(batch_tokens=1024, calibration_rows=2, stage_rows=1, exam_tokens=600, without=setting.without)
        source = open_checkpoint(tiny_model(args.out / "tiny"))
        asked = Asked(tokens=2048, qat_steps=2, seeds=(0, 1), changes=("prune.candidates=1",))
    else:
        source = open_checkpoint(resolve_model(args.model))
        trained = (source.card or {}).get("trained_tokens", 0)
        if not (tokens := args.tokens or int(TOKEN_SHARE * trained)):
            raise SystemExit("--tokens: the model's card does not say what it was trained on; sought a number")
        asked = Asked(tokens=tokens, workers=args.workers)
    material, batches = make_material(setting, source, args.out)
    exam = Exam(batches, text_bytes(batches, Tokenizer.load(source.folder)), source, args.out / "exam")
    return Bench(source=source, material=material, exam=exam, out=args.out, asked=asked)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    bench = opened(args)
    held = {"digest": bench.exam.digest[:16], "documents": bench.exam.num_documents}
    held |= {"learned_tokens": bench.exam.num_learned, "bytes": bench.exam.num_bytes, "without": args.without}
    print(f"exam: {held}; calibration: {bench.material.calibration.source}", flush=True)
    bench.arm("source", bench.chain_source)
    spent = {}
    for part in PARTS:
        if part in args.parts.split(","):
            began = time.process_time()
            RUN[part](bench)
            spent[part] = round(time.process_time() - began)
    card(bench)
    name = Path(args.model).name
    found = {
        "bench": "shrink",
        "model": name,
        "fingerprint": bench.source.fingerprint,
        "recipe": args.recipe,
        "public_sets": args.data is not None,
        "exam": held,
        "calibration": bench.material.calibration.source,
        "asked": dataclasses.asdict(bench.asked),
        "arms": bench.arms,
        "claims": bench.claims,
        "cpu_s": spent,
        "smoke": args.smoke,
    }
    if args.save and not args.smoke:
        found = saved(RESULTS / f"shrink_{name}.json", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
