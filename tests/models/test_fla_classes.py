"""fla's own classes load what we write, and compute it; we read what they write.

Needs flash-linear-attention, but no GPU: see `fla_on_cpu`.
"""

from pathlib import Path

import pytest
import torch

from manticore.models.exports_fla import save_as_fla
from manticore.models.imports_fla import read_fla_model
from tests.models.fla_on_cpu import load_with_fla, references  # noqa: F401 (a fixture)
from tests.models.test_fla_weights import ATTENTION, TOKEN, VOCABULARY, blocks, small_model

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


@pytest.mark.parametrize("name", ["retnet", "gla", "delta_net", "gated_deltanet", "linear_attn"])
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


@torch.no_grad()
def _compare(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (2, SEQ_LEN), generator=generator)
    expected = theirs(ids, use_cache=False).logits
    largest = expected.abs().max()
    assert 0.1 < largest < 20
    torch.testing.assert_close(ours(ids).logits, expected, atol=TOLERANCE, rtol=0)
