"""The doctor passes sound models, and finds faults that were put there or that upstream has."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING

from manticore.cli.main import main
from manticore.evaluation.conformance import (
    Finding,
    Report,
    check_names,
    doctor,
    small_settings,
    worst_of,
)
from manticore.evaluation.conformance.small_models import CONFIGURATIONS, FAMILIES, small_model
from manticore.models.fast_paths import bind_fast_paths

ROOT = Path(__file__).parents[2]
SOUND = ("llama", "gpt_neox", "gpt2", "mamba2", "qwen3_next", "falcon_h1", "lfm2")
# What is known to be wrong in transformers 5.23 (multi-token continuation of a cache, positions
# counted by a layer that knows none, a mask that is ignored, a matrix read past its module, a
# state that lives in the module, weights halved in place).
UPSTREAM = {
    "mamba": {"chunked-prefill", "adapter-reach"},
    "falcon_mamba": {"chunked-prefill", "adapter-reach"},
    "jamba": {"chunked-prefill", "chunked-prefill-with-positions", "adapter-reach"},
    "bamba": {"decode", "chunked-prefill"},
    "recurrent_gemma": {
        "interleaving",
        "beam-search",
        "chunked-prefill",
        "chunked-prefill-with-positions",
        "left-padding",
        "padded-decode",
    },
    "rwkv": {
        "batch-decode",
        "left-padding",
        "padded-decode",
        "padded-generate",
        "save-and-load",
    },
}


@pytest.mark.parametrize("family", SOUND)
def test_a_sound_family_passes_every_check(family):
    report = doctor(small_model(family))
    assert report.passed, str(report)
    assert [finding.check for finding in report.findings] == check_names()


def committed_report(family):
    record = json.loads((ROOT / "docs" / "conformance.json").read_text())
    return next(report for report in record["reports"] if report["model"] == family)


def test_the_committed_table_has_every_family_that_can_be_a_component():
    record = json.loads((ROOT / "docs" / "conformance.json").read_text())
    assert [report["model"] for report in record["reports"]] == list(FAMILIES)


@pytest.mark.parametrize("family", ["cohere", "stablelm", "manticore_mixers"])
def test_the_configurations_of_a_family_differ_and_all_pass(family):
    models = [small_model(family, configuration=number) for number in CONFIGURATIONS]
    assert len({model.config.to_json_string() for model in models}) == len(models)
    for model in models:
        report = doctor(model)
        assert report.passed, str(report)
        assert not [finding for finding in report.findings if finding.status == "skip"]


def test_of_several_configurations_the_worst_finding_is_told():
    def report(**statuses):
        findings = [
            Finding(check=check, status=status, error=error, detail="not so")
            for check, (status, error) in statuses.items()
        ]
        return Report(model="one", findings=tuple(findings))

    good = report(decode=("pass", 1e-7), batch=("pass", 1e-7), positions=("pass", 1e-7))
    bad = report(decode=("fail", 0.1), batch=("pass", 1e-6), positions=("skip", None))
    worst = worst_of([good, bad, good], "family")
    assert (worst["decode"].status, worst["decode"].error) == ("fail", 0.1)
    assert worst["decode"].detail == "configuration 2 of 3: not so"
    assert (worst["batch"].status, worst["batch"].error) == ("pass", 1e-6)
    assert worst["positions"].status == "skip"


@pytest.mark.parametrize("family", sorted(UPSTREAM))
def test_faults_of_upstream_are_found_without_being_told(family):
    report = doctor(small_model(family))
    assert {finding.check for finding in report.faults} == UPSTREAM[family], str(report)


def test_angles_that_change_with_the_length_are_found():
    by_length = {
        "decode",
        "decode-with-positions",
        "batch-decode",
        "interleaving",
        "beam-search",
        "chunked-prefill",
        "chunked-prefill-with-positions",
        "left-padding",
        "right-padding",
        "padded-decode",
    }
    report = doctor(small_model("phi3", configuration=2))  # longrope
    assert {finding.check for finding in report.faults} == by_length, str(report)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    report = doctor(small_model("llama", max_position_embeddings=12, rope_parameters=dynamic))
    assert not report.passed


def test_what_our_models_refuse_is_no_fault_and_says_why():
    from tests.hybrids.pairs import build
    from tests.models.tiny import tiny

    report = doctor(build([tiny("rwkv"), tiny("llama")], num_blocks=2))
    assert report.passed, str(report)
    assert report["repeatability"].status == "pass"
    for check in ("decode", "beam-search", "left-padding", "generate"):
        assert report[check].status == "skip"
        assert "refused: " in report[check].detail
        assert "ignores padding masks" in report[check].detail


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_matrix_is_that_of_the_record(family):
    reports = [doctor(small_model(family, configuration=number)) for number in CONFIGURATIONS]
    now, record = worst_of(reports, family), committed_report(family)
    changes = [
        f"{finding['check']}: {finding['status']} in the record, now {now[finding['check']]}"
        for finding in record["findings"]
        if finding["status"] != now[finding["check"]].status
    ]
    assert [finding["check"] for finding in record["findings"]] == check_names()
    assert not changes, (
        f"{family} is not what docs/conformance.json says. If that is meant, make the record again "
        "(docs/conformance.md says how).\n" + "\n".join(changes)
    )


def test_our_scan_mends_mamba():
    model = small_model("mamba")
    bind_fast_paths(model)
    assert doctor(model).passed


def look_ahead(model):
    """A token sees the next one."""
    model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: output + 0.01 * output.roll(-1, dims=1)
    )


def count_from_zero(model):
    """Positions start again at every piece."""
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(x, position_ids - position_ids[:, :1])


def mix_the_batch(model):
    """Rows see each other."""
    model.model.layers[1].register_forward_hook(
        lambda module, inputs, output: output - 0.1 * output.mean(dim=0, keepdim=True)
    )


def remember_a_run(model):
    """The module keeps something of every run."""
    runs = []

    def drift(module, inputs, output):
        runs.append(1)
        return output * (1 + 0.01 * len(runs))

    model.model.layers[2].register_forward_hook(drift)


def cut_a_gradient(model):
    """One layer is run on detached inputs of its feed-forward part."""
    mlp = model.model.layers[3].mlp
    forward = type(mlp).forward
    mlp.forward = lambda x: forward(mlp, x).detach()


def keep_the_order(model):
    """The cache stays where it is when beams go elsewhere."""
    model._reorder_cache = lambda cache, order: cache


@pytest.mark.parametrize(
    ("break_it", "check"),
    [
        (look_ahead, "causality"),
        (count_from_zero, "decode"),
        (count_from_zero, "chunked-prefill-with-positions"),
        (mix_the_batch, "batch"),
        (remember_a_run, "repeatability"),
        (cut_a_gradient, "gradient-reach"),
        (keep_the_order, "beam-search"),
    ],
)
def test_a_fault_that_was_put_in_is_found(break_it, check):
    model = small_model("llama")
    break_it(model)
    report = doctor(model, [check])
    assert report[check].status == "fail", str(report)


def test_a_weight_that_is_not_saved_is_found(monkeypatch):
    model = small_model("llama")
    save = type(model).save_pretrained

    def forget(self, folder, **options):
        state = {name: t for name, t in self.state_dict().items() if "layers.2.mlp.up" not in name}
        save(self, folder, state_dict=state, **options)

    monkeypatch.setattr(type(model), "save_pretrained", forget)
    assert doctor(model, ["save-and-load"])["save-and-load"].status == "fail"


def test_a_bypassed_projection_is_named(monkeypatch):
    model = small_model("llama")
    mlp_class = type(model.model.layers[0].mlp)
    monkeypatch.setattr(
        mlp_class,
        "forward",
        lambda mlp, x: nn.functional.linear(
            mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
        ),
    )
    finding = doctor(model, ["adapter-reach"])["adapter-reach"]
    assert finding.status == "fail"
    assert "model.layers.0.mlp.down_proj" in finding.detail
    assert "up_proj" not in finding.detail


def test_a_model_that_raises_is_a_finding_and_not_a_crash():
    model = small_model("llama")

    def refuse(module, arguments, output):
        if arguments[0].shape[1] == 1:
            raise RuntimeError("no kernel for one token")

    model.model.layers[0].register_forward_hook(refuse)
    report = doctor(model, ["causality", "decode"])
    assert [finding.status for finding in report.findings] == ["pass", "error"]
    assert "no kernel for one token" in report["decode"].detail


def test_a_model_that_cannot_run_is_told_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(small_settings.SPECIAL, "gptj", {"rotary_dim": 64})  # heads have 16
    table = tmp_path / "table.md"
    words = ["doctor", "--family", "gpt2", "gptj", "--check", "causality", "batch"]
    assert main([*words, "--markdown", str(table)]) == 1
    said = capsys.readouterr().out
    assert said.count("FAIL") == 1
    assert "configuration 1 and 3 of 3: it cannot run, so nothing was checked" in said
    assert "| gptj | raises | raises |" in table.read_text()


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "bart", "xlm"])
def test_what_is_no_causal_language_model_is_refused_before_it_is_read(family, tmp_path, capsys):
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)  # without weights
    assert main(["doctor", str(tmp_path)]) == 2
    assert f"{tmp_path}: a {family} model is" in capsys.readouterr().err
    assert main(["doctor", "--family", family]) == 2
    assert "causal language model" in capsys.readouterr().err


def test_bert_that_is_a_decoder_is_examined():
    model = small_model("bert", is_decoder=True)
    assert doctor(model, ["causality"]).passed


def test_gptj_and_codegen_rotate_no_more_than_their_heads_have():
    for family in ("gptj", "codegen"):
        for configuration in CONFIGURATIONS:
            assert doctor(small_model(family, 0, configuration), ["causality", "batch"]).passed


def test_the_model_comes_back_as_it_was():
    model = small_model("llama").train()
    model.model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    doctor(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_input_says_what_is_allowed():
    model = small_model("llama")
    with pytest.raises(ValueError, match="Did you mean 'decode'"):
        doctor(model, ["decod"])
    with pytest.raises(ValueError, match="seq_len=5 is too short"):
        doctor(model, seq_len=5)
    with pytest.raises(ValueError, match="Did you mean 'mamba2'"):
        small_model("mamba-2")


def test_the_verb_writes_its_tables_and_fails_for_a_faulty_model(tmp_path, capsys):
    files = {kind: tmp_path / f"found.{kind}" for kind in ("json", "html", "md")}
    words = ["doctor", "--family", "llama", "jamba", "--check", "decode", "chunked-prefill"]
    outputs = ["--out", files["json"], "--html", files["html"], "--markdown", files["md"]]
    assert main([*words, *map(str, outputs)]) == 1
    assert "FAIL" in capsys.readouterr().out
    record = json.loads(files["json"].read_text())
    assert [report["passed"] for report in record["reports"]] == [True, False]
    assert "1 of 2 models pass" in files["html"].read_text()
    assert "| jamba | ok | **wrong" in files["md"].read_text()


def test_the_verb_examines_a_folder_and_refuses_what_is_none(tmp_path, capsys):
    small_model("llama").save_pretrained(tmp_path / "model")
    assert main(["doctor", str(tmp_path / "model"), "--check", "causality", "batch"]) == 0
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main(["doctor", "--family", "lama"]) == 2
    assert "Did you mean 'llama'" in capsys.readouterr().err


def test_the_verb_refuses_weights_that_are_damaged_or_not_all_there(tmp_path, capsys):
    small_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(["doctor", str(tmp_path)]) == 2
    assert "lacks 1 weights" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:5000])
    assert main(["doctor", str(tmp_path)]) == 2
    assert "does not load as a causal language model" in capsys.readouterr().err


def test_a_hybrid_passes_every_check():
    from tests.hybrids.pairs import build

    assert doctor(build(num_blocks=2)).passed
