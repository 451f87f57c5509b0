"""The ladder: which suites there are, what they need, and where their questions come from.

A family makes questions of one or more suites. Its files lie under the data folder and are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from smelt.core.errors import InvalidRequestError
from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest
from smelt.core.sampling import SamplingParams
from smelt.data.example import Example
from smelt.data.sources import SOURCES, Source
from smelt.data.tasks.about import Limits
from smelt.data.tasks.catalog import LANGUAGES
from smelt.data.tasks.suites import SUITES, held_out, held_out_long
from smelt.evals import arithmetic, bfcl, code, ifeval, mmlu, needle, xquad
from smelt.evals.cases import Case, Question
from smelt.evals.passages import Passage
from smelt.evals.sought import Grader

PER_LANGUAGE = 100  # generated questions of a suite; the population a limit draws from
LONG_CHARS = (1500, 3000, 6000, 12000)
GRADERS = cast(dict[str, Grader], {name: suite.grader for name, suite in SUITES.items() if suite.grader})
ABOUT = {name: suite.about for name, suite in SUITES.items()}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Suites that are made together. `needs`: what must lie under the data folder; nothing for generated ones."""

    name: str
    about: str
    make: Callable[[Path], Sequence[Question]]
    needs: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()

    def available(self, data: Path | None) -> bool:
        """Whether all it needs is there."""
        return not self.needs or (data is not None and all((data / path).exists() for path in self.needs))


def greedy(max_tokens: int) -> SamplingParams:
    """Always the most probable token, so that an answer can be had again."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens)


def as_case(example: Example, grader: Grader, suite: str) -> Case:
    """A held-out example as a question under greedy decoding."""
    request = ChatRequest(
        messages=example.prompt,
        tools=example.tools,
        response_format=example.response_format,
        parallel_tool_calls=len(example.answer.tool_calls) > 1,
        params=greedy(_room(example.answer)),
    )
    return Case(
        suite=suite,
        language=example.language,
        grader=grader,
        request=request,
        answer=example.answer,
        phrases=example.phrases,
        forbidden=example.forbidden,
        checks=example.checks,
        chance=_chance(request),
    )


def _room(answer: Message) -> int:
    """Tokens allowed for an answer: 192, and more where the right one is long (a character is a token at worst)."""
    length = len(answer.text) + sum(len(call.name) + len(call.arguments) for call in answer.tool_calls)
    return 192 if length < 250 else 1024


def grader_of(example: Example) -> Grader:
    """How a generated question is graded, by what its right answer is."""
    if example.answer.tool_calls:
        return "call"
    if example.checks or example.forbidden:
        return "obeys"
    return "json" if example.response_format.kind != "text" else "phrases"


def _chance(request: ChatRequest) -> float | None:
    """One in as many as there are labels, where the answer is one label under a grammar."""
    properties = list(((request.response_format.schema or {}).get("properties") or {}).values())
    labels = properties[0].get("enum") if len(properties) == 1 else None
    return 1 / len(labels) if labels else None


def held_out_cases(suite: str, per_language: int = PER_LANGUAGE, limits: Limits = Limits()) -> list[Case]:  # noqa: B008 - frozen value
    """A generated suite in every language. limits: what is true of the asked model, where a question is about it."""
    return [
        as_case(example, GRADERS.get(suite) or grader_of(example), suite)
        for language in LANGUAGES
        for example in held_out(suite, language, per_language, limits=limits)
    ]


def long_cases(per_size: int = 40) -> list[Case]:
    """Generated: one to three facts somewhere in a text, by its length."""
    return [
        as_case(example, grader_of(example), f"long_{num_chars}_chars")
        for num_chars in LONG_CHARS
        for example in held_out_long("en", num_chars, per_size)
    ]


def public_cases(source: Source, data: Path) -> list[Case]:
    """The test part of a public set, without the questions whose text stands in its train part too."""
    learned = {example.messages[0].text for example in source.examples(data, 0)}
    found = []
    for example in source.examples(data, 0, "test"):
        if example.messages[0].text not in learned:
            kind: Grader = "call" if example.answer.tool_calls else "json"
            found.append(as_case(example, kind, f"{source.name}_{kind}"))
    return found


def _bfcl(data: Path) -> list[Case]:
    categories = ("simple_python", "multiple", "irrelevance")
    return [case for category in categories for case in bfcl.cases(data / "eval/bfcl", category, greedy(192))]


def _bits(data: Path) -> list[Question]:
    return [
        *xquad.passages(data / "eval/xquad"),
        *code.passages(data / "eval/humaneval/HumanEval.jsonl", data / "eval/mbpp/mbpp.jsonl"),
    ]


def _needle(data: Path) -> list[Case]:
    hay = {language: [one.text for one in xquad.passages(data / "eval/xquad") if one.language == language]
           for language in xquad.LANGUAGES}  # fmt: skip
    return [case for language, texts in hay.items() for case in needle.cases(texts, language, greedy(32))]


def _generator(suite: str, limits: Limits) -> Callable[[Path], list[Case]]:
    return lambda data: held_out_cases(suite, limits=limits)


def _generated(limits: Limits) -> Iterator[Family]:
    for suite in SUITES:
        yield Family(name=suite, about=ABOUT[suite], make=_generator(suite, limits))
    yield Family(
        name="long",
        about="one to three facts somewhere in a text of that many characters, English",
        make=lambda data: long_cases(),
        suites=tuple(f"long_{num_chars}_chars" for num_chars in LONG_CHARS),
    )


def _public() -> Iterator[Family]:
    for source in SOURCES:
        if not source.has_test:
            continue
        yield Family(
            name=source.name,
            about=f"test part of {source.origin}: a call among 1 to 5 tools, or JSON, exact",
            make=partial(public_cases, source),
            needs=(source.file, source.test_file) if source.test_file else (source.file,),
            suites=(f"{source.name}_call", f"{source.name}_json"),
        )


_BITS = (
    Family(
        name="bpb",
        about="bits per byte of XQuAD's paragraphs (en, de, zh: the same content) and of Python solutions",
        make=_bits,
        needs=("eval/xquad", "eval/humaneval/HumanEval.jsonl", "eval/mbpp/mbpp.jsonl"),
        suites=("bpb_en", "bpb_de", "bpb_zh", "bpb_code"),
    ),
)
_BENCHMARKS = (
    *_public(),
    Family(
        name="bfcl",
        about="Berkeley Function Calling Leaderboard v4, single turn",
        make=_bfcl,
        needs=("eval/bfcl",),
        suites=("bfcl_simple_python", "bfcl_multiple", "bfcl_irrelevance"),
    ),
    Family(
        name="ifeval",
        about="verifiable instructions; strict (and loose), all of a prompt's",
        make=lambda data: ifeval.cases(data / "eval/ifeval/en_input_data.jsonl", greedy(1024)),
        needs=("eval/ifeval/en_input_data.jsonl",),
    ),
    Family(
        name="needle",
        about="a number somewhere in a long text, by length and depth, en de zh",
        make=_needle,
        needs=("eval/xquad",),
        suites=tuple(map(needle.suite_of, needle.LENGTHS)),
    ),
    Family(
        name="xquad",
        about="questions on a paragraph, en de zh; SQuAD's F1 and exact match",
        make=lambda data: xquad.cases(data / "eval/xquad", greedy(48)),
        needs=("eval/xquad",),
    ),
    Family(
        name="gsm8k",
        about="word problems, zero-shot, the last number counts",
        make=lambda data: arithmetic.gsm8k_cases(data / "eval/gsm8k/test.jsonl", greedy(400)),
        needs=("eval/gsm8k/test.jsonl",),
    ),
    Family(
        name="mgsm",
        about="the same kind in en, de, zh",
        make=lambda data: arithmetic.mgsm_cases(data / "eval/mgsm", greedy(400)),
        needs=("eval/mgsm",),
    ),
    Family(
        name="mmlu_dev",
        about="four options, by the letter's log-probability, zero-shot",
        make=lambda data: mmlu.questions(data / "eval/mmlu/dev"),
        needs=("eval/mmlu/dev",),
    ),
)


def families(limits: Limits = Limits()) -> tuple[Family, ...]:  # noqa: B008 - frozen value
    """All of them, for a model of which `limits` is true."""
    return (*_BITS, *_generated(limits), *_BENCHMARKS)


FAMILIES = families()
GROUPS: Mapping[str, tuple[str, ...]] = {
    "generated": (*SUITES, "long"),
    "hierarchy": tuple(name for name in SUITES if name.startswith("ih_")),
    "public": tuple(source.name for source in SOURCES if source.has_test),
}
"""Names for several families at once."""


def corpus_family(folder: Path | None) -> Family:
    """The held-out documents of a corpus made by `smelt data build`, a suite a language."""

    def make(_: Path) -> list[Passage]:
        from smelt.data.corpus.shards import read_documents

        if folder is None:
            raise InvalidRequestError("--suite corpus needs a folder made by `smelt data build` (--corpus)")
        return [
            Passage(suite=f"corpus_{one.language}", language=one.language, text=one.text, group=one.group)
            for one in read_documents(folder, "valid")
        ]

    return Family(
        name="corpus",
        about="bits per byte of the held-out documents of a corpus (--corpus)",
        make=make,
        suites=tuple(f"corpus_{language}" for language in LANGUAGES),
    )


def questions(
    names: Sequence[str],
    data: Path | None,
    corpus: Path | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen value
) -> list[Question]:
    """Questions of the named groups, families or suites; of every family whose files are there when none is named.

    limits: what is true of the model that is asked, for the questions about itself. Raises InvalidRequestError for an
    unknown name and for files that are not there.
    """
    known = (corpus_family(corpus), *families(limits))
    if not names:
        here = [family for family in known if family.available(data) and (family.name != "corpus" or corpus)]
        return [one for family in here for one in family.make(data or Path())]
    found: list[Question] = []
    wanted = {member for name in names for member in GROUPS.get(name, (name,))}
    for family in known:
        chosen = wanted & {family.name, *family.suites}
        if not chosen:
            continue
        wanted -= chosen
        if not family.available(data):
            where = "the data folder" if data else "a data folder (--data)"
            raise InvalidRequestError(f"--suite {sorted(chosen)[0]} needs {' and '.join(family.needs)} in {where}")
        made = family.make(data or Path())
        found += [one for one in made if family.name in chosen or one.suite in chosen]
    if wanted:
        there = ", ".join([*GROUPS, *(family.name for family in known)])
        raise InvalidRequestError(f"--suite {', '.join(sorted(wanted))}: no such suite; there are {there}")
    return found
