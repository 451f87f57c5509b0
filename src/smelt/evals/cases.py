"""What a model is asked: a chat with a right answer, a choice between texts, a passage to predict.

Suites are lists of questions; where they come from is the caller's business.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Protocol

from smelt.core.messages import Message
from smelt.core.sampler import ChatRequest, Sampler, ScoreRequest
from smelt.core.sampling import Usage
from smelt.evals import graders
from smelt.evals.grade import Grade
from smelt.evals.sought import Sought


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model gave back: a message, or (nats, bytes) of every text it scored; or why it was not asked."""

    message: Message | None = None
    finish_reason: str = ""
    scores: tuple[tuple[float, int], ...] = ()
    usage: Usage = Usage(0, 0)
    refused: str = ""


class Question(Protocol):
    """One thing to ask. Suite and language group the results; answers of one `group` are taken to move together."""

    @property
    def suite(self) -> str:
        """The suite's name."""
        ...

    @property
    def language(self) -> str:
        """Language or kind of text."""
        ...

    @property
    def group(self) -> str:
        """What it shares with others (a text, a problem); "" for nothing."""
        ...

    @property
    def chance(self) -> float | None:
        """How often a blind guess among the valid answers is right, where that is known."""
        ...

    def asked(self) -> Any:
        """What goes to the model, as JSON values: with the model's fingerprint the key of the result."""
        ...

    def ask(self, sampler: Sampler) -> Reply:
        """Ask. Raises what the sampler raises."""
        ...

    def grade(self, reply: Reply) -> Grade:
        """How good a reply is; pure, so that kept replies can be graded again."""
        ...


@dataclass(frozen=True, kw_only=True)
class Case(Sought):
    """A chat question and what counts as right. `detail`: a second way to group within the suite ("depth 25")."""

    suite: str
    request: ChatRequest
    group: str = ""
    detail: str = ""
    chance: float | None = None

    def asked(self) -> Any:
        """The request."""
        return {"chat": dataclasses.asdict(self.request)}

    def ask(self, sampler: Sampler) -> Reply:
        """One chat completion."""
        answer = sampler.chat(self.request)
        return Reply(message=answer.message, finish_reason=answer.finish_reason.value, usage=answer.usage)

    def grade(self, reply: Reply) -> Grade:
        """By the case's grader."""
        assert reply.message is not None
        return graders.grade(self, reply.message)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of `options` is most probable after `context`; `right` is the index of the one that should be."""

    suite: str
    language: str
    context: str
    options: tuple[str, ...]
    right: int
    group: str = ""

    @property
    def chance(self) -> float:
        """One in as many as there are options."""
        return 1 / len(self.options)

    def asked(self) -> Any:
        """Context and options."""
        return {"context": self.context, "options": self.options}

    def ask(self, sampler: Sampler) -> Reply:
        """Score every option."""
        scored = [sampler.score(ScoreRequest(text=option, context=self.context)) for option in self.options]
        return Reply(
            scores=tuple((one.nats, one.num_bytes) for one in scored),
            usage=Usage(sum(one.usage.prompt_tokens for one in scored), 0),
        )

    def grade(self, reply: Reply) -> Grade:
        """The first of the most probable options counts as chosen, by total probability (options of one letter)."""
        nats = [score[0] for score in reply.scores]
        return Grade(exact=nats.index(min(nats)) == self.right)


def identity(question: Question) -> str:
    """What is asked as canonical JSON; equal for equal questions, whatever the model."""
    return json.dumps(question.asked(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
