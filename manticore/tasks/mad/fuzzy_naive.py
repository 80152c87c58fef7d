"""Fuzzy in-context recall, one example at a time: the plain loop beside the fast draw."""

from __future__ import annotations

import numpy as np

from manticore.tasks.mad.fuzzy_settings import FuzzyRecallSettings
from manticore.tasks.task import IGNORE, Request

Motif = tuple[int, ...]


def naive_fuzzy(
    rng: np.random.Generator, settings: FuzzyRecallSettings, request: Request
) -> tuple[list[int], list[int]] | None:
    """Draw one example of fuzzy in-context recall, pair by pair; None for an orphan."""
    s = settings

    def draw_key() -> Motif:
        varies = request.split == "train"
        size = int(rng.integers(1, s.k_motif_size + 1)) if varies else s.k_motif_size
        return tuple(rng.permutation(s.n_keys)[:size].tolist())

    def draw_value() -> Motif:
        size = int(rng.integers(1, s.v_motif_size + 1))
        return tuple((s.n_keys + rng.permutation(s.n_values)[:size]).tolist())

    probe, answer = draw_key(), draw_value()
    probe_size = len(probe) + len(answer)
    probe_at = rng.integers(s.seq_len - 2 * probe_size)
    value_of: dict[Motif, Motif] = {}
    sequence: list[int] = []
    targets: list[int] = []
    while len(sequence) < s.seq_len - probe_size - s.longest_pair:
        key, value = draw_key(), draw_value()
        if len(sequence) >= probe_at and probe not in value_of:
            key = probe
        elif rng.random() < s.frac_noise:
            noise = rng.integers(s.noise_vocab_size, size=len(key) + len(value)) + s.n_plain
            sequence += noise.tolist()
            targets += [IGNORE] * len(noise)
            continue
        is_scored = key in value_of and s.multi_query
        value = value_of.setdefault(key, answer if key == probe else value)
        sequence += key + value
        targets += [IGNORE] * len(key)
        targets += value if is_scored else [IGNORE] * len(value)
    if probe not in value_of and not request.follows_mad_lab:
        return None
    if not s.multi_query:
        sequence.append(s.vocab_size - 1)
        targets.append(IGNORE)
    sequence += probe + answer
    targets += [IGNORE] * len(probe) + list(answer)
    pads = s.seq_len + 1 - len(sequence)
    sequence = [s.pad_token] * pads + sequence
    targets = [IGNORE] * pads + targets
    return sequence[:-1], (sequence if request.scores_all else targets)[1:]
