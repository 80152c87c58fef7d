"""Models built from mixers generate, pad, save, load and train as Hugging Face models do."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

import manticore
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.mixer_autoencoder import MixerAutoEncoder
from manticore.models.mixer_classifier import MixerForSequenceClassification
from manticore.models.modeling_mixer_lm import MixerForCausalLM
from manticore.seeds import torch_generator

LAYERS = (
    {"mixer": "mh-attention", "n_heads": 4},
    "swiglu",
    {"mixer": "deltanet", "n_heads": 4},
)
CLOSE = 1e-5  # a cached step and a full forward sum in different orders


def config(**settings: object) -> MixerLMConfig:
    shared = {"layers": LAYERS, "d_model": 32, "vocab_size": 23, "initializer_range": 0.5}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return MixerLMConfig(**{**shared, **special, **settings})


def language_model(seed: int = 0, **settings: object) -> MixerForCausalLM:
    generator = torch_generator(seed, "test")
    return MixerForCausalLM.from_generator(config(**settings), generator).eval()


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 23, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), 2)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        tokens[index, where], mask[index, where] = row, 1
    return tokens, mask


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def test_a_seed_fixes_every_weight_and_touches_no_other_randomness() -> None:
    torch.manual_seed(0)
    untouched = torch.get_rng_state()
    first, again, other = language_model(1), language_model(1), language_model(2)
    assert torch.equal(torch.get_rng_state(), untouched)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal"])
@torch.no_grad()
def test_a_cache_changes_nothing(positions: str) -> None:
    model = language_model(positions=positions, max_position_embeddings=64)
    tokens = ids(2, 17)
    expected = model(tokens, use_cache=False).logits
    assert expected.std() > 0.3  # large enough that the tolerance is a sharp test
    cache, outputs = None, []
    for piece in tokens.split([9, 1, 4, 1, 2], dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        outputs.append(output.logits)
    assert cache is not None
    assert cache.get_seq_length() == 17
    assert largest(torch.cat(outputs, dim=1), expected) < CLOSE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["none", "learned"])
@torch.no_grad()
def test_padding_changes_nothing(side: str, positions: str) -> None:
    model = language_model(positions=positions, max_position_embeddings=64)
    rows = [ids(1, length, seed=length)[0] for length in (3, 11, 1)]
    tokens, mask = padded(rows, side)
    logits = model(tokens, attention_mask=mask).logits
    for row, got, kept in zip(rows, logits, mask.bool(), strict=True):
        assert largest(got[kept], model(row[None]).logits[0]) < CLOSE


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"num_beams": 3, "do_sample": False, "num_return_sequences": 2}],
)
@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without(options: dict) -> None:
    model = language_model()
    tokens, mask = padded([ids(1, length, seed=length)[0] for length in (7, 3)], "left")
    shared = {"attention_mask": mask, "min_new_tokens": 12, "max_new_tokens": 12, **options}
    cached = model.generate(tokens, use_cache=True, **shared)
    assert cached.shape[1] == 19
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **shared))


@torch.no_grad()
def test_single_tokens_at_given_positions_are_not_counted_anew() -> None:
    model = language_model(layers=[{"mixer": "mh-attention", "n_heads": 4}])
    tokens, far = ids(1, 6), torch.tensor([[0, 1, 2, 3, 4, 30]])
    cache = model(tokens[:, :5], use_cache=True).past_key_values
    last = model(tokens[:, 5:], position_ids=far[:, 5:], past_key_values=cache).logits
    assert largest(last, model(tokens, position_ids=far).logits[:, 5:]) < CLOSE
    assert largest(last, model(tokens).logits[:, 5:]) > 1e-3


def test_cropping_a_cache_is_refused() -> None:
    cache = language_model()(ids(1, 4), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)


@torch.no_grad()
def test_a_cache_is_repeated_selected_and_reset() -> None:
    model, tokens = language_model(), ids(2, 5)
    cache = model(tokens, use_cache=True).past_key_values
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([0, 4]))
    step = torch.tensor([[5], [6]])
    got = model(step, past_key_values=cache).logits
    assert largest(got, model(torch.cat([tokens, step], 1)).logits[:, -1:]) < CLOSE
    cache.reset()
    assert cache.get_seq_length() == 0
    assert largest(model(tokens, past_key_values=cache).logits, model(tokens).logits) < CLOSE


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_saved_model_comes_back_equal_through_the_auto_classes(tied: bool, tmp_path) -> None:
    model = language_model(tie_word_embeddings=tied, norm="layer", positions="sinusoidal")
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("model*")] == [".safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is MixerForCausalLM
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(loaded(ids(2, 9)).logits, model(ids(2, 9)).logits)
    backbone = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(backbone(ids(2, 9))[0], model.model(ids(2, 9))[0])
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(ids(2, 9)).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_weights_that_a_checkpoint_lacks_start_as_in_a_fresh_model(tmp_path) -> None:
    backbone = language_model().model
    backbone.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert loaded.score.weight.shape == (3, 32)
    assert 0 < loaded.score.weight.abs().max() <= 32**-0.5
    assert loaded.score.bias.abs().max() == 0
    fresh = AutoModelForCausalLM.from_config(config())
    assert not any(parameter.is_meta for parameter in fresh.parameters())
    assert fresh.model.embed_tokens.weight.std() == pytest.approx(0.5, rel=0.2)


def test_checkpointing_gives_the_same_gradients() -> None:
    model = language_model().train()
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable({"use_reentrant": False})
    for each in (model, twin):
        each(ids(2, 9), labels=ids(2, 9)).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, twin.get_parameter(name).grad), name


@torch.no_grad()
def test_the_autoencoder_sees_a_sequence_through_its_last_position() -> None:
    model = MixerAutoEncoder.from_generator(config(), torch_generator(0, "test")).eval()
    tokens = ids(2, 9)
    logits = model(tokens).logits
    assert logits.shape == (2, 9, 23)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] - 2) % 20 + 3
    # A causal model could not let the first position tell the last token, nor the other way round.
    assert ((model(changed).logits - logits).abs().amax(dim=(0, 2)) > 1e-5).all()
    assert model(tokens, labels=tokens).loss > 0
    both, mask = padded([tokens[0], tokens[0, :4]], "left")
    code = model.decoder[0].register_forward_hook(lambda _, inputs, __: codes.append(inputs[0]))
    codes: list[Tensor] = []
    model(both, attention_mask=mask)
    model(tokens[:1, :4])
    code.remove()
    assert largest(codes[0][1, :4], codes[1][0]) < CLOSE


def test_the_original_autoencoder_starts_from_its_own_weights() -> None:
    model = MixerAutoEncoder.from_generator(config(compat="mad-lab"), torch_generator(0, "test"))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) > 5
    std = 0.5  # the config's initializer_range
    for module in linear:
        assert module.weight.std().item() == pytest.approx(std, rel=0.25)
        assert module.bias is None or module.bias.abs().max() == 0


def test_the_original_autoencoder_also_zeroes_the_time_steps_of_mamba_and_hyenas_offsets() -> None:
    # There they are biases of linear maps, and its autoencoder zeroes all of those.
    layers = ("mamba", "hyena")
    original, ours = (
        MixerAutoEncoder.from_generator(config(layers=layers, compat=compat), torch_generator(0))
        for compat in ("mad-lab", "fixed")
    )
    for model, is_zero in ((original, True), (ours, False)):
        mamba, hyena = (layer.mixer for layer in model.model.layers)
        for bias in (mamba.step_bias, *hyena.filter.offsets):
            assert (bias.abs().max() == 0) == is_zero
    assert original.model.layers[0].mixer.conv_bias.abs().max() > 0  # a convolution's is kept


@pytest.mark.parametrize("pooling", ["last", "mean"])
@torch.no_grad()
def test_the_classifier_sees_no_padding(pooling: str) -> None:
    settings = config(num_labels=5, pooling=pooling)
    model = MixerForSequenceClassification.from_generator(settings, torch_generator(0, "t")).eval()
    rows = [ids(1, length, seed=length)[0] for length in (4, 9)]
    alone = torch.cat([model(row[None]).logits for row in rows])
    assert alone.shape == (2, 5)
    for side in ("left", "right"):
        tokens, mask = padded(rows, side)
        output = model(tokens, attention_mask=mask, labels=torch.tensor([1, 3]))
        assert largest(output.logits, alone) < CLOSE
        assert output.loss > 0


@torch.no_grad()
def test_a_model_of_mixers_is_a_component_of_a_hybrid(tmp_path) -> None:
    from tests.models.tiny import tiny

    mixers, llama = language_model(vocab_size=61), tiny("llama")
    hybrid = manticore.ManticoreForCausalLM.from_components([mixers, llama], num_blocks=2).eval()
    hybrid.set_mixture(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tokens = ids(2, 9)
    assert largest(hybrid(tokens).logits, mixers(tokens).logits) < CLOSE
    hybrid.set_mixture(torch.tensor([[0.6, 0.4], [0.3, 0.7]]))
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens).logits, hybrid(tokens).logits)
    new = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    cached = hybrid.generate(tokens, use_cache=True, **new)
    assert torch.equal(cached, hybrid.generate(tokens, use_cache=False, **new))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["mamba-2"]}, "Unknown mixer 'mamba-2'. Did you mean 'mamba2'"),
        ({"layers": [{"n_heads": 4}]}, "A layer is a mixer's name or a dictionary"),
        ({"layers": [{"mixer": "swiglu", "d_model": 8}]}, "Set the model's d_model"),
        ({"norm": "batch"}, "Known: rms, layer"),
        ({"positions": "learned"}, "needs max_position_embeddings"),
        ({"positions": "sinusoidal", "d_model": 15, "layers": []}, "even d_model"),
        ({"d_model": 0, "layers": []}, "must be at least 1"),
    ],
)
def test_wrong_settings_are_named_before_a_weight_exists(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        config(**settings)


def test_a_sequence_beyond_the_table_of_positions_is_refused() -> None:
    model = language_model(positions="learned", max_position_embeddings=8)
    with pytest.raises(ValueError, match="table of 8 positions"):
        model(ids(1, 9))


def test_the_config_survives_its_dictionary() -> None:
    settings = config()
    again = AutoConfig.for_model(**settings.to_dict())
    assert type(again) is MixerLMConfig
    assert again.to_dict() == settings.to_dict()
