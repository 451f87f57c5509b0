"""One request under way: n choices in the engine, their tokens on the way to text. No thread of its own.

The engine's callbacks go into a sink the caller gives; the caller feeds them back here, wherever it lives (an event
loop, a blocking loop). So text is assembled on the caller's side and the engine's thread never waits for it.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from smelt.core.errors import EngineError
from smelt.core.sampling import FinishReason, TokenLogprob, Usage
from smelt.engine.requests import Ended, EngineEvent, EngineRequest, PromptScored, TokenDrawn
from smelt.generate.completion import Event, PromptText, PromptToken
from smelt.generate.events import AnswerEnd, AnswerUsage, TokenReport, TokenText
from smelt.generate.prepare import Prepared
from smelt.generate.text import ChoiceText

if TYPE_CHECKING:
    from smelt.tokenizer import Tokenizer

_MASK64 = (1 << 64) - 1


class Loop(Protocol):
    """Where requests run: `engine.EngineLoop`."""

    def submit(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> None:
        """Admit a request; its events come on another thread."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request before the next step."""
        ...


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice`: the request's own for the first, one derived from it for each further."""
    if choice == 0:
        return seed & _MASK64
    digest = hashlib.blake2b(f"{seed & _MASK64}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Run:
    """State of one request: call `start`, then `feed` every engine event the sink got, until `done`.

    The first choice goes into the engine alone; the others follow when its prompt is computed, so that they find it
    in the prefix cache and the prompt is computed once.
    """

    def __init__(self, prepared: Prepared, loop: Loop, tokenizer: Tokenizer, *, n: int, tenant: str) -> None:
        self._prepared = prepared
        self._loop = loop
        self._tokenizer = tokenizer
        self._control_names = {token_id: name for name, token_id in tokenizer.control_ids.items()}
        self._tenant = tenant
        seed = prepared.params.seed
        self._seed = secrets.randbits(64) if seed is None else seed
        self._id = uuid.uuid4().hex
        self._texts = [self._new_text(choice) for choice in range(n)]
        self._matchers = [prepared.constraint.matcher(prepared.max_new_tokens) for _ in range(n)]
        self._open = set(range(n))  # choices whose answer is not complete
        self._live: set[int] = set()  # choices the engine has not ended
        self._num_submitted = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._sink: Callable[[EngineEvent], None] | None = None

    @property
    def done(self) -> bool:
        """Every choice ended, in the engine too, and the usage was given."""
        return not self._open and not self._live

    def start(self, sink: Callable[[EngineEvent], None]) -> None:
        """Submit the first choice. Raises OverloadedError when the queue is full."""
        self._sink = sink
        self._submit(1)

    def abort(self) -> None:
        """End what still runs; harmless when nothing does."""
        for choice in self._live:
            self._loop.abort(self._request_id(choice))
        self._open.clear()
        self._live.clear()

    def feed(self, event: EngineEvent) -> list[Event]:
        """What the event makes visible. Raises EngineError when the engine failed; call `abort` then."""
        choice = int(event.request_id.rpartition("-")[2])
        events: list[Event] = []
        if isinstance(event, Ended):
            events.extend(self._end(choice, event))
        elif choice not in self._open:
            return []  # drawn before the engine heard that the answer is complete
        elif isinstance(event, PromptScored):
            events.append(self._echo(choice, event.logprobs))
        else:
            events.extend(self._token(choice, event))
        if self._num_submitted < len(self._texts):
            self._submit(len(self._texts))
        if self.done:
            prepared = self._prepared
            events.append(AnswerUsage(Usage(len(prepared.prompt_ids), self._completion_tokens, self._cached_tokens)))
        return events

    def feed_all(self, events: Iterable[EngineEvent]) -> tuple[list[Event], EngineError | None]:
        """What they make visible together, up to the end of the answer or to what `feed` raised, which comes beside."""
        shown: list[Event] = []
        try:
            for event in events:
                if not self.done:
                    shown += self.feed(event)
        except EngineError as error:
            return shown, error
        return shown, None

    def opening(self) -> list[Event]:
        """What is shown before the engine said anything: an echoed prompt that needs no scores."""
        if self._prepared.echo is None or self._prepared.score_prompt:
            return []
        return [PromptText(choice, self._prepared.echo) for choice in range(len(self._texts))]

    def _submit(self, up_to: int) -> None:
        prepared = self._prepared
        assert self._sink is not None
        while self._num_submitted < up_to:
            choice = self._num_submitted
            request = EngineRequest(
                id=self._request_id(choice),
                prompt_ids=prepared.prompt_ids,
                privileges=prepared.privileges,
                params=prepared.params,
                seed=choice_seed(self._seed, choice),
                max_new_tokens=prepared.max_new_tokens,
                stop_ids=frozenset() if prepared.report_stop else prepared.stop_ids,
                matcher=self._matchers[choice],
                score_prompt=prepared.score_prompt,
                tenant=self._tenant,
            )
            self._loop.submit(request, self._sink)
            self._live.add(choice)
            self._num_submitted += 1

    def _token(self, choice: int, event: TokenDrawn) -> list[Event]:
        text = self._texts[choice]
        report = None if event.logprob is None else self._report(event.logprob)
        is_stop = event.token_id in self._prepared.stop_ids  # only where the end token is to be reported
        self._completion_tokens += not is_stop
        events: list[Event] = list(text.feed(event.token_id, report))
        if is_stop or text.stopped:
            self._loop.abort(event.request_id)
            events += self._finish(choice, FinishReason.STOP)
        return events

    def _end(self, choice: int, event: Ended) -> list[Event]:
        self._live.discard(choice)
        if choice == 0:
            self._cached_tokens = event.cached_len
        if choice not in self._open:
            return []
        if event.reason in (FinishReason.ERROR, FinishReason.ABORT):
            raise EngineError(event.error or "the engine ended the request")
        reason, matcher = event.reason, self._matchers[choice]
        if matcher.cut_short:
            reason = FinishReason.LENGTH
        elif reason is FinishReason.LENGTH and matcher.complete:
            reason = FinishReason.STOP  # the last token allowed was also the last one needed
        return self._finish(choice, reason)

    def _finish(self, choice: int, reason: FinishReason) -> list[Event]:
        self._open.discard(choice)
        events, shown_reason = self._texts[choice].finish(
            reason, calls_end_with_stop=self._prepared.calls_end_with_stop
        )
        return [*events, AnswerEnd(choice, shown_reason)]

    def _echo(self, choice: int, logprobs: tuple[TokenLogprob | None, ...]) -> PromptText:
        assert self._prepared.echo is not None
        tokens = []
        for token_id, entry in zip(self._prepared.prompt_ids, logprobs, strict=True):
            top = () if entry is None else tuple(self._token_text(*alternative) for alternative in entry.top)
            shown = self._token_text(token_id, 0.0)
            logprob = None if entry is None else entry.logprob
            tokens.append(PromptToken(token_id, shown.text, shown.bytes, logprob, top))
        return PromptText(choice, self._prepared.echo, tuple(tokens[self._prepared.num_hidden :]))

    def _report(self, entry: TokenLogprob) -> TokenReport:
        top = tuple(self._token_text(*alternative) for alternative in entry.top)
        return TokenReport(self._token_text(entry.token_id, entry.logprob), top)

    def _token_text(self, token_id: int, logprob: float) -> TokenText:
        raw = self._tokenizer.token_bytes(token_id)
        text = raw.decode("utf-8", "replace") if raw else self._control_names.get(token_id, "")
        return TokenText(token_id, text, raw, logprob)

    def _new_text(self, choice: int) -> ChoiceText:
        prepared = self._prepared
        return ChoiceText(choice, prepared.reader(), stops=prepared.params.stop, hidden_ids=prepared.hidden_ids)

    def _request_id(self, choice: int) -> str:
        return f"{self._id}-{choice}"
