"""One choice's text, assembled token by token: visible text, stop strings, log-probability reports, tool calls.

Whatever the chunks, the text, the reports and the end are the same; tests hold this to a twin that sees all at once.
"""

from __future__ import annotations

import secrets
import string
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from smelt.chat.renderer import ArgumentsDelta, CallStart, ReplyEvent, ReplyReader, TextDelta
from smelt.core.sampling import FinishReason
from smelt.generate.events import AnswerArguments, AnswerCall, AnswerEvent, AnswerText, TokenReport

_ID_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A fresh tool call id in OpenAI's shape."""
    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(24))


class StopStrings:
    """Holds text back while it may still be the beginning of a stop string.

    The stop string that is complete first wins; of several complete at the same character, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was found (nothing may be fed after that)."""
        if not self._stops:
            return text, False
        buffer = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if ends:
            self._held = ""
            return buffer[: min(ends)[1]], True
        longest = min(max(map(len, self._stops)) - 1, len(buffer))
        keep = next((k for k in range(longest, 0, -1) if any(s.startswith(buffer[-k:]) for s in self._stops)), 0)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held


class ChoiceText:
    """Turns the tokens of one choice into answer events.

    reader: fresh, of the chat format. hidden_ids: control ids, which no report shows. A report is shown together
    with the first character its token contributes to; reports of the syntax of calls are not shown at all.
    """

    def __init__(
        self,
        choice: int,
        reader: ReplyReader,
        *,
        stops: Sequence[str] = (),
        hidden_ids: Iterable[int] = (),
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._choice = choice
        self._reader = reader
        self._stops = StopStrings(stops)
        self._hidden = frozenset(hidden_ids)
        self._new_id = new_id
        self._read_len = 0  # characters the reader gave
        self._shown_len = 0
        self._waiting: deque[tuple[int, TokenReport]] = deque()  # with the place of the token's first character
        self._in_text = True
        self.num_calls = 0
        self.stopped = False

    def feed(self, token_id: int, report: TokenReport | None = None) -> list[AnswerEvent]:
        """Events that became visible. Once `stopped` is true, a stop string was found and nothing may follow."""
        start = self._read_len
        read = self._reader.feed(token_id)
        if token_id in self._hidden or any(isinstance(event, CallStart | ArgumentsDelta) for event in read):
            self._in_text = False  # a control token within an answer belongs to a call
        elif any(isinstance(event, TextDelta) for event in read):
            self._in_text = True
        if report is not None and self._in_text:
            self._waiting.append((start, report))
        return self._show(read)

    def finish(
        self, reason: FinishReason, *, calls_end_with_stop: bool = False
    ) -> tuple[list[AnswerEvent], FinishReason]:
        """The last events and the reason to report. `reason` is the engine's; a found stop string overrules it."""
        events: list[AnswerEvent] = []
        if not self.stopped:
            events = self._show(self._reader.finish())
        if not self.stopped:
            self._emit(events, self._stops.flush(), everything=True)
            if reason is FinishReason.STOP and self.num_calls and not calls_end_with_stop:
                return events, FinishReason.TOOL_CALLS
            return events, reason
        return events, FinishReason.STOP

    def _show(self, read: Sequence[ReplyEvent]) -> list[AnswerEvent]:
        events: list[AnswerEvent] = []
        for event in read:
            if isinstance(event, TextDelta):
                self._read_len += len(event.text)
                text, self.stopped = self._stops.feed(event.text)
                self._emit(events, text)
                if self.stopped:
                    break
            elif isinstance(event, CallStart):
                self._emit(events, self._stops.flush())
                self._waiting.clear()
                events.append(AnswerCall(self._choice, self.num_calls, self._new_id(), event.name))
                self.num_calls += 1
            else:
                events.append(AnswerArguments(self._choice, self.num_calls - 1, event.text))
        return events

    def _emit(self, events: list[AnswerEvent], text: str, *, everything: bool = False) -> None:
        self._shown_len += len(text)
        reports: list[TokenReport] = []
        while self._waiting and (everything or self._waiting[0][0] < self._shown_len):
            reports.append(self._waiting.popleft()[1])
        if text or reports:
            events.append(AnswerText(self._choice, text, tuple(reports)))
