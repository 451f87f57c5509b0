"""The Tokenizer: text to ids and back. No string ever encodes to a control id (see textonly.py for why)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smelt.core.errors import CheckpointError, InvalidRequestError
from smelt.tokenizer.pieces import StreamDecoder, adds_leading_space, piece_table
from smelt.tokenizer.textonly import control_spellings, text_only
from smelt.tokenizer.vetting import MAX_JSON_CHARS, steps, vet

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Byte-level BPE, or SentencePiece-like BPE with byte fallback, run by the `tokenizers` library.

    Encoding treats every string as plain text; control tokens exist as ids in `control_ids` only. Decoding
    is exact: `decode(encode(text)) == text` unless the folder's own normaliser changes text (NFC in Qwen's).
    """

    def __init__(self, json_text: str, config: Mapping[str, Any] | None = None) -> None:
        """From the text of a tokenizer.json and the content of a tokenizer_config.json.

        Raises CheckpointError when it is malformed, UnsupportedError when it asks for what smelt does not run.
        """
        spec = _parse(json_text)
        kind = vet(spec)
        self._source, self._kind = json_text, kind
        self._config = dict(config or {})
        self._controls = control_spellings(spec)
        self._table = piece_table(spec, kind, self._controls)
        self._strip_space = adds_leading_space(spec)
        self._bos_id = _bos_id(spec, self._config, self._controls)
        self._encoder = _load_encoder(text_only(spec, kind))

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Tokenizer:
        """From a model folder's tokenizer.json and, where there is one, tokenizer_config.json."""
        path = pathlib.Path(folder)
        try:
            text = (path / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError("sought a readable tokenizer.json in the model folder, found none") from error
        return cls(text, _load_config(path))

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """From the text of a tokenizer.json."""
        return cls(text)

    @classmethod
    def from_tiktoken(
        cls,
        path: str | pathlib.Path,
        name: str | None = None,
        *,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """From a tiktoken rank file; see `smelt.tokenizer.tiktoken`."""
        from smelt.tokenizer.tiktoken import tokenizer_json

        return cls(tokenizer_json(path, name, pattern=pattern, special_tokens=special_tokens))

    @property
    def vocab_size(self) -> int:
        """Largest id plus one, control ids included."""
        return len(self._table)

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Control tokens by their name in tokenizer.json, e.g. "<|end|>"."""
        return MappingProxyType(self._controls)

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of tokenizer_config.json; empty if there was none."""
        return MappingProxyType(self._config)

    @property
    def bos_id(self) -> int | None:
        """The id that must stand before a raw text (a completion), or None."""
        return self._bos_id

    @property
    def json(self) -> str:
        """A tokenizer.json with every control token marked special, for other libraries; made on demand."""
        spec = _parse(self._source)
        cleaned = text_only(spec, self._kind) | {"post_processor": spec.get("post_processor")}
        return json.dumps(cleaned, ensure_ascii=False)

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a control id. Raises InvalidRequestError for a lone surrogate."""
        try:
            return list(self._encoder.encode(text, add_special_tokens=False).ids)
        except TypeError:
            raise _surrogate_error(text) from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several cores where the library finds them."""
        try:
            return [list(e.ids) for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:
            return [self.encode(text) for text in texts]  # raises for the text at fault

    def token_bytes(self, token_id: int) -> bytes:
        """What a token writes; empty for control ids and for ids outside the vocabulary."""
        return self._table[token_id] if 0 <= token_id < len(self._table) else b""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of a sequence, without the leading space that encoding added, if it does."""
        data = b"".join(map(self.token_bytes, ids))
        return data.removeprefix(b" ") if self._strip_space else data

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence; incomplete UTF-8 shows as U+FFFD, control ids show nothing."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        """An incremental decoder."""
        return StreamDecoder(self._table, self._strip_space)

    def save(self, folder: str | pathlib.Path, config: Mapping[str, Any] | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json (`config`, or what was loaded)."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / "tokenizer.json").write_text(self._source, encoding="utf-8")
        config_text = json.dumps(dict(self._config if config is None else config), ensure_ascii=False, indent=2)
        (path / "tokenizer_config.json").write_text(config_text + "\n", encoding="utf-8")


def _parse(json_text: str) -> dict[str, Any]:
    if len(json_text) > MAX_JSON_CHARS:
        raise CheckpointError(f"tokenizer.json: {len(json_text)} characters, at most {MAX_JSON_CHARS}")
    try:
        spec = json.loads(json_text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("tokenizer.json is not JSON") from error
    if not isinstance(spec, dict):
        raise CheckpointError("tokenizer.json: sought an object")
    return spec


def _load_config(path: pathlib.Path) -> dict[str, Any]:
    """tokenizer_config.json where there is one, with a chat template that stands in a file of its own."""
    config: Any = {}
    try:
        if (path / "tokenizer_config.json").is_file():
            config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise CheckpointError("tokenizer_config.json: sought an object")
        if (path / "chat_template.jinja").is_file():
            config.setdefault("chat_template", (path / "chat_template.jinja").read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError("tokenizer_config.json or chat_template.jinja cannot be read") from error
    return config


def _load_encoder(spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        encoder = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
    except Exception as error:  # the library raises plain Exception for every fault of the file
        raise CheckpointError(f"tokenizer.json cannot be used: {str(error)[:300]}") from error
    # The library numbers added tokens itself and only warns where the file says otherwise.
    for token in spec["added_tokens"]:
        if (found := encoder.token_to_id(token["content"])) != token["id"]:
            raise CheckpointError(
                f"tokenizer.json: added token {token['content']!r} has id {token['id']}, but would load as {found}"
            )
    encoder.encode_special_tokens = True
    return encoder


def _bos_id(spec: Mapping[str, Any], config: Mapping[str, Any], controls: Mapping[str, int]) -> int | None:
    """`add_bos_token` with `bos_token` decides; where it is silent, the post-processor's template does."""
    bos = config.get("bos_token")
    name = bos.get("content") if isinstance(bos, Mapping) else bos
    if (wanted := config.get("add_bos_token")) is not None:
        return controls.get(str(name)) if wanted else None
    for step in steps(spec.get("post_processor"), "processors"):
        template = step.get("single") or [{}]
        first = template[0].get("SpecialToken") if isinstance(template[0], Mapping) else None
        if isinstance(first, Mapping):
            return controls.get(str(first.get("id")))
    return None


def _surrogate_error(text: str) -> Exception:
    """Why the library would not take `text`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return InvalidRequestError(
            f"The text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
            "which is not valid Unicode.",
            code="invalid_value",
        )
    except AttributeError:
        pass
    return TypeError(f"sought a string, found {type(text).__name__}")
