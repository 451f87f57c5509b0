"""ember, the default after spark: the same shape, wider, longer at it, with running text and every task there is.

    smelt data build build/corpus --data ../shared/data
    smelt train recipes/ember.py --data ../shared/data --set corpus=build/corpus --out build/ember
    smelt train recipes/ember.py --out build/ember-smoke --smoke

It may take many hours of two CPU cores, in pieces: called again with the same `--out` it goes on where it stopped.
The result is `<out>/ember`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.ember_data import LIMITS, Material, StageConfig, make_stages, make_tokenizer
from recipes.folder import Exam, Made, Story, evaluate, export, keep_origin
from recipes.house import TINY, Shape
from recipes.mixtures import DECISION_WEIGHT
from smelt.tokenizer import Tokenizer
from smelt.train.recipe import Recipe, Workshop

if TYPE_CHECKING:
    from smelt.model.decoder import Decoder
    from smelt.train.loop import Run

STORY = Story(
    name="ember",
    recipe="recipes/ember.py",
    summary="A small assistant for tool calls, extraction, short customer-service and mail turns, which knows who may "
    "give it orders.",
    can=(
        "choose among a dozen tools, call one or several, ask for what is missing, say that none fits",
        "fill a JSON schema from labelled lines, sentences, receipts and mails",
        "answer from facts, policies and short texts that stand before it",
        "keep to its system prompt against what a text or a tool's result orders",
        "all of it in English, German and Chinese",
    ),
    cannot=(
        "it knows next to nothing of the world: no arithmetic, no code, no translation",
        "it copies values and does not reason: what does not stand in the text is guessed",
        "it is no safeguard on its own against hostile instructions in texts it reads",
    ),
    trained_len=4096,
    cutoff=LIMITS.cutoff,
)


@dataclass(frozen=True, kw_only=True)
class EmberConfig:
    """Everything that decides the outcome.

    corpus: a folder made by `smelt data build`, None for generated tasks alone. total_tokens: the length of the run;
    its last `decay_share` has a falling rate and longer texts. export_only: write the last checkpoint as it is,
    unmeasured. families: what `smelt eval` measures beside the generated suites and public sets' test parts.
    """

    corpus: Path | None = None
    total_tokens: int = 100_000_000
    early_tokens: int = 1_500_000
    decay_share: float = 0.4
    export_only: bool = False
    shape: Shape = Shape(
        hidden_size=256,
        intermediate_size=768,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        num_layers=6,
        global_layers=(2, 5),
        window=512,
        context_len=4096,
    )
    vocab_size: int = 6144
    tokenizer_examples: int = 60_000
    tokenizer_documents: int = 12_000
    batch_tokens: int = 4096
    accumulate: int = 4
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.02
    # Every token of a text is learned and a fifth of a conversation's: at a share of 0.2 text is half of the loss.
    main: StageConfig = StageConfig(text_share=0.2, max_len=1024, until_tokens=18_841_600)
    choices: StageConfig = StageConfig(text_share=0.08, max_len=1024)
    final: StageConfig = StageConfig(text_share=0.08, max_len=4096)
    checkpoint_s: float = 300.0
    cases_per_language: int = 100
    long_cases: int = 40
    families: tuple[str, ...] = ("bpb", "needle", "ifeval", "xquad")
    seed: int = 30


SMOKE = EmberConfig(
    total_tokens=30_000,
    early_tokens=6_000,
    shape=TINY,
    vocab_size=1024,
    tokenizer_examples=300,
    tokenizer_documents=50,
    batch_tokens=1024,
    accumulate=2,
    main=StageConfig(text_share=0.2, max_len=512, until_tokens=12_000),
    choices=StageConfig(text_share=0.08, max_len=512),
    final=StageConfig(text_share=0.08, max_len=1024),
    cases_per_language=1,
    long_cases=0,
    families=(),
)


def make(config: EmberConfig, shop: Workshop) -> Path:
    """Train, export, evaluate; returns the model folder. With `export_only`: the last checkpoint as it is."""
    import torch

    from smelt.model.decoder import Decoder

    torch.set_num_threads(1)  # two workers compute whole batches instead (train/config.py)
    material = Material.load(shop.data, config.corpus, config.seed)
    tokenizer = prepare(config, material, shop)
    model = Decoder(config.shape.decoder(tokenizer))
    model.init_weights(config.seed)
    shop.say(f"{model.config.num_parameters / 1e6:.2f}M parameters")
    run = make_run(config, model, tokenizer, material, shop)
    folder = shop.out / "ember"
    if config.export_only:
        run.resume()
    else:
        run.train()
    if shop.world.writes:
        made = Made(
            story=STORY,
            settings=config,
            model=run.result(),
            tokenizer=tokenizer,
            position=run.position,
            data=shop.data,
            corpus=config.corpus,
        )
        export(made, folder)
        if not config.export_only:
            export(made, folder, scores(config, folder, shop.data))
    return folder


def scores(config: EmberConfig, folder: Path, data: Path | None) -> dict[str, object]:
    """Everything generated and public, beside spark and random weights."""
    exam = Exam(
        per_language=config.cases_per_language,
        per_size=config.long_cases,
        data=data,
        corpus=config.corpus,
        extra=config.families,
    )
    spark = Path(__file__).resolve().parents[1] / "src/smelt/shipped/spark"
    return evaluate("ember", folder, exam, baseline=spark)


def prepare(config: EmberConfig, material: Material, shop: Workshop) -> Tokenizer:
    """The tokenizer, trained where there is none yet, and a note of what the examples come from."""
    folder = shop.out / "tokenizer"
    if shop.world.writes:
        if not config.export_only:
            keep_origin(shop.out, shop.data, config.corpus)
        if not (folder / "tokenizer.json").is_file():
            shop.say("training the tokenizer")
            made = make_tokenizer(
                material, config.vocab_size, config.tokenizer_examples, config.tokenizer_documents, config.seed
            )
            made.save(folder)
    shop.world.wait()
    return Tokenizer.load(folder)


def make_run(config: EmberConfig, model: Decoder, tokenizer: Tokenizer, material: Material, shop: Workshop) -> Run:
    """The run of all stages, the token that decides between call and talk weighing more."""
    from smelt.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from smelt.train.loop import Run
    from smelt.train.objectives import CrossEntropy

    stages = make_stages(
        material,
        tokenizer,
        shop,
        batch_tokens=config.batch_tokens,
        early_tokens=config.early_tokens,
        main=config.main,
        choices=config.choices,
        final=config.final,
    )
    total_steps = max(1, config.total_tokens // (config.batch_tokens * config.accumulate))
    objective = CrossEntropy(first_weight=DECISION_WEIGHT)
    return Run(
        model=model,
        stages=[dataclasses.replace(stage, objective=objective) for stage in stages],
        config=TrainConfig(
            schedule=ScheduleConfig(total_steps=total_steps, decay_share=config.decay_share),
            optimizer=OptimizerConfig(muon_lr=config.muon_lr, adam_lr=config.adam_lr, weight_decay=config.weight_decay),
            accumulate=config.accumulate,
            workers=2,
            seed=config.seed,
            device="cpu",
            checkpoint_s=config.checkpoint_s,
        ),
        folder=shop.out / "run",
        on_report=shop.on_report,
        stopping=shop.stopping,
    )


recipe = Recipe(settings=EmberConfig(), smoke=SMOKE, make=make)
