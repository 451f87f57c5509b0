"""Every error smelt raises on purpose.

SmeltError
├── UserError                 the caller can mend it; `param` names the field, `code` is OpenAI's string code
│   ├── InvalidRequestError   a value, a type or a combination is wrong                        (HTTP 400)
│   ├── ContextLengthError    prompt and requested output do not fit the context window        (HTTP 400)
│   ├── AuthenticationError   no key, or a wrong one                                           (HTTP 401)
│   ├── ForbiddenError        the key or the origin may not do this                            (HTTP 403)
│   ├── NotFoundError         no such model or object                                          (HTTP 404)
│   ├── PayloadTooLargeError  a body, header or text beyond its limit                          (HTTP 413)
│   └── OverloadedError       the queue is full; try again later                               (HTTP 429)
├── DataError                 training data cannot be used, or the process that prepares it died
├── CheckpointError           a model folder cannot be used; the message says what was sought and found
│   └── UnsupportedError      the folder is sound but asks for something smelt does not do; names it
├── StoreError                the database cannot be read or written; the message says why          (HTTP 503)
├── TrainingError             a run cannot go on (a loss that is no number); its last checkpoint is kept
│   └── TrainingStoppedError  it was asked to stop and did, with a checkpoint; called again it goes on
└── EngineError               our own failure while answering; the request ends, the engine goes on  (HTTP 500)

A message says what was sought, what was found, what would be right. It never carries a path of the
server or the content of a request.
"""

from __future__ import annotations


class SmeltError(Exception):
    """Root of the tree."""


class UserError(SmeltError):
    """The caller can mend it. `param` is the offending field's path, `code` OpenAI's string code, or None."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequestError(UserError):
    """A value, a type or a combination of values is wrong."""


class ContextLengthError(UserError):
    """The prompt, or the prompt with the requested output, does not fit the context window."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class AuthenticationError(UserError):
    """No API key, or a wrong one."""


class ForbiddenError(UserError):
    """The key or the request's origin may not do this."""


class NotFoundError(UserError):
    """No such model or object."""


class PayloadTooLargeError(UserError):
    """A body, a header or a text beyond its limit."""


class OverloadedError(UserError):
    """The queue is full; the same request may pass later."""


class DataError(SmeltError):
    """Training data cannot be used, or the process that prepares it died."""


class CheckpointError(SmeltError):
    """A model folder cannot be used."""


class UnsupportedError(CheckpointError):
    """A model folder asks for something smelt does not do; the message names it."""


class StoreError(SmeltError):
    """The database cannot be read or written. `reason` is one word for it: full, locked, readonly or failed."""

    def __init__(self, message: str, *, reason: str = "failed") -> None:
        super().__init__(message)
        self.reason = reason


class TrainingError(SmeltError):
    """A training run cannot go on; the message says where it stopped, and its last checkpoint is kept."""


class TrainingStoppedError(TrainingError):
    """A run was asked to stop before its end and did, with a checkpoint."""


class EngineError(SmeltError):
    """Our own failure while answering one request."""
