"""From the engine's thread to an event loop, all that waits at a time, waking the loop only where it may sleep."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from smelt.generate.completion import Event
from smelt.generate.events import AnswerArguments, AnswerText

T = TypeVar("T")


class Inbox(Generic[T]):
    """`put` from any thread, `take` in the loop that made it.

    Only the first item of an empty inbox wakes the loop: a wake-up is a write to a pipe, and under load the loop is
    awake and behind.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._items: list[T] = []

    def put(self, item: T) -> None:
        """Leave an item; returns at once."""
        with self._lock:
            self._items.append(item)
            if len(self._items) > 1:
                return
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[T]:
        """Wait for something, then all that is there, in order; now and then nothing."""
        await self._arrived.wait()
        self._arrived.clear()
        with self._lock:
            items, self._items = self._items, []
        return items


def joined(events: Iterable[Event]) -> list[Event]:
    """The same answer in fewer events: more of a choice's text, or of a call's arguments, joins what is there.

    Order holds within each choice; reports stay one per token.
    """
    shown: list[Event] = []
    last: dict[int, int] = {}  # of each choice, where its latest event is
    for event in events:
        if isinstance(event, AnswerText | AnswerArguments):
            before = shown[last[event.choice]] if event.choice in last else None
            if isinstance(event, AnswerText) and isinstance(before, AnswerText):
                shown[last[event.choice]] = AnswerText(
                    event.choice, before.text + event.text, before.reports + event.reports
                )
                continue
            if isinstance(event, AnswerArguments) and isinstance(before, AnswerArguments) and before.call == event.call:
                shown[last[event.choice]] = replace(before, text=before.text + event.text)
                continue
        if (choice := getattr(event, "choice", None)) is not None:
            last[choice] = len(shown)
        shown.append(event)
    return shown
