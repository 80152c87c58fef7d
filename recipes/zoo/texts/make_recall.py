"""Text that only a reader of its context can predict: random pieces, repeated or asked for again.

    python recipes/zoo/texts/make_recall.py

Writes `recall/recall.jsonl.xz` beside this file, the same each time: 12,000 documents of about 96
pieces of the vocabulary of `../stories260k`, those that occur in the tales twenty times or more.
Most repeat 2 to 32 pieces in order (induction). Every other one that drew an even number, 16 at
most, shows them as pairs, then the pairs in any order with other pieces between (recall by key).
"""

from __future__ import annotations

import json
import lzma
import random
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

TEXTS = Path(__file__).parent
DOCUMENTS = 12_000
PIECES = 96


def pieces_of_tales() -> list[str]:
    """Pieces of the vocabulary that are frequent in the tales, as text."""
    tokenizer = Tokenizer.from_file(str(TEXTS.parent / "stories260k" / "tokenizer.json"))
    with lzma.open(TEXTS / "tales" / "grimm-tales.txt.xz", "rt", encoding="utf-8") as file:
        count = Counter(tokenizer.encode(file.read(), add_special_tokens=False).ids)
    tokens = (tokenizer.id_to_token(i) for i, n in sorted(count.items()) if n >= 20)
    return [token.replace("▁", " ") for token in tokens if not token.startswith("<0x")]


def document(number: int, pieces: list[str], rng: random.Random) -> str:
    """One document: pieces repeated in order, or pairs in any order."""
    drawn = [rng.choice(pieces) for _ in range(rng.randint(2, 32))]
    if number % 2 == 0 or len(drawn) % 2 or len(drawn) > 16:
        return "".join(drawn) * (PIECES // len(drawn))
    pairs = [first + second for first, second in zip(drawn[::2], drawn[1::2], strict=True)]
    later = [
        rng.choice(pairs) if rng.random() < 0.7 else rng.choice(pieces)
        for _ in range(PIECES // 2 - len(pairs))
    ]
    return "".join(pairs + later)


def documents() -> list[str]:
    """All documents, always the same."""
    rng, pieces = random.Random(0), pieces_of_tales()
    return [document(number, pieces, rng) for number in range(DOCUMENTS)]


if __name__ == "__main__":
    target = TEXTS / "recall" / "recall.jsonl.xz"
    target.parent.mkdir(exist_ok=True)
    with lzma.open(target, "wt", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents()
        )
