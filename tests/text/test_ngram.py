"""The n-gram model against a second one, written with dictionaries straight from the paper."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from manticore.text.ngram import NGramModel

VOCAB = 7


def brute_force(rows, vocab_size, order):
    """Return p(word, context) by Chen and Goodman's formulas, one n-gram at a time."""
    counts = []
    for n in range(1, order + 1):
        occurrences, histories = Counter(), defaultdict(set)
        for row in rows:
            for i in range(len(row) - n + 1):
                gram = tuple(row[i : i + n])
                occurrences[gram] += 1
                histories[gram].add(row[i - 1] if i else "start")
        counts.append(occurrences if n == order else {g: len(h) for g, h in histories.items()})

    def discounts(table):
        n1, n2, n3, n4 = (sum(c == i for c in table.values()) for i in (1, 2, 3, 4))
        if 0 in (n1, n2, n3, n4):
            return 0.75, 0.75, 0.75
        y = n1 / (n1 + 2 * n2)
        raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return tuple(min(max(d, 0.05), top) for d, top in zip(raw, (0.95, 1.95, 2.95), strict=True))

    all_discounts = [discounts(table) for table in counts]

    def probability(word, context):
        result = 1 / vocab_size
        for n in range(min(order, len(context) + 1)):
            history = tuple(context[len(context) - n :])
            following = {g: c for g, c in counts[n].items() if g[:-1] == history}
            if not following:
                return result
            total = sum(following.values())
            taken = {g: all_discounts[n][min(c, 3) - 1] for g, c in following.items()}
            gram = (*history, word)
            seen = following[gram] - taken[gram] if gram in following else 0
            result = (seen + sum(taken.values()) * result) / total
        return result

    return probability


def sample_rows(seed=0, n_rows=12, seq_len=25):
    """Rows of a skewed Markov chain: many n-grams return, some are never seen."""
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(VOCAB - 1, 0.4), size=VOCAB)
    rows = np.zeros((n_rows, seq_len), int)
    for i in range(n_rows):
        for t in range(1, seq_len):
            rows[i, t] = rng.choice(VOCAB - 1, p=chain[rows[i, t - 1]])
    return rows


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_token_has_the_probability_of_the_formulas(order):
    train, test = sample_rows(0), sample_rows(1, n_rows=3)
    probability = brute_force(train.tolist(), VOCAB, order)
    nats = NGramModel(order).fit(train, VOCAB).nats(test)
    for i, row in enumerate(test.tolist()):
        for t in range(1, len(row)):
            expected = probability(row[t], row[max(0, t - order + 1) : t])
            assert np.exp(-nats[i, t - 1]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one_after_seen_and_unseen_contexts(order):
    model = NGramModel(order).fit(sample_rows(), VOCAB)
    rng = np.random.default_rng(2)
    contexts = [rng.integers(0, VOCAB, n) for n in range(7) for _ in range(5)]
    contexts += [np.full(4, VOCAB - 1), sample_rows()[0, -4:]]  # never seen; seen at a row's end
    for context in contexts:
        p = model.probabilities(context)
        assert p.shape == (VOCAB,)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-12)


def test_a_large_vocabulary_sums_to_one_and_keeps_keys_apart():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60000, (20, 50))
    rows[:, ::2] %= 9
    model = NGramModel(5).fit(rows, 60000)
    for context in (rows[3, 10:14], rows[0, :3], [59999, 1, 2, 3]):
        assert model.probabilities(context).sum() == pytest.approx(1, abs=1e-9)


def test_text_that_follows_a_rule_is_learned_and_a_longer_model_learns_more():
    rows = np.tile(np.array([0, 1, 0, 2]), (20, 16))
    losses = [NGramModel(n).fit(rows, 3).nats_per_token(rows) for n in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.1


def test_n_grams_do_not_reach_across_rows():
    rows = np.array([[0, 1, 2], [3, 4, 5]])
    assert NGramModel(2).fit(rows, 6).n_grams == [6, 4]
    assert NGramModel(5).fit(rows, 6).n_grams == [6, 4, 2], "and stop at the length of a row"


def test_the_order_of_rows_does_not_matter():
    train, test = sample_rows(0), sample_rows(1)
    a = NGramModel().fit(train, VOCAB).nats_per_token(test)
    assert NGramModel().fit(train[::-1], VOCAB).nats_per_token(test) == pytest.approx(a, rel=1e-12)


def test_two_hundred_thousand_tokens_are_fitted_within_seconds():
    import time

    rng = np.random.default_rng(0)
    rows = (rng.zipf(1.3, (1600, 128)) % 2048).astype(np.int32)
    start = time.perf_counter()
    NGramModel(5).fit(rows, 2048).nats_per_token(rows)
    assert time.perf_counter() - start < 6  # a tenth of 2M tokens in 60 s; about 0.3 s here


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NGramModel(0), "order=0"),
        (lambda: NGramModel().fit(np.zeros(5, int), 3), r"rows have shape \(5,\)"),
        (lambda: NGramModel().fit(np.zeros((0, 5), int), 3), "rows have shape"),
        (lambda: NGramModel().fit(np.full((1, 5), 3), 3), "tokens from 3 to 3, but vocab_size=3"),
        (lambda: NGramModel().fit(np.full((1, 5), -1), 3), "tokens from -1"),
        (lambda: NGramModel().nats(np.zeros((1, 5), int)), "Call `fit` first"),
        (lambda: NGramModel().fit(np.zeros((2, 3)), 2).nats_per_token(np.zeros((2, 1))), "of one"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
