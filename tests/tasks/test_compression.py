"""Compression, against what it says and published figures."""

import numpy as np

from manticore.tasks.mad import chance, make_data, model_kind
from tests.tasks.statistics import assert_mean, assert_share, assert_uniform

NOISE = {"vocab_size": 24, "noise_vocab_size": 8, "frac_noise": 0.25}


def test_targets_are_the_inputs_and_the_last_token_ends_them():
    inputs, targets = make_data("compression", 3000, 0)
    assert inputs.shape == (3000, 32)
    assert (inputs == targets).all()
    assert ((inputs == 15) == (np.arange(32) == 31)).all()
    assert_uniform(np.bincount(inputs[:, :-1].ravel(), minlength=15))
    different = [len(set(row)) for row in inputs.tolist()]
    assert_mean(different, 15 * (1 - (14 / 15) ** 31) + 1)
    assert abs(np.mean(different) - 14.2) < 0.1


def test_inputs_and_targets_are_separate_arrays():
    inputs, targets = make_data("compression", 4, 0)
    inputs[:] = 0
    assert (targets[:, -1] == 15).all()


def test_we_leave_noise_out_of_the_targets_and_mad_lab_scores_it():
    inputs, targets = make_data("compression", 2000, 0, **NOISE)
    noise = (inputs >= 15) & (inputs < 23)
    assert (inputs[:, -1] == 23).all()
    assert (targets == np.where(noise, -100, inputs)).all()
    assert_share(noise.sum(), 31 * 2000, 0.25)
    assert_uniform(np.bincount(inputs[noise] - 15, minlength=8))
    inputs, targets = make_data("compression", 100, 0, compat="mad-lab", **NOISE)
    assert ((inputs >= 15) & (inputs < 23)).any()
    assert (inputs == targets).all()


def test_the_model_is_an_autoencoder():
    assert model_kind("compression") == "autoencoder"
    assert model_kind("selective-copying") == "lm"


def test_chance_knows_the_last_token():
    _, targets = make_data("compression", 3000, 0, "test")
    guess = np.random.default_rng(0).integers(15, size=targets.shape)
    guess[:, -1] = 15
    assert_share((guess == targets).sum(), targets.size, chance("compression"))
