"""Fuzzy in-context recall: keys and values are motifs of one to three tokens.

Nothing marks where a motif ends but the alphabets of keys and values. Poli et al., 2024
(arXiv:2403.17844), section 3.1.

Legend: R rows, U units (pairs or noise, one after another) before the last pair.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from manticore.seeds import numpy_generator
from manticore.tasks.drawing import draw_distinct
from manticore.tasks.mad.fuzzy_naive import naive_fuzzy
from manticore.tasks.mad.fuzzy_settings import FuzzyRecallSettings
from manticore.tasks.task import IGNORE, Request, Rows, Task

_CEILING_EXAMPLES = 4096
"""Enough for a standard error of the ceiling near 0.001."""


def draw_fuzzy(
    rng: np.random.Generator, rows: int, settings: FuzzyRecallSettings, request: Request
) -> Rows:
    """Draw rows of fuzzy in-context recall.

    ```
    inputs:   _ a b X  c a X Y  a b X  c a X    keys of a, b, c; values of X, Y; "_" is padding
    targets:  . . . .  . . . .  . X .  . X Y    "." is -100 and is not scored
    ```

    A motif is an ordered choice of different tokens, uniform once its size is. Values have 1 to
    `v_motif_size` tokens. Keys have 1 to `k_motif_size` in training, always `k_motif_size` in
    validation and test. The last pair repeats one that was put in at a random place. In mad-lab
    that place may lie behind the end, so that nothing shows the last key: an orphan.
    """
    s = settings
    units, probe_size = _draw_units(rng, rows, s, request)
    starts = units.starts()
    body = s.seq_len - probe_size - s.longest_pair  # (R,) the last unit starts before this
    probe_at = rng.integers(s.seq_len - 2 * probe_size)
    units.insert_probe(starts, probe_at, body)
    starts = units.starts()
    present = starts < body[:, None]  # (R, U+1), the last column holds the probe
    present[:, -1] = False
    shown = (units.is_probe & present).any(axis=1)

    ends = np.where(present, starts + units.lengths, 0).max(axis=1)
    extra = 0 if s.multi_query else 1
    left = s.seq_len + 1 - (ends + extra + probe_size)
    starts[:, -1] = ends + extra
    present[:, -1] = True
    sequence = np.full((rows, s.seq_len + 1), s.pad_token)
    if not s.multi_query:
        sequence[np.arange(rows), left + ends] = s.vocab_size - 1
    scored = units.repeated if s.multi_query else np.zeros_like(units.repeated)
    scored[:, -1] = True
    targets = np.full_like(sequence, IGNORE)
    units.write(sequence, targets, starts + left[:, None], present, scored)
    inputs, targets = sequence[:, :-1], (sequence if request.scores_all else targets)[:, 1:]
    return Rows(inputs, targets, None if request.follows_mad_lab else shown)


class _Units:
    """Units of all rows, each a pair or noise; the last column is the pair that is asked for.

    keys: (R, U+1, k) tokens, -1 past the key's end. values: (R, U+1, v) likewise. The value of a
    key that comes back is that of its first unit.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray, is_noise: np.ndarray, base: int):
        self.keys = keys
        codes = (keys + 1) @ (base ** np.arange(keys.shape[-1]))  # (R, U+1)
        # Negative and all different, so that noise never equals a key nor other noise.
        codes[is_noise] = -1 - np.nonzero(is_noise)[1]
        self.is_probe = codes == codes[:, -1:]
        first, self.previous = _find_equals(codes)
        self.is_first = first == np.arange(codes.shape[1])
        shared = np.take_along_axis(values, first[:, :, None], axis=1)
        self.values = np.where(self.is_probe[:, :, None], values[:, -1:], shared)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each unit (R, U+1)."""
        return (self.keys >= 0).sum(axis=2) + (self.values >= 0).sum(axis=2)

    def starts(self) -> np.ndarray:
        """Where each unit starts (R, U+1), counted from the first one."""
        ends = np.cumsum(self.lengths, axis=1)
        return ends - self.lengths

    def insert_probe(self, starts: np.ndarray, probe_at: np.ndarray, body: np.ndarray) -> None:
        """Put the probe in the place of the first unit that starts at `probe_at` or later.

        Nothing happens where the probe has come by itself before, or that unit lies behind the
        body. Units are drawn independently, so replacing one is as good as inserting one.
        """
        every, slots = np.arange(len(starts)), np.arange(starts.shape[1])
        place = np.argmax(starts >= probe_at[:, None], axis=1)
        came = (self.is_probe & (slots < place[:, None])).any(axis=1)
        start = starts[every, place]
        insert = ~came & (start >= probe_at) & (start < body)
        rows, place = every[insert], place[insert]
        self._mark_repeats(rows, place)
        for parts in (self.keys, self.values):
            parts[rows, place] = parts[rows, -1]
        self.is_probe[rows, place] = True
        comes_back = np.where(self.is_probe[rows], slots > place[:, None], self.repeated[rows])
        self.repeated[rows] = comes_back

    def _mark_repeats(self, rows: np.ndarray, place: np.ndarray) -> None:
        """Mark units whose key came before; one that only the replaced unit showed did not."""
        self.repeated = self.previous >= 0
        replaced_first = np.zeros_like(self.repeated)
        replaced_first[rows, place] = self.is_first[rows, place]
        orphaned = np.take_along_axis(replaced_first, np.maximum(self.previous, 0), axis=1)
        self.repeated &= ~orphaned

    def write(
        self,
        sequence: np.ndarray,
        targets: np.ndarray,
        starts: np.ndarray,
        present: np.ndarray,
        scored: np.ndarray,
    ) -> None:
        """Write the units that are present to where they start, scored values to targets too."""
        at = starts.copy()
        for parts, are_values in ((self.keys, False), (self.values, True)):
            for part in np.moveaxis(parts, 2, 0):
                rows, units = np.nonzero(present & (part >= 0))
                columns, tokens = at[rows, units], part[rows, units]
                sequence[rows, columns] = tokens
                if are_values:
                    targets[rows, columns] = np.where(
                        scored[rows, units], tokens, targets[rows, columns]
                    )
                at[rows, units] += 1


def _draw_units(
    rng: np.random.Generator, rows: int, settings: FuzzyRecallSettings, request: Request
) -> tuple[_Units, np.ndarray]:
    """As many units as can fit, the probe last; and the probe's tokens (R,)."""
    s = settings
    varies = request.split == "train"
    shortest = (1 if varies else s.k_motif_size) + 1
    # The body is longest with the shortest probe; one more unit, so that one lies behind it.
    count = -(-(s.seq_len - shortest - s.longest_pair) // shortest) + 2
    shape = (rows, count)
    keys = draw_distinct(rng, shape, s.k_motif_size, s.n_keys)
    values = s.n_keys + draw_distinct(rng, shape, s.v_motif_size, s.n_values)
    is_noise = np.zeros(shape, dtype=bool)
    if s.frac_noise:
        is_noise[:, :-1] = rng.random((rows, count - 1)) < s.frac_noise
        for tokens in (keys, values):
            size = tokens[is_noise].shape
            tokens[is_noise] = s.n_plain + rng.integers(s.noise_vocab_size, size=size)
    if varies:
        _cut(keys, rng.integers(1, s.k_motif_size + 1, size=shape))
    _cut(values, rng.integers(1, s.v_motif_size + 1, size=shape))
    probe_size = (keys[:, -1] >= 0).sum(axis=1) + (values[:, -1] >= 0).sum(axis=1)
    return _Units(keys, values, is_noise, s.n_keys + 1), probe_size


def _cut(tokens: np.ndarray, sizes: np.ndarray) -> None:
    tokens[np.arange(tokens.shape[-1]) >= sizes[..., None]] = -1


def _find_equals(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each entry the first equal one of its row, and the previous one (-1 if none)."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    previous, first = np.full_like(order, -1), np.empty_like(order)
    np.put_along_axis(previous, order[:, 1:], np.where(same, order[:, :-1], -1), axis=1)
    heads = np.zeros_like(order)
    heads[:, 1:] = np.where(same, 0, np.arange(1, order.shape[1]))
    heads = np.maximum.accumulate(heads, axis=1)
    np.put_along_axis(first, order, np.take_along_axis(order, heads, axis=1), axis=1)
    return first, previous


def _ceiling(settings: FuzzyRecallSettings, compat: str, num_train: int | None) -> float:
    """All of it, but for mad-lab's orphans, whose value can only be guessed."""
    return 1.0 if compat == "fixed" else 1 - orphaned_share(settings) * (1 - _chance(settings))


@lru_cache(maxsize=64)
def orphaned_share(settings: FuzzyRecallSettings) -> float:
    """Share of the scored test tokens in mad-lab's way that belong to orphans.

    Counted in examples of a fixed seed.
    """
    rng = numpy_generator(0, "tasks", "fuzzy-in-context-recall", "ceiling")
    # "fixed" tells the orphans, which are drawn again only later.
    request = Request(seed=0, split="test", compat="fixed")
    lost = scored = 0
    for _ in range(_CEILING_EXAMPLES // 512):
        rows = draw_fuzzy(rng, 512, settings, request)
        assert rows.keep is not None
        is_scored = rows.targets != IGNORE
        # The last value is the run of scored tokens at the end.
        last_value = np.argmin(is_scored[:, ::-1], axis=1)
        lost += int(last_value[~rows.keep].sum())
        scored += int(is_scored.sum())
    return lost / scored


def _chance(settings: FuzzyRecallSettings) -> float:
    return 1 / settings.n_values


FUZZY_RECALL = Task(
    name="fuzzy-in-context-recall",
    version=1,
    settings=FuzzyRecallSettings,
    draw=draw_fuzzy,
    naive=naive_fuzzy,
    chance=_chance,
    ceiling=_ceiling,
)
