"""Coverage: adapters by default reach every layer that can take one, and silence is found."""

import inspect
import warnings
from typing import Any

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from manticore import MoReConfig
from manticore.adapters.stack import layers_of
from manticore.adapters.targets import DEFAULT_TARGETS
from manticore.adapters.uncovered import UncoveredLayersWarning
from manticore.adapters.weight_reads import weight_reads
from manticore.models.fast_paths import bind_fast_paths
from manticore.tuning.coverage import (
    coverage,
    default_targets,
    warn_uncovered,
)
from manticore.tuning.unfused import without_fused_kernels
from tests.hybrids.pairs import build, members
from tests.models.tiny import FAMILY_NAMES, tiny
from tests.tuning.tiny_models import HYBRIDS, METHODS, adapted


@pytest.mark.parametrize("family", HYBRIDS)
def test_table_of_targets_is_what_the_structure_gives(family: str) -> None:
    assert set(default_targets(tiny(family))) == set(DEFAULT_TARGETS[family])


@pytest.mark.parametrize("family", sorted({*FAMILY_NAMES} - {"kimi_linear"}))
def test_gradient_reaches_every_layer_with_default_targets(family: str) -> None:
    model = tiny(family)
    report = coverage(adapted(model, default_targets(model)))
    assert report.measured
    assert not report.uncovered, report.lines()
    assert not report.silent, report.lines()


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("family", ["nemotron_h", "jamba"])
def test_every_method_is_measured(family: str, method: str) -> None:
    model = tiny(family)
    targets = default_targets(model)
    if method == "gralora":  # needs features that its number of blocks divides
        targets = [name for name in targets if name != "x_proj"]
    report = coverage(adapted(model, targets, method))
    assert report.methods == [method]
    assert report.is_complete, report.lines()


def test_attention_names_on_a_hybrid_leave_most_layers_without_an_adapter() -> None:
    model = tiny("nemotron_h")
    attention = sum(layer.kind == "NemotronHAttention" for layer in layers_of(model))
    report = coverage(adapted(model, ["q_proj", "k_proj", "v_proj", "o_proj"]))
    assert len(report.covered) == attention == 1
    assert len(report.uncovered) == len(report.layers) - 1
    mixer = next(layer for layer in report.uncovered if "Mamba" in layer.kind)
    assert "no target matches its linear modules (in_proj, out_proj)" in mixer.why


def test_layers_that_are_trained_themselves_share_a_line() -> None:
    model = tiny("llama")
    names = ["input_layernorm", "post_attention_layernorm"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of every norm that is no nn.LayerNorm
        report = coverage(get_peft_model(model, LNTuningConfig(target_modules=names)))
    blocks = model.config.num_hidden_layers
    assert f"    input_layernorm: {blocks} learns" in report.lines()
    assert f"    post_attention_layernorm: {blocks} learns" in report.lines()
    assert not any("base_model" in line for line in report.lines())


def test_both_components_of_a_hybrid_are_reached() -> None:
    hybrid = build(members(4), num_blocks=2)
    targets = default_targets(hybrid)
    assert not any(name.endswith("lm_head") or "translators" in name for name in targets)
    report = coverage(adapted(hybrid, targets))
    assert report.is_complete, report.lines()
    kinds = {layer.kind for layer in report.covered}
    assert {"GPTNeoXAttention", "GPTNeoXMLP", "MambaMixer"} <= kinds


def test_names_that_mean_two_things_are_told_apart() -> None:
    """out_proj is attention's in GPT-Neo and the fused one in Mamba."""
    hybrid = build([tiny("gpt_neo"), tiny("mamba", seed=1)], num_blocks=2)
    targets = default_targets(hybrid)
    report = coverage(adapted(hybrid, targets))
    states = {m.name: m.state for layer in report.layers for m in layer.modules}
    for name, state in states.items():
        if name.endswith("out_proj"):
            assert state == ("learns" if "attention" in name else "bare"), name


def test_weight_read_by_the_layer_itself_makes_an_adapter_silent() -> None:
    """transformers' Mamba multiplies by dt_proj.weight, on every machine."""
    model = tiny("mamba")
    report = coverage(adapted(model, ["in_proj", "dt_proj"]))
    assert {m.name.rpartition(".")[2] for m in report.silent} == {"dt_proj"}
    assert all("reads its weight past the module" in m.why for m in report.silent)
    assert not report.is_complete
    dry = coverage(adapted(tiny("mamba"), ["dt_proj"]), gradient=False)
    assert not dry.measured
    assert len(dry.silent) == model.config.num_hidden_layers


def test_our_own_scan_calls_the_time_step_projection() -> None:
    model = tiny("mamba")
    bind_fast_paths(model)
    report = coverage(adapted(model, ["in_proj", "dt_proj"]))
    assert not report.silent
    assert {layer.kind for layer in report.layers} == {"MambaMixer"}


def _fused_twin(projected: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a fused kernel means for adapters: it gets out_proj's weight, not the module."""
    weight = kwargs.get("outproj_weight")
    if weight is None:  # Mamba-1's
        x_proj, out_proj = args[2], args[4]
        x, gate = projected.transpose(1, 2).chunk(2, dim=-1)
        return (x * gate * (x @ x_proj.T).mean(dim=-1, keepdim=True)) @ out_proj.T
    gate, rest = projected[..., : weight.shape[1]], projected[..., weight.shape[1] :]
    return (gate * rest.mean(dim=-1, keepdim=True)) @ weight.T


FUSED = {
    "mamba": "mamba_inner_fn",
    "falcon_mamba": "mamba_inner_fn",
    "mamba2": "mamba2_split_conv1d_scan_combined",
    "bamba": "mamba2_split_conv1d_scan_combined",
    "granitemoehybrid": "mamba2_split_conv1d_scan_combined",
    "falcon_h1": "mamba2_split_conv1d_scan_combined",
    "nemotron_h": "mamba2_split_conv1d_scan_combined",
}


@pytest.fixture
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A family whose mixers train by a fused kernel, as where mamba_ssm is installed."""
    family: str = request.param
    module = inspect.getmodule(type(tiny(family)))
    for name in FUSED[family].split():
        monkeypatch.setattr(module, name, _fused_twin)
    return family


@pytest.mark.parametrize("fused", sorted(FUSED), indirect=True)
def test_fused_kernels_silence_out_proj_and_not_the_defaults(fused: str) -> None:
    model = tiny(fused)
    chosen = default_targets(model)
    assert coverage(adapted(model, chosen)).is_complete
    model = tiny(fused)
    everything = default_targets(model, fused_too=True)
    assert set(chosen) < set(everything)
    config = LoraConfig(target_modules=rf".*\.({'|'.join(everything)})", r=2)
    wrapped = _wrapped(model, config)
    silent = coverage(wrapped).silent
    assert {m.name.rpartition(".")[2] for m in silent} == set(everything) - set(chosen)
    assert all("fused kernels" in m.why for m in silent)
    with without_fused_kernels(wrapped) as count:
        assert count > 0
        assert coverage(wrapped).is_complete


def _wrapped(model: Any, config: LoraConfig) -> Any:
    """LoRA on out_proj, which PEFT refuses on families that it knows; other methods may."""
    family, model.config.model_type = model.config.model_type, "unknown"
    wrapped = get_peft_model(model, config)
    model.config.model_type = family
    return wrapped


@pytest.mark.parametrize("fused", ["mamba2"], indirect=True)
def test_the_path_without_fused_kernels_keeps_modes_and_ends(fused: str) -> None:
    model = tiny(fused)
    wrapped = _wrapped(model, LoraConfig(target_modules=r".*\.out_proj", r=2)).train()
    with without_fused_kernels(wrapped):
        wrapped(input_ids=torch.arange(8)[None])
        assert all(module.training for module in wrapped.modules())
    assert coverage(wrapped).silent


def test_measuring_changes_nothing() -> None:
    model = tiny("nemotron_h")
    wrapped = adapted(model, default_targets(model)).eval()
    flags = [p.requires_grad for p in wrapped.parameters()]
    before = torch.random.get_rng_state()
    coverage(wrapped)
    assert flags == [p.requires_grad for p in wrapped.parameters()]
    assert all(p.grad is None for p in wrapped.parameters())
    assert not any(module.training for module in wrapped.modules())
    assert torch.equal(before, torch.random.get_rng_state())


def test_experts_as_parameters_are_named_as_what_they_are() -> None:
    model = tiny("jamba")
    report = coverage(adapted(model, default_targets(model)))
    moe = [layer for layer in report.layers if layer.kind == "JambaSparseMoeBlock"]
    assert moe
    assert not moe[0].can_be_covered
    assert "experts.gate_up_proj (4 x 96 x 32, JambaExperts)" in moe[0].why
    assert report.is_complete


def test_expert_that_no_token_reaches_is_not_called_bypassed() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"mix": Layer()}) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.layers:
                x = block["mix"](x)
            return x

    wrapped = adapted(Toy(), ["used", "idle"])
    report = coverage(wrapped, {"x": torch.randn(3, 8)})
    assert [m.why for m in report.silent] == ["the batch does not use it"] * 2
    assert len(report.covered) == 2


def test_model_on_the_meta_device_can_be_looked_at() -> None:
    with torch.device("meta"):
        model = tiny("falcon_h1")
    report = coverage(adapted(model, default_targets(model)), gradient=False)
    assert report.is_complete
    assert not report.measured


def test_warning_names_the_layers_and_the_way_out() -> None:
    wrapped = adapted(tiny("nemotron_h"), ["q_proj", "v_proj"])
    with pytest.warns(UncoveredLayersWarning, match="3 of 4 layers have no adapter") as caught:
        names = warn_uncovered(wrapped)
    assert len(names) == 3
    said = str(caught[0].message)
    assert f"default_targets(model), from {default_targets.__module__}" in said
    parallel = adapted(tiny("falcon_h1"), ["q_proj", "v_proj"])
    with pytest.warns(UncoveredLayersWarning, match="4 FalconH1Mixer"):
        warn_uncovered(parallel)


def test_more_warns_where_peft_is_silent_and_reaches_hybrids_by_default() -> None:
    with pytest.warns(UncoveredLayersWarning, match="3 of 4 layers"):
        get_peft_model(tiny("nemotron_h"), MoReConfig(target_modules=["q_proj", "v_proj"]))
    for family in ("nemotron_h", "qwen3_next"):
        wrapped = get_peft_model(tiny(family), MoReConfig(nblocks=2, block_rank=2))
        assert coverage(wrapped).is_complete


def test_a_choice_is_not_warned_about() -> None:
    chosen = LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[0], r=2)
    usual = [
        adapted(tiny("llama"), ["q_proj", "v_proj"]),
        get_peft_model(tiny("llama"), chosen),
        adapted(tiny("nemotron_h"), default_targets(tiny("nemotron_h"))),
        tiny("llama"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncoveredLayersWarning)
        assert [warn_uncovered(model) for model in usual] == [[], [], [], []]


def test_reads_are_found_in_the_source() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.fused, self.asked, self.taken = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.plain(x).to(self.asked.weight.dtype)
            if self.training and x.ndim > 1:
                return x @ self.fused.weight
            return x @ self.taken.weight.T

    reads = weight_reads(Reader())
    assert {name: read.only_in_training for name, read in reads.items()} == {
        "fused": True,
        "taken": False,
    }
    assert reads["taken"].where == "Reader.forward"


def test_report_without_adapters_says_so() -> None:
    report = coverage(tiny("llama"))
    assert report.methods == []
    assert len(report.uncovered) == len(report.layers)
    assert "no adapter" in report.headline()
    assert report.to_dict()["counts"]["covered"] == 0
