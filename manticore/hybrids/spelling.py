"""Which bytes a token stands for, and which tokens spell given bytes.

Tokenizers write the same bytes differently:

    bytes           " the"      b"\\n"        b"\\xe2"
    byte-level      "Ġthe"      "Ċ"          "â"          every character is one byte
    SentencePiece   "▁the"      "<0x0A>"     "<0xE2>"     "▁" is a space, the rest is UTF-8
"""

import json
import re
from typing import Any

from manticore.text.tokenizers import check_fast

SPACE_MARK = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """A fast tokenizer as a map between its tokens and bytes.

    `token_bytes[i]` is what token i stands for inside a text: bytes, or None for special tokens
    and unused ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = check_fast(tokenizer).backend_tokenizer
        settings = json.loads(backend.to_str())
        self._model = backend.model
        self._unknown = tokenizer.unk_token_id
        self._is_byte_level = "ByteLevel" in _types(settings["decoder"], settings["pre_tokenizer"])
        # SentencePiece writes bytes that have no piece as tokens of their own.
        self._has_byte_tokens = "ByteFallback" in _types(settings["decoder"]) or bool(
            settings["model"].get("byte_fallback")
        )
        tokens = tokenizer.convert_ids_to_tokens(list(range(num_tokens(tokenizer))))
        added = {token["id"]: token for token in settings["added_tokens"]}
        special = {i for i, token in added.items() if token["special"]}
        special |= set(tokenizer.all_special_ids)
        self.token_bytes: list[bytes | None] = [
            None
            if token is None or index in special
            else token.encode()
            if index in added  # added tokens are literal text
            else self._read(token)
            for index, token in enumerate(tokens)
        ]
        self._ids = self._index(tokens)

    def spell(self, data: bytes) -> list[int]:
        """Ids of the tokens that spell `data`: one if there is a token for it, else its pieces."""
        if data in self._ids:
            return [self._ids[data]]
        # The model alone, without what normalizers put in front of a text (a space).
        written = self._write(data)
        if written is None:
            ids = [self._ids.get(bytes([byte])) for byte in data]
        else:
            ids = [token.id for token in self._model.tokenize(written)]
        return [index for index in ids if index is not None and index != self._unknown]

    def _read(self, token: str) -> bytes:
        if self._is_byte_level and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if self._is_byte_token(token):
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE_MARK, " ").encode()

    def _write(self, data: bytes) -> str | None:
        if self._is_byte_level:
            return "".join(_CHARACTER_OF[byte] for byte in data)
        try:
            return data.decode().replace(" ", SPACE_MARK)
        except UnicodeDecodeError:  # part of a character
            return None

    def _is_byte_token(self, token: str) -> bool:
        return self._has_byte_tokens and BYTE_TOKEN.fullmatch(token) is not None

    def _index(self, tokens: list[str | None]) -> dict[bytes, int]:
        # Where two tokens stand for the same bytes: a piece before a byte token, which training
        # never saw when there is a piece; then the lower id.
        order = sorted(
            range(len(tokens)), key=lambda index: (self._is_byte_token(tokens[index] or ""), index)
        )
        ids: dict[bytes, int] = {}
        for index in order:
            data = self.token_bytes[index]
            if data is not None:
                ids.setdefault(data, index)
        return ids


def num_tokens(tokenizer: Any) -> int:
    """Rows that a table needs: the largest id and one."""
    return max(tokenizer.get_vocab().values()) + 1


def _types(*parts: Any) -> set[str]:
    """Types of a tokenizer.json component and of those inside it."""
    found: set[str] = set()
    for part in parts:
        if isinstance(part, dict):
            found.add(part.get("type", ""))
            found |= _types(*part.get("decoders", []), *part.get("pretokenizers", []))
    return found


def _byte_alphabet() -> dict[str, int]:
    """Characters of byte-level tokenizers: visible Latin-1 as it is, other bytes from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}
