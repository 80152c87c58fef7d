"""fla's own classes load what we write, and compute it; we read what they write.

Needs flash-linear-attention, but no GPU: see `fla_on_cpu`.
"""

from pathlib import Path

import pytest
import torch

from manticore.conversion.as_mixers import as_mixer_model
from manticore.conversion.transfer import transfer
from manticore.models.exports_fla import save_as_fla
from manticore.models.imports_fla import read_fla_model
from tests.conversion.test_as_mixers import RETENTION, drawn
from tests.models.fla_on_cpu import load_with_fla, references  # noqa: F401 (a fixture)
from tests.models.test_fla_weights import ATTENTION, TOKEN, VOCABULARY, blocks, small_model
from tests.models.tiny import tiny

fla = pytest.importorskip("fla")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("references")]
SEQ_LEN = 29
TOLERANCE = 2e-5
"""Float32 sums of 29 terms in another order, in logits of size 1 to 10."""


@pytest.mark.parametrize("name", TOKEN)
def test_flas_class_computes_what_we_wrote(name: str, tmp_path: Path) -> None:
    model = small_model(blocks(TOKEN[name], TOKEN[name]))
    save_as_fla(model, tmp_path)
    _compare(load_with_fla(tmp_path), model)


@pytest.mark.parametrize(
    "name", ["retnet", "gla", "delta_net", "gated_deltanet", "linear_attn", "rwkv6"]
)
def test_flas_hybrids_compute_what_we_wrote(name: str, tmp_path: Path) -> None:
    narrow = {**ATTENTION, "n_kv_heads": 1, "window": 7, "rotary_base": 500.0}
    model = small_model(blocks(TOKEN[name], ATTENTION, narrow), tie_word_embeddings=True)
    save_as_fla(model, tmp_path)
    _compare(load_with_fla(tmp_path), model)


@pytest.mark.parametrize("name", TOKEN)
def test_we_read_what_flas_class_writes(name: str, tmp_path: Path) -> None:
    model = small_model(blocks(TOKEN[name], TOKEN[name]))
    save_as_fla(model, tmp_path / "ours")
    theirs = load_with_fla(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = read_fla_model(tmp_path / "theirs")
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    _compare(theirs, back)


FRESH = {
    "transformer": {"num_heads": 4, "num_kv_heads": 2, "qkv_bias": True},
    "linear_attn": {},
    "gla": {"attn": {"layers": [1], "num_heads": 4}},
    "retnet": {"num_heads": 4, "fuse_norm": False},
    "delta_net": {"num_heads": 4, "use_gate": True, "allow_neg_eigval": True},
    "gated_deltanet": {"num_heads": 3, "head_dim": 16},
    "rwkv6": {"expand_k": 1.0},
    "rwkv6 without biases": {"expand_k": 1.0, "norm_bias": False, "norm_first": False},
    "mamba": {},
    # More than one group would not do: off the GPU, fla deals B and C out to the heads in turn, and
    # to neighbours in its kernels and in its own decoding.
    "mamba2": {"head_dim": 16, "num_heads": 8},
}
"""Settings of fla's own configurations beside its defaults."""


@pytest.mark.parametrize("name", FRESH)
def test_we_read_what_fla_configures_by_itself(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model(name.split(" ")[0], **sizes, **FRESH[name])
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    theirs.save_pretrained(tmp_path)
    _compare(theirs, read_fla_model(tmp_path))


def test_flas_class_computes_a_converted_model(tmp_path: Path) -> None:
    target = [
        {**RETENTION, "norm_eps": 1e-3}, "attention", RETENTION,
        {"mixer": "sliding-attention", "window": 9},
    ]  # fmt: skip
    source = drawn(transfer(tiny("llama"), target)[0])
    save_as_fla(as_mixer_model(source), tmp_path)
    _compare(load_with_fla(tmp_path), source)


@torch.no_grad()
def _compare(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (2, SEQ_LEN), generator=generator)
    expected = theirs(ids, use_cache=False).logits
    largest = expected.abs().max()
    assert 0.1 < largest < 20
    torch.testing.assert_close(ours(ids).logits, expected, atol=TOLERANCE, rtol=0)
