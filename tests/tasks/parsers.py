"""Readers of examples, written from the description of the tasks and not from their code.

Each reads one example back by its alphabets, works out what has to be scored, compares, and
returns what it saw.
"""

from types import SimpleNamespace

IGNORE = -100


def read_recall(inputs, targets, *, vocab_size, noise=0, multi_query=True, scores_all=False):
    """Read one example of in-context recall."""
    inputs, targets = inputs.tolist(), targets.tolist()
    plain = vocab_size - noise - (0 if multi_query else 1)
    keys, values = range(plain // 2), range(plain // 2, plain)
    noises = range(plain, plain + noise)
    body = inputs[:-1] if multi_query else inputs[:-2]
    if not multi_query:
        assert inputs[-2] == vocab_size - 1
    assert len(body) % 2 == 0
    map_, order, noise_slots, expected = {}, [], [], []
    for slot in range(len(body) // 2):
        first, second = body[2 * slot : 2 * slot + 2]
        if first in noises:
            assert second in noises
            noise_slots.append(slot)
            expected += [IGNORE, IGNORE]
            continue
        assert first in keys
        assert second in values
        assert map_.get(first, second) == second
        expected += [second if first in map_ and multi_query else IGNORE, IGNORE]
        map_[first] = second
        order.append(first)
    last = inputs[-1]
    assert last in map_
    expected += [] if multi_query else [IGNORE]
    expected.append(map_[last])
    if scores_all:
        expected = [*inputs[1:], map_[last]]
    assert targets == expected
    scored = sum(target != IGNORE for target in targets)
    return SimpleNamespace(keys=order, last=last, noise_slots=noise_slots, scored=scored)


def read_fuzzy(
    inputs, targets, *, vocab_size, noise=0, multi_query=True, scores_all=False, orphans=False
):
    """Read one example of fuzzy in-context recall; the last value comes from the targets."""
    inputs, targets = inputs.tolist(), targets.tolist()
    # The full sequence: the last target is the last token, scored in any case.
    sequence = [*inputs, targets[-1]]
    plain = vocab_size - (1 if multi_query else 2) - noise
    pad, copy = plain + noise, vocab_size - 1
    is_key = [token < plain // 2 for token in sequence]
    is_value = [plain // 2 <= token < plain for token in sequence]
    at = next(i for i, token in enumerate(sequence) if token != pad)
    pads, map_, repeats, pairs, expected = at, {}, 0, [], [IGNORE] * at
    while at < len(sequence):
        if sequence[at] in range(plain, plain + noise) or (
            not multi_query and sequence[at] == copy
        ):
            expected.append(IGNORE)
            at += 1
            continue
        end = at
        while is_key[end]:
            end += 1
        stop = end
        while stop < len(sequence) and is_value[stop]:
            stop += 1
        key, value = tuple(sequence[at:end]), tuple(sequence[end:stop])
        assert len(key) > 0
        assert len(value) > 0
        assert len(set(key)) == len(key)
        assert len(set(value)) == len(value)
        is_last = stop == len(sequence)
        assert map_.get(key, value) == value
        is_scored = is_last or (multi_query and key in map_)
        expected += [IGNORE] * len(key)
        expected += value if is_scored else [IGNORE] * len(value)
        is_orphan = is_last and key not in map_
        repeats += key in map_
        map_[key] = value
        pairs.append((key, value))
        at = stop
    if not multi_query:
        assert sequence.count(copy) == 1
        assert sequence[-1 - len(key) - len(value)] == copy
    assert orphans or not is_orphan
    assert targets == (sequence if scores_all else expected)[1:]
    return SimpleNamespace(
        pairs=pairs,
        pads=pads,
        is_orphan=is_orphan,
        repeats=repeats,
        scored=sum(target != IGNORE for target in expected),
    )


def read_memorization(inputs, targets, *, vocab_size, noise=0):
    """Read one example of memorization."""
    inputs, targets = inputs.tolist(), targets.tolist()
    plain = vocab_size - 1 - noise
    keys, values, noises = range(plain // 2), range(plain // 2, plain), range(plain, plain + noise)
    facts, noise_slots = [], []
    for slot in range(len(inputs) // 2):
        key, ask = inputs[2 * slot : 2 * slot + 2]
        nothing, value = targets[2 * slot : 2 * slot + 2]
        assert nothing == IGNORE
        if key in noises:
            assert ask in noises
            assert value == IGNORE
            noise_slots.append(slot)
            continue
        assert key in keys
        assert ask == vocab_size - 1
        assert value in values
        facts.append((key, value))
    return SimpleNamespace(facts=facts, noise_slots=noise_slots)


def read_copying(inputs, targets, *, vocab_size, count):
    """Read one example of selective copying; return where the content stands."""
    inputs, targets = inputs.tolist(), targets.tolist()
    copy, blank = vocab_size - 1, vocab_size - 2
    assert inputs.count(copy) == 1
    bar = inputs.index(copy)
    assert inputs[bar + 1 :] == [blank] * count
    places = [i for i, token in enumerate(inputs[:bar]) if token != blank]
    content = [inputs[i] for i in places]
    assert len(content) == count
    assert targets == [IGNORE] * (bar + 1) + content
    return places


def read_mqar(inputs, targets, *, vocab_size, pairs, random_fill):
    """Read one example of multi-query recall; return the places of the questions."""
    inputs, targets = inputs.tolist(), targets.tolist()
    map_ = {inputs[2 * i]: inputs[2 * i + 1] for i in range(pairs)}
    assert len(map_) == pairs
    assert len(set(map_.values())) == pairs
    assert all(0 < key < vocab_size // 2 <= value < vocab_size for key, value in map_.items())
    scored = [i for i, target in enumerate(targets) if target != IGNORE]
    assert [(inputs[i], targets[i]) for i in scored] == [
        (inputs[i], map_[inputs[i]]) for i in scored
    ]
    assert {inputs[i] for i in scored} == set(map_)
    assert len(scored) == pairs
    others = set(range(2 * pairs, len(inputs))) - set(scored)
    if not random_fill:
        assert all(inputs[i] == 0 for i in others)
    return [i - 2 * pairs for i in scored]
