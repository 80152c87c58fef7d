"""Converted hybrids leave as transformers' own: the same logits and the same cached tokens."""

import json

import pytest
import torch

from manticore.cli.main import main
from manticore.conversion.stock_layouts import as_stock_model
from manticore.evaluation.conformance import doctor
from manticore.models.stock import NoStockClassError
from tests.conversion.models import converted, maximal
from tests.conversion.stock_hybrids import BESIDE, CASES, DELTA, M1, OLMO, UNTURNED, hybrid
from tests.models.tiny import token_ids

A = "attention"
NEW = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}


@pytest.mark.parametrize(("name", "index"), CASES)
@torch.no_grad()
def test_a_hybrid_leaves_as_its_class(name, index):
    model = hybrid(name, index)
    stock = as_stock_model(model)
    assert type(stock).__name__ == name
    assert stock.config.max_position_embeddings == 64
    ids = token_ids(model, 2, 40)
    assert maximal(stock(ids).logits - model(ids).logits) < 1e-5  # two orders of float32 sums
    mask = torch.ones_like(ids)
    ours, theirs = (m.generate(ids, attention_mask=mask, **NEW) for m in (model, stock))
    assert torch.equal(ours, theirs)


def test_the_doctor_finds_nothing_wrong_with_residual_lines_of_two_kinds():
    report = doctor(hybrid("OlmoHybridForCausalLM", 1))
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index"), CASES)
def test_export_proves_it_without_manticore(name, index, tmp_path, capsys):
    hybrid(name, index).save_pretrained(tmp_path / "converted")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "converted"), "--check", "--out", str(out)]) == 0
    assert "Manticore was never imported" in capsys.readouterr().out
    check = json.loads((out / "export.json").read_text())["check"]
    assert (check["class"], check["same_tokens"]) == (name, True)


@pytest.mark.parametrize(
    ("family", "target", "reason"),
    [
        ("llama", [M1, UNTURNED, UNTURNED, M1], "attention layers: in no even steps"),
        ("llama", [M1, A, M1, A], "jamba comes nearest, but rotated channels: all here"),
        ("llama", [DELTA, A, A, A], "norm of queries and keys: none here, head-rms there"),
        ("olmo2", [{**OLMO, "topology": "post-norm"}, A, A, A], "residual lines: post-norm here"),
        ("olmo2", [{**OLMO, "norm_eps": 1e-4}, A, A, A], "norm_eps of gated DeltaNet: 0.0001 here"),
        ("qwen3", [{**DELTA, "norm_eps": 1e-4}, A, A, A], "0.0001 beside 1e-06 of the blocks"),
        ("qwen3", [{**DELTA, "use_gate": False}, A, A, A], "with use_gate=False here"),
        ("qwen3", [{**DELTA, "allow_neg_eigval": True}, A, A, A], "with negative eigenvalues"),
        ("llama", ["gated-conv", A, A, A], "lfm2 comes nearest, but norm of queries and keys"),
        ("qwen3", "gated-conv", "need a layer of attention"),
        ("qwen3", BESIDE, "falcon_h1 comes nearest, but norm of queries and keys: head-rms here"),
        ("llama", {**BESIDE, "rotary": False}, "rotated channels: none here, all there"),
        ("llama", {**BESIDE, "window": 9}, "windows: one size, everywhere here"),
        ("llama", {**BESIDE, "mamba_norm_eps": 1e-4}, "norm_eps 0.0001 beside 1e-06"),
        ("llama", [BESIDE, BESIDE, A, BESIDE], "none mixes attention and attention-mamba2"),
        ("llama", [BESIDE, BESIDE, BESIDE, {**BESIDE, "mamba_d_state": 5}], "differ between"),
        ("llama", {**BESIDE, "projections": "own"}, "attention-mamba2 on projections of its own"),
    ],
)
def test_what_is_in_the_way_of_a_hybrid_is_named(family, target, reason):
    with pytest.raises(NoStockClassError, match=reason):
        as_stock_model(converted(target, family))


@torch.no_grad()
def test_norm_weights_that_bfloat16_cannot_count_from_one_are_refused():
    model = hybrid("Qwen3NextForCausalLM", 0).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.25)  # 0.25 is there
    stock = as_stock_model(model)
    assert {p.dtype for p in stock.parameters()} == {torch.bfloat16}
    model.model.norm.weight[3] = 0.1  # and -0.9 is not
    with pytest.raises(NoStockClassError, match=r"no such number for some in model\.norm\.weight"):
        as_stock_model(model)
