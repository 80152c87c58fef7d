"""The checks: the same numbers by another road, for any causal language model.

Each takes a `Probe` and returns how far the road leads astray (a relative error), or raises
`NotApplicable`. The faults that they look for are silent ones: the model runs, and is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch

from manticore.evaluation.conformance.greedy import generation_regret
from manticore.evaluation.conformance.padded_rows import (
    compare_padded,
    lengths_of,
    pad,
    padded_error,
)
from manticore.evaluation.conformance.probe import NotApplicable, Probe, relative_error
from manticore.models.family import RefusedError

# Float32 sums of the same numbers in another order; measured on 25 sound families of transformers
# this is 1e-7 to 1e-5, and the faults are 1e-3 and more.
TOLERANCE = 1e-4
# bfloat16 keeps 8 bits; dense models lose 0.01 to 0.03, and a flipped choice of experts 0.2.
BFLOAT16_TOLERANCE = 0.3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check."""

    measure: Callable[[Probe], float]
    """Returns a relative error."""
    says: str
    """What is true of a model that passes."""
    tolerance: float = TOLERANCE


def repeatability(probe: Probe) -> float:
    """Run the same row again after others: a state kept in the module would show."""
    first = probe.truth(0)
    with torch.no_grad():
        probe.call(probe.ids)
        with contextlib.suppress(NotApplicable, RefusedError):
            probe.in_pieces(slice(1, 2), [7, probe.seq_len], with_positions=True)
        again = probe.call(probe.ids[:1]).logits[0].float()
    return relative_error(again, first)


def causality(probe: Probe) -> float:
    """Change the second half of a row: logits of the first half must stay."""
    half = probe.seq_len // 2
    ids = probe.ids[:1].clone()
    ids[:, half:] = probe.ids[1:2, half:]
    with torch.no_grad():
        changed = probe.call(ids).logits[0].float()
    return relative_error(changed[:half], probe.truth(0)[:half])


def batch(probe: Probe) -> float:
    """Run all rows together."""
    with torch.no_grad():
        return relative_error(probe.call(probe.ids).logits.float(), probe.truths)


def decode(probe: Probe) -> float:
    """Feed a prompt, then one token at a time, and let the model count positions."""
    return _pieces(probe, _one_by_one(probe), with_positions=False)


def decode_with_positions(probe: Probe) -> float:
    """Feed a prompt, then one token at a time, with positions given."""
    return _pieces(probe, _one_by_one(probe), with_positions=True)


def batch_decode(probe: Probe) -> float:
    """Feed all rows together, then one token of each at a time."""
    with torch.no_grad():
        found = probe.in_pieces(slice(None), _one_by_one(probe), probe.takes_positions)
    return relative_error(found, probe.truths)


def interleaving(probe: Probe) -> float:
    """Begin another row, with a cache of its own, behind every piece of the first."""

    def begin_another() -> None:
        probe.piece(probe.empty_cache(), probe.ids[1:2, :7])

    with torch.no_grad():
        cuts = _one_by_one(probe)
        found = probe.in_pieces(slice(1), cuts, probe.takes_positions, begin_another)
    return relative_error(found[0], probe.truth(0))


def beam_search(probe: Probe) -> float:
    """Reorder the cache of a batch, as beam search does: each row goes on behind another's past."""
    start, order = probe.seq_len - 6, torch.tensor([2, 0, 0], device=probe.ids.device)
    outputs, steps = [], torch.arange(probe.seq_len, device=probe.ids.device)[None]
    with torch.no_grad():
        first = (probe.ids[:, :start], None, steps[:, :start])
        cache = probe.reordered(probe.piece(probe.empty_cache(), *first)[1], order)
        for t in range(start, probe.seq_len):
            token = (probe.ids[order, t : t + 1], None, steps[:, t : t + 1])
            logits, cache = probe.piece(cache, *token)
            outputs.append(logits)
    return relative_error(torch.cat(outputs, dim=1), probe.truths[order, start:])


def chunked_prefill(probe: Probe) -> float:
    """Feed the row in two pieces, and let the model count positions."""
    return _pieces(probe, [probe.seq_len // 2 + 1, probe.seq_len], with_positions=False)


def chunked_prefill_with_positions(probe: Probe) -> float:
    """Feed the row in two pieces, with positions given."""
    return _pieces(probe, [probe.seq_len // 2 + 1, probe.seq_len], with_positions=True)


def left_padding(probe: Probe) -> float:
    """Pad rows of different lengths on the left: real positions keep their logits."""
    return padded_error(probe, "left")


def right_padding(probe: Probe) -> float:
    """Pad rows of different lengths on the right."""
    return padded_error(probe, "right")


def padded_decode(probe: Probe) -> float:
    """Pad on the left, then feed one token at a time behind the cache."""
    lengths, prompt = lengths_of(probe), probe.seq_len - 5
    ids, mask, positions = pad(probe, lengths, "left")
    with torch.no_grad():
        cache, outputs, start = probe.empty_cache(), [], 0
        for end in [prompt, *range(prompt + 1, probe.seq_len + 1)]:
            # Purely recurrent families take no mask behind a prompt; `generate` gives them none.
            seen = mask[:, :end] if start == 0 or probe.keeps_mask else None
            piece = (ids[:, start:end], seen, positions[:, start:end])
            logits, cache = probe.piece(cache, *piece)
            outputs.append(logits)
            start = end
    return compare_padded(probe, torch.cat(outputs, dim=1), lengths, "left")


def generate(probe: Probe) -> float:
    """Generate greedily with the cache: each token must be the best by a whole run, or as good."""
    return generation_regret(probe, probe.ids[:1, :8], None)


def padded_generate(probe: Probe) -> float:
    """Generate from prompts of different lengths in one batch, padded on the left."""
    lengths = [8, 5, 6]
    ids, mask, _ = pad(probe, lengths, "left", width=8)
    return generation_regret(probe, ids, mask)


def save_and_load(probe: Probe) -> float:
    """Save, load again: every tensor bit for bit, and the same logits.

    Buffers that are not saved show in the logits, which may come from other kernels than before.
    """
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        probe.model.save_pretrained(folder)
        loaded = type(probe.model).from_pretrained(folder, dtype=probe.model.dtype).eval()
        before, after = probe.model.state_dict(), loaded.state_dict()
        is_same = before.keys() == after.keys() and all(
            torch.equal(tensor.to(after[name].device), after[name])
            for name, tensor in before.items()
        )
        found = Probe(loaded.to(probe.ids.device), probe.seq_len, probe.seed).truth(0)
    return relative_error(found, probe.truth(0)) if is_same else float("inf")


def bfloat16(probe: Probe) -> float:
    """Run a bfloat16 copy."""
    small = copy.deepcopy(probe.model).to(torch.bfloat16)
    with torch.no_grad():
        found = Probe(small, probe.seq_len, probe.seed).truth(0)
    # Logits are compared by their mean error: of many, some land far off.
    truth = probe.truth(0)
    if not torch.isfinite(found).all():
        return float("inf")
    return ((found - truth).norm() / truth.norm()).item()


def _pieces(probe: Probe, cuts: list[int], with_positions: bool) -> float:
    if with_positions and not probe.takes_positions:
        raise NotApplicable("its forward takes no positions")
    with torch.no_grad():
        found = probe.in_pieces(slice(1), cuts, with_positions)
    return relative_error(found[0], probe.truth(0))


def _one_by_one(probe: Probe) -> list[int]:
    return list(range(probe.seq_len - 8, probe.seq_len + 1))


CHECKS: dict[str, Check] = {
    "repeatability": Check(measure=repeatability, says="a run leaves no trace in the module"),
    "causality": Check(measure=causality, says="no position sees what follows"),
    "batch": Check(measure=batch, says="rows of a batch do not see each other"),
    "decode": Check(measure=decode, says="a cached token costs no accuracy"),
    "decode-with-positions": Check(
        measure=decode_with_positions, says="nor does it with positions given"
    ),
    "batch-decode": Check(measure=batch_decode, says="a batch decodes like its rows"),
    "interleaving": Check(measure=interleaving, says="the past is in the cache and nowhere else"),
    "beam-search": Check(measure=beam_search, says="a cache goes where its beams go"),
    "chunked-prefill": Check(measure=chunked_prefill, says="a filled cache takes several tokens"),
    "chunked-prefill-with-positions": Check(
        measure=chunked_prefill_with_positions, says="also with positions given"
    ),
    "left-padding": Check(measure=left_padding, says="padding on the left changes nothing"),
    "right-padding": Check(measure=right_padding, says="padding on the right changes nothing"),
    "padded-decode": Check(measure=padded_decode, says="padding does not leak into the cache"),
    "generate": Check(measure=generate, says="greedy generation is greedy"),
    "padded-generate": Check(measure=padded_generate, says="also for a padded batch"),
    "save-and-load": Check(measure=save_and_load, says="a saved model loads bit for bit"),
    "bfloat16": Check(
        measure=bfloat16, says="bfloat16 stays close to float32", tolerance=BFLOAT16_TOLERANCE
    ),
}
