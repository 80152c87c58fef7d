"""What every mixer of the table must do, whatever it is: the rows are in `small.py`."""

import copy
import itertools
import json
import pickle

import pytest
import torch
import torch.utils.checkpoint
from torch.func import functional_call, grad, stack_module_state, vmap

from manticore.mixers.table import TABLE, mixer_spec
from manticore.seeds import torch_generator
from tests.mixers.flop_count import FlopCount
from tests.mixers.small import SMALL, names_with_a_module, small_mixer, small_spec, tokens

NAMES = names_with_a_module()
# Two forms of one float32 sum add up to 257 terms in another order; relative to the largest
# output that costs a few units in the last place (1e-7), so this leaves room for the long sums.
TOLERANCE = 1e-5

every_mixer = pytest.mark.parametrize("name", NAMES)


def assert_close(found, expected, tolerance=TOLERANCE, what=""):
    assert found.shape == expected.shape, what
    error = (found.detach().double() - expected.detach().double()).abs()
    scale = expected.detach().double().abs().max().clamp(min=1) if expected.numel() else 1
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= tolerance * scale, (what, worst)


def assert_states_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert_close(found[name], expected[name], tolerance, name)


def in_pieces(mixer, x, cuts, padding_mask=None):
    state, outputs = None, []
    bounds = [0, *[cut for cut in cuts if cut < x.shape[1]], x.shape[1]]
    for start, end in itertools.pairwise(bounds):
        mask = None if padding_mask is None else padding_mask[:, start:end]
        y, state = mixer.prefill(x[:, start:end], state, mask)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def step_by_step(mixer, x, state=None):
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


@torch.no_grad()
@pytest.mark.parametrize("seq_len", [1, 63, 257])
@every_mixer
def test_pieces_and_steps_equal_one_forward_pass(name, seq_len):
    mixer = small_mixer(name)
    x = tokens(2, seq_len, mixer.spec.d_model)
    expected = mixer(x)
    pieces, state_of_pieces = in_pieces(mixer, x, [1, 3, 20, 150])
    steps, state_of_steps = step_by_step(mixer, x)
    assert expected.shape == x.shape
    assert_close(pieces, expected, what="pieces")
    assert_close(steps, expected, what="steps")
    assert_states_close(state_of_steps, state_of_pieces)
    assert_states_close(mixer.prefill(x)[1], state_of_pieces)


@torch.no_grad()
@every_mixer
def test_the_future_and_the_other_rows_change_nothing(name):
    mixer = small_mixer(name)
    x = tokens(2, 63, mixer.spec.d_model)
    changed = x.clone()
    changed[0, 40:] = tokens(1, 23, mixer.spec.d_model, seed=1)[0]
    before, after = mixer(x), mixer(changed)
    assert_close(after[0, :40], before[0, :40])
    assert_close(after[1], before[1])
    assert (after[0, 40] - before[0, 40]).abs().max() > 1e-3  # and the change does arrive


@torch.no_grad()
@every_mixer
def test_a_token_mixer_sees_the_token_before_and_a_plain_channel_mixer_does_not(name):
    mixer = small_mixer(name)
    x = tokens(1, 9, mixer.spec.d_model)
    changed = x.clone()
    changed[:, 3] += 1
    moved = (mixer(changed) - mixer(x)).abs().amax(dim=-1)[0]
    sees_the_past = mixer.spec.kind == "token" or mixer.state_size(9) > 0
    assert bool((moved[4] > 1e-6).item()) == sees_the_past


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@every_mixer
def test_padding_changes_no_real_position_and_nothing_that_follows(name, side):
    mixer = small_mixer(name)
    d_model, real, padding = mixer.spec.d_model, 21, 10
    x = tokens(3, real + padding, d_model)
    padding_mask = torch.ones(3, real + padding, dtype=torch.bool)
    rows = [slice(0, real + padding), slice(padding, None), slice(3, None)]
    if side == "right":
        rows = [slice(0, real + padding), slice(0, real), slice(0, real + padding - 3)]
    for row, kept in enumerate(rows):
        padding_mask[row] = False
        padding_mask[row, kept] = True
    whole = mixer(x, padding_mask)
    # The cuts leave a piece of the second row with nothing but padding.
    cut, state = in_pieces(mixer, x, [8, 21, 28], padding_mask)
    after, _ = step_by_step(mixer, tokens(3, 8, d_model, seed=1), state)
    assert whole.isfinite().all()
    for row, kept in enumerate(rows):
        alone, alone_state = mixer.prefill(x[row : row + 1, kept])
        assert_close(whole[row, kept], alone[0], what=f"row {row}")
        assert_close(cut[row, kept], alone[0], what=f"row {row} in pieces")
        following = tokens(3, 8, d_model, seed=1)[row : row + 1]
        alone_after, _ = step_by_step(mixer, following, alone_state)
        assert_close(after[row], alone_after[0], what=f"steps after row {row}")


@every_mixer
def test_padding_gives_finite_gradients_and_none_to_itself(name):
    mixer = small_mixer(name)
    x = tokens(2, 9, mixer.spec.d_model).requires_grad_()
    padding_mask = torch.arange(9).expand(2, 9) >= torch.tensor([[4], [0]])
    mixer(x, padding_mask)[padding_mask].square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    assert (x.grad[0, :4] == 0).all()


@every_mixer
def test_gradients_equal_central_differences_in_float64(name):
    mixer = small_mixer(name).double()
    parameters = dict(mixer.named_parameters())
    inputs = {"x": tokens(2, 20, mixer.spec.d_model).double(), **parameters}
    inputs = {key: value.detach().requires_grad_() for key, value in inputs.items()}
    weights = tokens(2, 20, mixer.spec.d_model, seed=1).double()

    def loss(x, **parameters):
        return (functional_call(mixer, parameters, (x,)) * weights).sum()

    value = loss(**inputs)
    assert value.dtype == torch.float64
    gradients = torch.autograd.grad(value, list(inputs.values()))
    generator, step = torch_generator(0, "directions"), 1e-5
    for (key, at), gradient in zip(inputs.items(), gradients, strict=True):
        direction = torch.randn(at.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (
                loss(**{**inputs, key: at + sign * step * direction}).item() for sign in (1, -1)
            )
        found = (up - down) / (2 * step)
        expected = (gradient * direction).sum().item()
        # The difference itself is right to step^2 and to 1e-16 |loss| / step.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), key


@every_mixer
def test_every_weight_gets_a_gradient_through_outputs(name):
    mixer = small_mixer(name)
    x = tokens(2, 33, mixer.spec.d_model)
    (mixer(x) * tokens(2, 33, mixer.spec.d_model, seed=1)).sum().backward()
    for key, parameter in mixer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@torch.no_grad()
@every_mixer
def test_float64_is_computed_in_float64(name):
    mixer = small_mixer(name).double()
    x = tokens(1, 33, mixer.spec.d_model).double()
    y = mixer(x)
    assert y.dtype == torch.float64
    # Form against form: float32 anywhere inside would leave 1e-7.
    assert_close(step_by_step(mixer, x)[0], y, 1e-11)


@pytest.mark.parametrize("way", ["weights", "autocast"])
@every_mixer
def test_bfloat16_stays_near_float32(name, way):
    mixer = small_mixer(name).bfloat16().float()
    x = tokens(2, 63, mixer.spec.d_model).bfloat16()
    with torch.no_grad():
        expected = mixer(x.float())
    if way == "weights":
        found = mixer.bfloat16()(x)
        assert found.dtype == torch.bfloat16
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = mixer(x.float())
    found.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    # bfloat16 rounds to 1 in 256, a handful of times between input and output.
    error = (found.detach().float() - expected).square().mean().sqrt()
    assert error < 0.03 * expected.square().mean().sqrt()


@torch.no_grad()
@every_mixer
def test_bfloat16_steps_and_pieces_run_and_recurrent_states_stay_wide(name):
    mixer = small_mixer(name).bfloat16()
    x = tokens(2, 40, mixer.spec.d_model).bfloat16()
    pieces, state = in_pieces(mixer, x, [1, 20])
    steps, _ = step_by_step(mixer, x)
    assert pieces.dtype == steps.dtype == torch.bfloat16
    scale = pieces.float().square().mean().sqrt()
    assert (steps.float() - pieces.float()).square().mean().sqrt() < 0.03 * scale
    # States that sum up over time are float32; caches and convolution tails hold inputs as given.
    assert all(
        value.dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool)
        for value in state.values()
    )


@every_mixer
def test_stacked_models_under_vmap_equal_separate_ones(name):
    mixers = [small_mixer(name, seed) for seed in range(3)]
    stacked, buffers = stack_module_state(mixers)
    x = torch.stack([tokens(2, 33, mixers[0].spec.d_model, seed) for seed in range(3)])

    def loss(parameters, buffers, x):
        y = functional_call(mixers[0], (parameters, buffers), (x,))
        return (y * y).sum(), y

    gradients, outputs = vmap(grad(loss, has_aux=True))(stacked, buffers, x)
    for i, mixer in enumerate(mixers):
        y = mixer(x[i])
        assert_close(outputs[i], y)
        (y * y).sum().backward()
        for key, parameter in mixer.named_parameters():
            assert_close(gradients[key][i], parameter.grad, what=key)


@torch.no_grad()
@every_mixer
def test_stacked_models_decode_under_vmap(name):
    mixers = [small_mixer(name, seed) for seed in range(2)]
    stacked, buffers = stack_module_state(mixers)
    x = torch.stack([tokens(2, 12, mixers[0].spec.d_model, seed) for seed in range(2)])
    padding_mask = torch.arange(10).expand(2, 10) >= torch.tensor([[4], [0]])

    class Decode(torch.nn.Module):
        def __init__(self, mixer):
            super().__init__()
            self.mixer = mixer

        def forward(self, x):
            y, state = self.mixer.prefill(x[:, :10], None, padding_mask)
            return torch.cat([y, step_by_step(self.mixer, x[:, 10:], state)[0]], dim=1)

    decode = Decode(mixers[0])

    def run(parameters, buffers, x):
        named = {f"mixer.{k}": v for k, v in {**parameters, **buffers}.items()}
        return functional_call(decode, named, (x,))

    found = vmap(run)(stacked, buffers, x)
    for i, mixer in enumerate(mixers):
        assert_close(found[i, :, 4:], Decode(mixer)(x[i])[:, 4:])


@every_mixer
def test_checkpointing_changes_no_gradient(name):
    mixer = small_mixer(name)
    x = tokens(2, 20, mixer.spec.d_model)
    mixer(x).square().sum().backward()
    expected = {key: p.grad.clone() for key, p in mixer.named_parameters()}
    mixer.zero_grad()
    again = torch.utils.checkpoint.checkpoint(mixer, x, use_reentrant=False)
    again.square().sum().backward()
    for key, parameter in mixer.named_parameters():
        assert torch.equal(parameter.grad, expected[key]), key


@every_mixer
def test_a_seed_fixes_the_weights_and_touches_no_other_randomness(name):
    spec = small_spec(name)
    before = torch.get_rng_state()
    one, same, other = (spec.build(torch_generator(seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert spec.build().state_dict().keys() == one.keys()


@every_mixer
def test_the_parameter_formula_equals_the_built_module(name):
    for spec in (small_spec(name), mixer_spec(name)):
        assert sum(p.numel() for p in spec.build().parameters()) == spec.num_parameters()


@torch.no_grad()
@pytest.mark.parametrize("seq_len", [1, 5, 40])
@every_mixer
def test_the_state_formula_equals_the_numbers_kept(name, seq_len):
    mixer = small_mixer(name)
    _, state = mixer.prefill(tokens(3, seq_len, mixer.spec.d_model))
    assert all(value.shape[0] == 3 for value in state.values())
    # Counters and masks, which are not floats, are bookkeeping and not memory of the input.
    kept = sum(value[0].numel() for value in state.values() if value.is_floating_point())
    assert mixer.state_size(seq_len) == kept
    # The literature counts a filter by the network behind it, whatever the length is.
    assert 0 <= mixer.spec.mixing_state_size(seq_len) <= kept or "hyena" in name


# A batch of tokens goes to all experts at once, so that stacked models can; the formula counts
# the chosen ones. Long convolutions are counted as Fourier transforms, which `step` does not use.
_FORWARD_COUNT = {"hyena", "mh-hyena", "hyena-experts"}
_DENSE_EXPERTS = {"moe-mlp", "hyena-experts"}


@torch.no_grad()
@every_mixer
def test_the_flop_formula_lies_between_the_products_and_all_operations(name):
    # Formulas count products and the scan, and leave out norms, activations and small sums.
    mixer = small_spec(name).build(torch_generator(0))
    seq_len = 12
    x = tokens(1, seq_len, mixer.spec.d_model)
    with FlopCount() as count:
        if name in _FORWARD_COUNT:
            mixer(x)
        else:
            step_by_step(mixer, x)
    formula = mixer.flops_per_token(seq_len) * seq_len
    # A mean over positions may round down, by less than one operation per position.
    assert formula <= count.products + count.elementwise
    if name not in _DENSE_EXPERTS:
        assert formula + seq_len >= count.products


@torch.no_grad()
@every_mixer
def test_states_and_inputs_are_never_written_into(name):
    mixer = small_mixer(name)
    x = tokens(2, 13, mixer.spec.d_model)
    _, state = mixer.prefill(x[:, :9])
    kept, kept_x = {key: value.clone() for key, value in state.items()}, x.clone()
    first, _ = step_by_step(mixer, x[:, 9:], state)
    mixer.prefill(x[:, 9:], state)
    second, _ = step_by_step(mixer, x[:, 9:], state)
    assert torch.equal(first, second)
    assert torch.equal(x, kept_x)
    assert all(torch.equal(state[key], kept[key]) for key in kept)


@torch.no_grad()
@every_mixer
def test_copies_and_pickles_give_the_same_numbers_and_share_no_memory(name):
    mixer = small_mixer(name)
    x = tokens(1, 9, mixer.spec.d_model)
    expected = mixer(x)
    copies = [copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))]
    for parameter in mixer.parameters():
        parameter.zero_()
    for twin in copies:
        assert twin.spec == mixer.spec
        assert torch.equal(twin(x), expected)


@every_mixer
def test_settings_are_plain_data_that_give_the_specification_back(name):
    spec = small_spec(name)
    settings = json.loads(json.dumps(spec.settings()))
    assert mixer_spec(name, **settings) == spec
    assert hash(spec) == hash(mixer_spec(name, **settings))


def test_every_name_of_the_table_has_a_module_and_a_row():
    assert list(TABLE) == NAMES
    assert list(TABLE) == list(SMALL)
