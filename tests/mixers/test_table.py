"""The table of mixers: names, mending errors, and the sizes that mad-lab gives its layers."""

import pytest

from manticore.mixers.table import TABLE, mixer_spec
from tests.mixers.small import names_with_a_module

# Trainable numbers of mad-lab's layers at width 128, measured on its own code. Linear attention
# has its learned map only where asked for; the original's Hyena trains the positions that its
# filters read. Missing: the mixture of experts, whose down projection mixes the experts there.
MAD_LAB_PARAMETERS = [
    ("attention", {}, 66_048),
    ("mh-attention", {}, 66_048),
    ("sliding-attention", {}, 66_048),
    ("mh-sliding-attention", {}, 66_048),
    ("linear-attention", {"feature_map": "quadratic", "compat": "mad-lab"}, 131_584),
    ("mh-linear-attention", {"feature_map": "quadratic", "compat": "mad-lab"}, 65_824),
    ("gated-linear-attention", {}, 86_272),
    ("mh-gated-linear-attention", {}, 86_160),
    ("hyena", {"max_length": 128, "compat": "mad-lab"}, 124_348),
    ("mh-hyena", {"max_length": 128, "compat": "mad-lab"}, 30_862),
    ("hyena-experts", {"max_length": 128, "compat": "mad-lab"}, 57_464),
    ("mlp", {}, 131_072),
    ("swiglu", {}, 135_168),
    ("mamba", {}, 107_264),
    ("rwkv5", {}, 82_944),
    ("rwkv6", {}, 140_544),
    ("rwkv5-channel", {}, 147_712),
    ("rwkv6-channel", {}, 147_712),
]

# What the iso-state rule counts: 4,096 in a model of two blocks, or four of Mamba
# (Poli et al., 2024, arXiv:2403.17844). The last three are the ones that do not meet it.
MIXING_STATES = {
    "mh-gated-linear-attention": 2048,
    "retention": 2048,
    "deltanet": 2048,
    "gated-deltanet": 2048,
    "hyena": 2048,
    "mh-hyena": 2048,
    "hyena-experts": 2048,
    "rwkv5": 2048,
    "rwkv6": 2048,
    "rwkv7": 2048,
    "mamba": 1024,
    "mh-linear-attention": 1024,
    "linear-attention": 16_384,
    "gated-linear-attention": 16_384,
}


def built(names):
    return [name for name in names if name in names_with_a_module()]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [row for row in MAD_LAB_PARAMETERS if row[0] in names_with_a_module()],
)
def test_parameters_are_as_many_as_in_mad_lab(name, settings, expected):
    assert mixer_spec(name, d_model=128, **settings).num_parameters() == expected


@pytest.mark.parametrize("name", built(MIXING_STATES))
def test_mixing_states_follow_the_iso_state_rule(name):
    assert mixer_spec(name, d_model=128).mixing_state_size(128) == MIXING_STATES[name]


def test_a_cache_grows_to_the_length_or_to_the_window():
    assert mixer_spec("mh-attention", d_model=128).state_size(1000) == 2 * 128 * 1000
    # A window of 33 positions is the own token and 32 kept ones.
    assert mixer_spec("mh-sliding-attention", d_model=128).state_size(1000) == 2 * 128 * 32


@pytest.mark.parametrize("name", built(TABLE))
def test_the_plain_name_and_the_mh_name_differ_in_heads_only(name):
    if not name.startswith("mh-") or name == "mh-hyena":
        return
    plain, many = (mixer_spec(each).settings() for each in (name.removeprefix("mh-"), name))
    assert {key for key in plain if plain[key] != many[key]} == {"n_heads"}
    assert plain["n_heads"] == 1


def test_an_unknown_name_lists_the_known_ones_and_the_closest():
    with pytest.raises(ValueError, match=r"Did you mean 'mamba2'\? Known: attention, "):
        mixer_spec("mamba-2")


def test_an_unknown_setting_lists_the_known_ones_and_the_closest():
    with pytest.raises(ValueError, match=r"no setting 'n_head'\. Did you mean 'n_heads'\?"):
        mixer_spec("attention", n_head=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_state": "x"}, "d_state='x' is not a whole number"),
        ({"d_state": 2.5}, "d_state=2.5 is not a whole number"),
        ({"expand": True}, "expand=True is not a whole number"),
        ({"d_model": 0}, "d_model=0: a width is at least 1"),
    ],
)
def test_a_setting_of_another_kind_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        mixer_spec("mamba", **settings)


def test_a_whole_number_does_for_a_fraction():
    assert mixer_spec("attention", rotary_fraction=0).num_parameters() == 66_048


def test_a_setting_of_the_user_wins_over_the_one_of_the_name():
    assert mixer_spec("mh-attention", n_heads=2).settings()["n_heads"] == 2
