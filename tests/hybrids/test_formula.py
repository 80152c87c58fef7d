"""A hybrid with a random mixture equals the design's formulas, written out in NumPy.

Blocks are black boxes here: for each, a stock Hugging Face model with all other layers deleted.
Everything between the blocks is NumPy in float64, from the hybrid's saved tensors. K = 3
components of widths 24, 32, 40; B = 2 blocks; weights a, loyalties s.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.hybrids.pairs import build, ids_for, largest_difference, stir
from tests.models.tiny import tiny

CLOSE = 1e-5  # float32 against float64
FAMILIES = (("gpt2", 1), ("gpt_neox", 0), ("mamba", 2))
LAYERS = {"gpt2": ("h", "ln_f"), "gpt_neox": ("layers", "final_layer_norm"),
          "mamba": ("layers", "norm_f")}  # fmt: skip
PARTITION = [[[0, 1], [1, 3]], [[0, 3], [3, 4]], [[0, 2], [2, 5]]]
WIDTHS = [24, 32, 40]
VOCAB = 61
B, K, D = 2, 3, 40

SOFT = [[0.5, 0.3, 0.2], [0.15, 0.25, 0.6]]
ZEROS = [[0.0, 0.45, 0.55], [0.7, 0.3, 0.0]]
MIXTURES = {
    "soft": (SOFT, None, None),
    "own ends": (SOFT, [0.1, 0.6, 0.3], [0.5, 0.2, 0.3]),
    "skipped branches": (ZEROS, None, None),
    # An embedding, a block and a head that are off while their neighbours are on.
    "skipped everything": (ZEROS, [0.8, 0.0, 0.2], [0.0, 0.4, 0.6]),
    "switching path": ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], None, None),
}


def component(k: int):
    family, variant = FAMILIES[k]
    return tiny(family, seed=k, variant=variant)


def block_alone(k: int, block: int) -> nn.Module:
    """A stock model that holds the layers of one block and nothing else."""
    base = component(k).base_model
    layers, norm = LAYERS[FAMILIES[k][0]]
    first, last = PARTITION[k][block]
    setattr(base, layers, getattr(base, layers)[first:last])
    base.config.num_hidden_layers = last - first
    if block < B - 1:
        setattr(base, norm, nn.Identity())
    if hasattr(base, "wpe"):
        nn.init.zeros_(base.wpe.weight)
    return base


@torch.no_grad()
def run_block(k: int, block: int, x: np.ndarray) -> np.ndarray:
    hidden = torch.from_numpy(x).float()
    output = block_alone(k, block)(inputs_embeds=hidden, use_cache=False)
    return output.last_hidden_state.double().numpy()


class Formula:
    """DESIGN, "The hybrid, exactly", line by line."""

    def __init__(self, hybrid, mixture) -> None:
        self.tensors = {n: t.double().numpy() for n, t in hybrid.state_dict().items()}
        a, beta, gamma = (None if row is None else np.array(row) for row in mixture)
        ends = a[[0]] if beta is None else beta[None]
        self.a = np.concatenate([ends, a])  # a[b] is a_b, a[0] is beta
        self.gamma = gamma
        self.stock = [component(k) for k in range(K)]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def embed(self, k: int, ids: np.ndarray) -> np.ndarray:
        return self.stock[k].get_input_embeddings().weight.detach().double().numpy()[ids]

    def positions(self, k: int, length: int) -> np.ndarray | float:
        base = self.stock[k].base_model
        return base.wpe.weight.detach().double().numpy()[:length] if hasattr(base, "wpe") else 0.0

    def head(self, k: int, x: np.ndarray) -> np.ndarray:
        return x @ self.stock[k].get_output_embeddings().weight.detach().double().numpy()[:VOCAB].T


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log(weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(weights)


def streams_logits(f: Formula, ids: np.ndarray, loyalty: list[float]) -> np.ndarray:
    def gather(b: int, k: int, y: list) -> np.ndarray:
        # x_bk = sum_j w_bkj T_bjk(y_{b-1,j}),  w_bk = softmax_j(log a_{b-1,j} + s_b [j = k])
        w = softmax(log(f.a[b]) + loyalty[b] * (np.arange(K) == k))
        name = f"model.translators.boundaries.{b}.{{}}_to_{k}".format
        return sum(w[j] * (y[j] if j == k else f.linear(name(j), y[j])) for j in range(K) if w[j])

    nothing = [np.zeros((*ids.shape, width)) for width in WIDTHS]
    y = [f.embed(k, ids) + f.positions(k, ids.shape[1]) for k in range(K)]
    for b in range(B):
        x = [gather(b, k, y) for k in range(K)]
        y = [run_block(k, b, x[k]) if f.a[b + 1, k] else nothing[k] for k in range(K)]
    gamma = f.a[B] if f.gamma is None else f.gamma
    g = softmax(log(gamma) + f.linear("model.router", np.concatenate(y, axis=-1)))
    return sum(g[..., [k]] * f.head(k, gather(B, k, y)) for k in range(K) if gamma[k])


def shared_logits(f: Formula, ids: np.ndarray) -> np.ndarray:
    def pad(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros((*x.shape[:-1], D - x.shape[-1]))], axis=-1)

    h = sum(f.a[0, k] * pad(f.embed(k, ids)) for k in range(K))
    entered = set()
    for b in range(B):
        mixed = 0.0
        for k in np.flatnonzero(f.a[b + 1]).tolist():
            a = f.a[b + 1, k]
            read = f.linear(f"model.projectors.project_in.{b}.{k}", h)
            x = (1 - a) * read + a * h[..., : WIDTHS[k]]
            x = x if k in entered else x + f.positions(k, ids.shape[1])
            entered.add(k)
            y = run_block(k, b, x)
            written = f.linear(f"model.projectors.project_out.{b}.{k}", y)
            mixed = mixed + a * ((1 - a) * written + a * pad(y))
        h = mixed
    gamma = f.a[1] if f.gamma is None else f.gamma
    return sum(gamma[k] * f.head(k, h[..., : WIDTHS[k]]) for k in range(K) if gamma[k])


def hybrid_with(mixture, **options):
    hybrid = build([component(k) for k in range(K)], num_blocks=B, partition=PARTITION, **options)
    stir(hybrid, scale=0.2)
    blocks, embed, head = (None if row is None else torch.tensor(row) for row in mixture)
    hybrid.set_mixture(blocks, embed=embed, head=head)
    return hybrid


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("learn_loyalty", [False, True])
def test_streams_equal_the_formula(name, learn_loyalty):
    loyalty = [0.4, 2.0, 1.3]
    hybrid = hybrid_with(MIXTURES[name], loyalty=loyalty, learn_loyalty=learn_loyalty)
    ids = ids_for()
    expected = streams_logits(Formula(hybrid, MIXTURES[name]), ids.numpy(), loyalty)
    assert expected.std() > 0.3  # large enough that the tolerance is a sharp one
    with torch.no_grad():
        assert largest_difference(hybrid(ids).logits, torch.from_numpy(expected)) < CLOSE


@pytest.mark.parametrize("name", MIXTURES)
def test_shared_equals_the_formula(name):
    hybrid = hybrid_with(MIXTURES[name], mixing="shared")
    ids = ids_for()
    expected = shared_logits(Formula(hybrid, MIXTURES[name]), ids.numpy())
    assert expected.std() > 0.3
    with torch.no_grad():
        assert largest_difference(hybrid(ids).logits, torch.from_numpy(expected)) < CLOSE


@pytest.mark.parametrize("mixing", ["streams", "shared"])
def test_embeddings_given_instead_of_ids_change_nothing(mixing):
    hybrid, ids = hybrid_with(MIXTURES["own ends"], mixing=mixing), ids_for()
    with torch.no_grad():
        embeds = hybrid.model.embed(ids)
        assert largest_difference(hybrid(inputs_embeds=embeds).logits, hybrid(ids).logits) == 0


@pytest.mark.parametrize("mixing", ["streams", "shared"])
@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 4, 10])])
def test_kept_positions_are_those_of_all_logits(mixing, kept):
    hybrid, ids = hybrid_with(MIXTURES["own ends"], mixing=mixing), ids_for()
    index = slice(-kept, None) if isinstance(kept, int) else kept
    with torch.no_grad():
        logits = hybrid(ids, logits_to_keep=kept).logits
        assert largest_difference(logits, hybrid(ids).logits[:, index]) < CLOSE


def test_loss_is_the_mean_negative_log_likelihood_of_the_next_token():
    hybrid, ids = hybrid_with(MIXTURES["soft"]), ids_for()
    labels = ids.clone()
    labels[0, :4] = -100
    with torch.no_grad():
        output = hybrid(ids, labels=labels)
    log_p = output.logits.double().log_softmax(-1)[:, :-1]
    scored = [(b, t) for b in range(2) for t in range(10) if labels[b, t + 1] != -100]
    nats = [-log_p[b, t, labels[b, t + 1]].item() for b, t in scored]
    assert output.loss.item() == pytest.approx(np.mean(nats), abs=CLOSE)
