"""Prove an export: the same logits and the same tokens, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from manticore.seeds import torch_generator

TOLERANCE = 1e-5
"""Of float32 logits, relative to the largest one where that is greater than 1."""
NEW_TOKENS = 16
_CHILD = Path(__file__).with_name("export_child.py")
_ROWS, _SEQ_LEN, _LONGEST = 2, 40, 1024
_BEYOND_WINDOW = 8


class CheckFailedError(Exception):
    """The exported folder does not compute what the source computes."""


def check_export(folder: Path, source: PreTrainedModel, loader: str) -> dict[str, Any]:
    """Compare a folder with the model that it was made from.

    Args:
        folder: what was written.
        source: the model before; turned into float32, for our own reader into float64.
        loader: who loads it there: transformers `alone`, which cannot import Manticore;
            `with-manticore`; or `fla`, our reader of flash-linear-attention's folders.

    Returns:
        Findings, as plain values.

    Raises:
        CheckFailedError: it does not load, or computes something else.
    """
    # Norms of small numbers enlarge the noise of float32; where both sides are ours, it can go.
    expected = expectation(source.double() if loader == "fla" else source.float())
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "expected.safetensors"
        save_file(expected, file)
        found = ask_child(folder, file, loader)
    allowed = TOLERANCE * max(1.0, found["largest"])
    if not found["difference"] <= allowed:  # also what is not a number
        raise CheckFailedError(
            f"its logits differ by {found['difference']:.2g}, more than {allowed:.2g}"
        )
    if not found["same_tokens"]:
        raise CheckFailedError(f"{found['new_tokens']} greedily generated tokens are not the same")
    return found


def ask_child(folder: Path, expected: Path, how: str) -> dict[str, Any]:
    """What `export_child` finds in a process of its own; raises when it finds nothing."""
    words = [sys.executable, "-P", str(_CHILD), str(folder), str(expected), how]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(words, capture_output=True, text=True, env=offline, check=False)
    if done.returncode != 0:
        raise CheckFailedError(f"the exported model does not load: {_last_line(done.stderr)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@torch.no_grad()
def expectation(source: PreTrainedModel) -> dict[str, Tensor]:
    """Ids, logits and a greedy continuation of the model before it was exported."""
    length = _seq_len(source.config)
    generator = torch_generator(0, "export", "check")
    ids = torch.randint(0, source.config.vocab_size, (_ROWS, length), generator=generator)
    tokens: Any = source.generate(
        ids[:1],
        attention_mask=torch.ones_like(ids[:1]),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,  # an early end would compare few
        do_sample=False,
    )
    logits = source(ids).logits
    return {"input_ids": ids, "logits": logits.contiguous(), "tokens": tokens.contiguous()}


def _seq_len(config: Any) -> int:
    """Long enough to leave the smallest window, short enough for every table of positions."""
    parts = getattr(config, "components", [config])
    windows = [window for part in parts for window in _windows(part)]
    limits = [getattr(part, "max_position_embeddings", None) for part in parts]
    wanted = min([window + _BEYOND_WINDOW for window in windows], default=_SEQ_LEN)
    longest = min([limit - NEW_TOKENS for limit in limits if limit is not None], default=_LONGEST)
    return max(1, min(max(wanted, _SEQ_LEN), longest, _LONGEST))


def _windows(config: Any) -> list[int]:
    specs = config.specs() if hasattr(config, "specs") else [config]
    found = [getattr(s, "window", None) or getattr(s, "sliding_window", None) for s in specs]
    return [window for window in found if window is not None]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "the process ended without a word"
