"""Closed-form projectors are the ridge regressions that they claim to be.

Streams come from the stock models' hidden states, regressions from NumPy's least squares.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from manticore.hybrids.closed_form import fit_projectors, principal_components
from tests.hybrids.pairs import build, ids_for, member, members, one_hot, padded, random_rows

STORIES = Path(__file__).parents[2] / "recipes" / "zoo" / "stories260k"
CLOSE = 1e-5
PARTITION = [[[0, 1], [1, 4]], [[0, 2], [2, 5]]]
ROWS = [ids_for(1, length, seed=length)[0] for length in (40, 55, 31, 47)]
BATCHES = [{"input_ids": ids_for(6, 50, seed=20)}] + [
    dict(zip(("input_ids", "attention_mask"), padded(rows, side), strict=True))
    for side, rows in (("left", ROWS[:2]), ("right", ROWS[2:]))
]
TOKENS = [*BATCHES[0]["input_ids"], *ROWS]  # all sequences without their padding


@torch.no_grad()
def streams_of(k: int) -> list[np.ndarray]:
    """Stream of stock component k at the boundaries: (tokens, d_k) each."""
    model, cuts = member(k), [0, PARTITION[k][0][1]]
    found: list[list[np.ndarray]] = [[], [], []]
    for ids in TOKENS:
        output = model(ids[None], output_hidden_states=True, use_cache=False)
        before = output.hidden_states
        if model.config.model_type == "mamba":
            before = (model.get_input_embeddings()(ids[None]), *before)  # Mamba leaves it out
        states = [before[cut] for cut in cuts] + [before[-1]]
        for boundary, state in zip(found, states, strict=True):
            boundary.append(state[0].double().numpy())
    return [np.concatenate(boundary) for boundary in found]


def ridge_by_least_squares(x: np.ndarray, y: np.ndarray, ridge: float):
    """Weight, bias, R squared of centred ridge: least squares with rows for the penalty."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x0, y0 = x - x_mean, y - y_mean
    penalty = np.sqrt(len(x) * ridge * x.var(0).mean())
    rows = np.concatenate([x0, penalty * np.eye(x.shape[1])])
    goal = np.concatenate([y0, np.zeros((x.shape[1], y.shape[1]))])
    weight = np.linalg.lstsq(rows, goal, rcond=None)[0]
    r2 = 1 - ((y0 - x0 @ weight) ** 2).sum() / (y0**2).sum()
    return weight.T, y_mean - x_mean @ weight, r2


def assert_is_ridge(linear, x, y, ridge: float, r2: float, close: float = CLOSE) -> None:
    weight, bias, truth = ridge_by_least_squares(x, y, ridge)
    scale = max(1.0, np.abs(weight).max())
    np.testing.assert_allclose(linear.weight.detach().numpy(), weight, rtol=0, atol=close * scale)
    np.testing.assert_allclose(linear.bias.detach().numpy(), bias, rtol=0, atol=close * scale)
    assert r2 == pytest.approx(truth, abs=CLOSE)


# The streams' own rounding in float32 is amplified by up to the inverse of the penalty.
@pytest.mark.parametrize(("ridge", "close"), [(1e-4, 2e-4), (1e-2, CLOSE), (0.3, CLOSE)])
def test_translators_are_the_ridge_regressions_of_the_components_streams(ridge, close):
    hybrid = build(members(2), num_blocks=2, partition=PARTITION)
    hybrid.set_mixture(random_rows(2, 2))  # without a part in it: each component runs alone
    fits = {(f.boundary, f.source, f.target): f.r2 for f in fit_projectors(hybrid, BATCHES, ridge)}
    assert len(fits) == 6
    streams = [streams_of(0), streams_of(1)]
    for (boundary, j, k), r2 in fits.items():
        linear = hybrid.model.translators.at(boundary, j, k)
        assert_is_ridge(linear, streams[j][boundary], streams[k][boundary], ridge, r2, close)
        assert 0 < r2 < 1


def test_shared_projectors_are_ridge_regressions_through_the_gate():
    hybrid = build(members(2), num_blocks=2, partition=PARTITION, mixing="shared")
    rows = random_rows(2, 2)
    hybrid.set_mixture(rows)
    fits = fit_projectors(hybrid, BATCHES, ridge=1e-3)
    assert len(fits) == 8
    r2 = {(fit.boundary, fit.source, fit.target): fit.r2 for fit in fits}
    streams = [streams_of(0), streams_of(1)]
    a = rows.double().numpy()

    def pad(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 40 - x.shape[1])))

    # What the design fixes: the embeddings' mixture before the first block, and, after the last,
    # what the heads read. a_1 weighs both.
    first, last = (sum(a[0, k] * pad(streams[k][b]) for k in range(2)) for b in (0, 2))
    for k, width in enumerate((32, 40)):
        into = (streams[k][0] - a[0, k] * first[:, :width]) / (1 - a[0, k])
        linear = hybrid.model.projectors.project_in[0][k]
        assert_is_ridge(linear, first, into, 1e-3, r2[0, -1, k])
        out_of = (last - a[1, k] * pad(streams[k][2])) / (1 - a[1, k])
        linear = hybrid.model.projectors.project_out[1][k]
        assert_is_ridge(linear, streams[k][2], out_of, 1e-3, r2[2, k, -1])


def test_principal_components_are_those_of_the_covariance():
    z = np.random.default_rng(0).normal(size=(500, 7)) @ np.diag([5, 4, 3, 2, 1, 0.5, 0.1]) + 3
    one = np.concatenate([z, np.ones((500, 1))], 1)
    rows = principal_components(torch.from_numpy(one.T @ one), 3).numpy()
    scores = one @ rows.T
    _, sizes, directions = np.linalg.svd(z - z.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(rows[:, :-1]), np.abs(directions[:3]), atol=1e-8)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-8)
    np.testing.assert_allclose((scores**2).sum(0), sizes[:3] ** 2)


def test_equal_components_are_translated_by_the_identity():
    hybrid = build([member(1), member(1)], num_blocks=2)
    fits = fit_projectors(hybrid, BATCHES, ridge=1e-9)
    assert min(fit.r2 for fit in fits) > 1 - 1e-6
    for boundary, _, _, linear in hybrid.model.translators.pairs():
        # The embeddings lie in all 40 dimensions, and so do the streams after them.
        assert (linear.weight - torch.eye(40)).abs().max() < 1e-3, boundary
        assert linear.bias.abs().max() < 1e-3
    hybrid.set_mixture(one_hot(2, 2, [0, 1]))
    with torch.no_grad():
        truth = member(1)(ids_for()).logits
        assert (hybrid(ids_for()).logits - truth).abs().max() < 1e-2


def test_too_little_text_is_refused_and_padding_is_not_text():
    hybrid = build(num_blocks=2)
    before = [p.clone() for p in hybrid.projector_parameters()]
    ids = ids_for(2, 60)
    mask = torch.ones_like(ids)
    mask[:, :30] = 0
    with pytest.raises(ValueError, match="saw 60 tokens for 73 unknowns"):
        fit_projectors(hybrid, [{"input_ids": ids, "attention_mask": mask}])
    with pytest.raises(ValueError, match="saw 0 tokens"):
        fit_projectors(hybrid, [])
    assert all(
        torch.equal(a, b) for a, b in zip(before, hybrid.projector_parameters(), strict=True)
    )
    assert not hybrid.training


@pytest.fixture(scope="module")
def tellers():
    """A trained storyteller, twice: once its hidden dimensions are shuffled. And its stories."""
    one = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    other = shuffled(one, torch.randperm(64, generator=torch.Generator().manual_seed(1)))
    torch.manual_seed(0)
    start = torch.ones(24, 1, dtype=torch.long)
    ids = one.generate(start, max_new_tokens=64, min_new_tokens=64, do_sample=True)
    return one, other, ids


@torch.no_grad()
def shuffled(model, order):
    """The same function with its residual stream in another order."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.copy_(parameter[order])
        else:
            parameter.copy_(parameter[:, order])
    return model


@pytest.mark.parametrize(("mixing", "share"), [("shared", 0.5), ("streams", 0.1)])
def test_closed_form_lets_trained_components_understand_each_other(mixing, share, tellers):
    one, other, ids = tellers
    fitted, unseen = ids[:16], ids[16:]

    @torch.no_grad()
    def loss_of(model) -> float:
        return model(unseen, labels=unseen).loss.item()

    assert loss_of(other) == pytest.approx(loss_of(one), abs=1e-5)
    settings = {"loyalty": 0.0} if mixing == "streams" else {}
    hybrid = build([one, other], num_blocks=2, mixing=mixing, stirred=False, **settings)
    random = loss_of(hybrid)
    fit_projectors(hybrid, [{"input_ids": fitted}])
    # The components are one function, so a perfect translation has their loss. `shared` also has
    # to fit both of them into one stream, and keeps more of what random projectors cost.
    assert random > loss_of(one) + 1
    assert loss_of(hybrid) < loss_of(one) + share * (random - loss_of(one))
