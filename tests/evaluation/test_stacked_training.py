"""Trials that train as one stacked model end as they do alone; a trial's end is no other's."""

import dataclasses
import math
from itertools import pairwise

import numpy
import pytest
import torch
from torch import Tensor, nn

from manticore.evaluation.mad import stacked
from manticore.evaluation.mad.stack import Stack
from manticore.evaluation.mad.stacked_adamw import StackedAdamW
from manticore.evaluation.mad.training import train_points
from manticore.evaluation.mad.training_data import BatchOrder
from manticore.evaluation.mad.training_loss import logits_of
from manticore.evaluation.mad.training_types import Point, SplitArrays, TrainSettings
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.mixer_autoencoder import MixerAutoEncoder
from manticore.models.modeling_mixer_lm import MixerForCausalLM

VOCAB, LENGTH = 11, 16
SHORT = TrainSettings(
    steps=20, batch_size=8, eval_every=20, stop_accuracy=2, grad_clip=0.3, warmup=3
)
POINTS = [
    Point(rate, decay, seed) for rate in (1e-3, 5e-3) for decay in (0.0, 0.1) for seed in (0, 1)
]
STACKS = {
    "attention": ({"mixer": "mh-attention", "n_heads": 4}, "swiglu"),
    "gated linear attention": ({"mixer": "mh-gated-linear-attention", "n_heads": 4}, "rwkv7"),
    "gated deltanet": ({"mixer": "gated-deltanet", "n_heads": 4}, "rwkv5-channel"),
    "mamba": ("mamba",),
    "hyena": ({"mixer": "hyena", "max_length": LENGTH}, "moe-mlp"),
}


def split(examples: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Repeat the token before: learnable in a few steps; the first position is not scored."""
    inputs = numpy.random.default_rng(seed).integers(0, VOCAB, (examples, LENGTH))
    targets = numpy.roll(inputs, 1, axis=1)
    targets[:, 0] = -100
    return inputs, targets


SPLITS = SplitArrays(train=split(50, 0), valid=split(20, 1), test=split(20, 2))


def build(layers, model_class=MixerForCausalLM):
    config = MixerLMConfig(layers=list(layers), d_model=32, vocab_size=VOCAB)
    return lambda generator: model_class.from_generator(config, generator)


class Shift(nn.Module):
    """A module of one's own: no Hugging Face, plain logits, a buffer that the seed draws."""

    def __init__(self, generator: torch.Generator, scale: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, 16, generator=generator))
        self.out = nn.Parameter(torch.randn(VOCAB, 16, generator=generator))
        self.bias = nn.Parameter(torch.zeros(VOCAB))
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.rand(16, generator=generator) * scale)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table[ids] * self.mask
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        return before @ self.out.t() + self.bias


def both(build_model, settings=SHORT, points=POINTS, splits=SPLITS):
    return [
        train_points(build_model, points, splits, settings, engine=engine, keep_weights=True)
        for engine in ("one-by-one", "stacked")
    ]


def assert_equal_trials(alone, together, weights: float = 1e-4, losses: float = 1e-4) -> None:
    for one, other in zip(alone, together, strict=True):
        assert one.point == other.point
        assert (one.steps, one.best_step, one.stopped) == (
            other.steps,
            other.best_step,
            other.stopped,
        )
        for name, weight in one.weights.items():
            assert (weight - other.weights[name]).abs().max() < weights, name
        for mine, theirs in ((one.valid, other.valid), (one.test, other.test)):
            assert mine.loss == pytest.approx(theirs.loss, abs=losses)
            assert mine.scored == theirs.scored
        for mine, theirs in zip(one.curve, other.curve, strict=True):
            assert mine.train_loss == pytest.approx(theirs.train_loss, abs=losses)


@pytest.mark.parametrize("name", STACKS)
def test_weights_after_twenty_steps_equal_separate_runs(name: str) -> None:
    alone, together = both(build(STACKS[name]))
    assert_equal_trials(alone, together)
    assert alone[0].weights["lm_head.weight"].std() > 0
    distinct = {round(outcome.test.loss, 6) for outcome in together}
    assert len(distinct) == len(POINTS)  # no trial got another's rate, decay or seed


def test_the_autoencoder_trains_stacked_as_it_does_alone() -> None:
    alone, together = both(build(STACKS["attention"], MixerAutoEncoder), points=POINTS[:3])
    assert_equal_trials(alone, together)


@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("grad_clip", [0.0, 0.5])
def test_a_module_of_ones_own_trains_stacked_as_it_does_alone(decay: str, grad_clip: float) -> None:
    settings = dataclasses.replace(SHORT, decay=decay, grad_clip=grad_clip, schedule="constant")
    alone, together = both(Shift, settings)
    assert_equal_trials(alone, together)
    unused = [outcome.weights["unused"] for outcome in together]
    # A weight without a part in the loss has no gradient; separate AdamW then leaves it alone.
    assert all(torch.equal(weight, torch.ones(3)) for weight in unused)


def test_trials_that_end_leave_the_others_as_they_are() -> None:
    settings = dataclasses.replace(
        SHORT, steps=60, eval_every=5, patience=2, stop_accuracy=0.9, grad_clip=0.0
    )
    points = [Point(rate, 0.0, seed) for rate in (1e-9, 3e-2, 0.1, 1e-2) for seed in (0, 1)]
    alone, together = both(Shift, settings, points)
    assert_equal_trials(alone, together)
    reasons = {outcome.stopped for outcome in together}
    assert {"accuracy"} < reasons  # some ended early, others for another reason or not at all
    assert len({outcome.steps for outcome in together}) > 2


def test_a_trial_that_diverges_ends_alone_and_is_an_outcome() -> None:
    settings = dataclasses.replace(SHORT, eval_every=5, grad_clip=0.0, warmup=0)
    points = [Point(5e-3, 0.0, 0), Point(1e30, 0.0, 0), Point(1e-3, 0.1, 1)]
    for outcomes in both(Shift, settings, points):
        good, bad, other = outcomes
        assert bad.diverged
        assert bad.stopped == "diverged"
        assert bad.steps <= 5
        assert (bad.valid, bad.test, bad.best_step) == (None, None, None)
        assert not good.diverged
        assert not other.diverged
        assert math.isfinite(other.test.loss)
    alone, together = both(Shift, settings, points)
    assert alone[1].steps == together[1].steps
    assert_equal_trials([alone[0], alone[2]], [together[0], together[2]])


def test_the_test_split_is_measured_once_with_the_selected_weights(monkeypatch) -> None:
    marked = SplitArrays(train=SPLITS.train, valid=SPLITS.valid, test=split(7, 3))
    settings = dataclasses.replace(SHORT, eval_every=5, steps=20)
    looks: list[int] = []
    whole = stacked.measure
    monkeypatch.setattr(
        stacked, "measure", lambda s, data, x: looks.append(len(data[0])) or whole(s, data, x)
    )
    outcomes = train_points(Shift, POINTS, marked, settings, engine="stacked", keep_weights=True)
    assert looks == [20, 20, 20, 20, 7]
    for outcome in outcomes:
        best = min(outcome.curve, key=lambda measured: measured.valid_loss)
        assert (best.step, best.valid_loss) == (outcome.best_step, outcome.valid.loss)
        model = Shift(torch_generator_of(outcome.point))
        model.load_state_dict(outcome.weights, strict=False)
        logits = model(torch.from_numpy(marked.test[0]))
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(marked.test[1]).flatten()
        )
        assert outcome.test.loss == pytest.approx(loss.item(), abs=1e-5)


def torch_generator_of(point: Point) -> torch.Generator:
    from manticore.seeds import torch_generator

    return torch_generator(point.seed, "mad", "weights")


def test_progress_counts_every_step_once_even_of_trials_that_end_early() -> None:
    settings = dataclasses.replace(SHORT, steps=40, eval_every=5, stop_accuracy=0.5, grad_clip=0)
    for engine in ("one-by-one", "stacked"):
        done: list[int] = []
        train_points(Shift, POINTS, SPLITS, settings, done.append, engine=engine)
        assert sum(done) == len(POINTS) * 40


def test_stacked_adamw_takes_the_steps_of_torchs_own() -> None:
    settings = dataclasses.replace(SHORT, grad_clip=1.0, steps=7, warmup=0)
    points = [Point(1e-2, 0.1, 0), Point(3e-3, 0.0, 1)]
    stack = Stack(Shift, points, torch.device("cpu"))
    ours = StackedAdamW(stack, points, settings)
    rows = [nn.Parameter(row.clone()) for row in stack.weights]
    sizes = [p.numel() for p in stack.parameters.values()]
    generator = torch.Generator().manual_seed(0)
    parts = [[nn.Parameter(part.clone()) for part in row.detach().split(sizes)] for row in rows]
    matrices = [p.dim() > 1 for p in stack.parameters.values()]
    theirs = [
        torch.optim.AdamW(
            [
                {"params": [part], "weight_decay": point.weight_decay * is_matrix}
                for part, is_matrix in zip(own, matrices, strict=True)
            ],
            lr=point.lr,
            betas=settings.betas,
        )
        for own, point in zip(parts, points, strict=True)
    ]
    for step in range(7):
        gradients = torch.randn(stack.weights.shape, generator=generator) * (step + 0.01)
        for own, optimizer, gradient, point in zip(parts, theirs, gradients, points, strict=True):
            for part, piece in zip(own, gradient.split(sizes), strict=True):
                part.grad = piece.clone()
            nn.utils.clip_grad_norm_(own, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate(step, point.lr)
            optimizer.step()
        ours.step(gradients.clone(), step)
    for row, own in zip(stack.weights, parts, strict=True):
        # The same sums in another order: some units in the last place of weights near 1.
        assert (row - torch.cat([part.detach() for part in own])).abs().max() < 1e-6


def test_the_rate_follows_a_cosine_to_its_end_and_really_changes() -> None:
    settings = TrainSettings(steps=100, warmup=10, min_lr=1e-6)
    rates = [settings.learning_rate(step, 1e-3) for step in range(100)]
    assert rates[9] == rates[10] == 1e-3
    assert rates[55] == pytest.approx((1e-3 + 1e-6) / 2)
    assert rates[99] == pytest.approx(1e-6, abs=1e-6)
    assert all(a > b for a, b in pairwise(rates[10:]))
    constant = dataclasses.replace(settings, schedule="constant", warmup=0)
    assert {constant.learning_rate(step, 1e-3) for step in range(100)} == {1e-3}


@pytest.mark.parametrize(("examples", "batch_size"), [(50, 8), (5, 16), (8, 8)])
def test_every_epoch_takes_each_example_once(examples: int, batch_size: int) -> None:
    order = BatchOrder(examples, batch_size, seed=3)
    steps = examples * 2  # whole epochs, since batch_size * steps is a multiple of examples
    taken = numpy.concatenate([order.batch_at(step) for step in range(steps)])
    for epoch in taken.reshape(-1, examples):
        assert sorted(epoch) == list(range(examples))
    late = BatchOrder(examples, batch_size, seed=3).batch_at(steps - 1)
    assert (late == taken[-batch_size:]).all()
    assert (BatchOrder(examples, batch_size, seed=4).batch_at(0) != taken[:batch_size]).any()


class Dropping(Shift):
    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(ids), 0.5, self.training)


def test_a_model_that_cannot_be_mapped_is_known_beforehand() -> None:
    assert stacked.can_stack(Shift, SPLITS, "cpu")
    assert not stacked.can_stack(Dropping, SPLITS, "cpu")


def test_bfloat16_trains_in_both_engines_and_keeps_float32_weights() -> None:
    settings = dataclasses.replace(SHORT, precision="bfloat16")
    alone, together = both(build(STACKS["attention"]), settings, POINTS[:2])
    for one, other in zip(alone, together, strict=True):
        assert one.weights["lm_head.weight"].dtype == torch.float32
        # Eight bits of mantissa: sums in another order differ by some 2^-8 of a loss near 2.
        assert one.test.loss == pytest.approx(other.test.loss, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "Known: cosine, constant"),
        ({"decay": "some"}, "Known: matrices, all"),
        ({"steps": 0}, "must be at least 1"),
        ({"eval_every": -1}, "must not be negative"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)


def test_wrong_arrays_engines_and_models_are_named() -> None:
    inputs, targets = split(4, 0)
    with pytest.raises(ValueError, match="The valid split has inputs"):
        SplitArrays(train=(inputs, targets), valid=(inputs, targets[:2]), test=(inputs, targets))
    with pytest.raises(ValueError, match="Known: auto, one-by-one, stacked"):
        train_points(Shift, POINTS, SPLITS, SHORT, engine="all")
    with pytest.raises(ValueError, match=r"must return logits \(batch, seq, vocab\)"):
        logits_of(torch.zeros(3, 4))
