"""The zoo's text for recall is what its script makes, and can be predicted from its own context."""

from __future__ import annotations

import importlib.util
import json
import lzma
from pathlib import Path
from types import ModuleType

import pytest

TEXTS = Path(__file__).resolve().parents[2] / "recipes" / "zoo" / "texts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_recall", TEXTS / "make_recall.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_makes_the_file_again(script: ModuleType) -> None:
    with lzma.open(TEXTS / "recall" / "recall.jsonl.xz", "rt", encoding="utf-8") as file:
        kept = [json.loads(line)["text"] for line in file]
    assert script.documents() == kept


def test_repeated_documents_are_whole_copies(script: ModuleType) -> None:
    for text in script.documents()[:200:2]:
        # A string is made of copies of a shorter one when it occurs within itself, doubled.
        period = (text + text).index(text, 1)
        assert len(text) // period >= 3
        assert len(text) % period == 0
