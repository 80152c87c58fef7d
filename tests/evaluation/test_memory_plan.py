"""The memory plan against every byte that torch's allocator hands out in a real run on a CPU."""

import gc
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from manticore.evaluation.language import causal_loss
from manticore.evaluation.memory_plan import Memory, generation_memory, training_memory
from manticore.evaluation.memory_shadow import Shadow, bytes_of
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.loyalty import Loyalty
from manticore.hybrids.mixture import Mixture
from manticore.hybrids.modeling_manticore import ManticoreForCausalLM
from manticore.models.fast_paths import bind_fast_paths
from manticore.training import TrainConfig, train

BATCH, SEQ_LEN, VOCAB = 4, 48, 300
# What the plan leaves out is scratch inside kernels; on these models it is below 1 %. The promise
# is 15 %.
TOLERANCE = 0.05

ATTENTION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "vocab_size": VOCAB,
}
RECURRENT = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": VOCAB}


def config_of(model_type: str, **fields: Any) -> Any:
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return CONFIG_MAPPING[model_type](**special, **fields)


def stock(model_type: str, **fields: Any) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config_of(model_type, **fields))
    bind_fast_paths(model.base_model)
    return model


def llama() -> PreTrainedModel:
    return stock("llama", num_key_value_heads=2, **ATTENTION)


def mamba() -> PreTrainedModel:
    return stock("mamba", **RECURRENT)


def hybrid() -> PreTrainedModel:
    components = [config_of("gpt_neox", **ATTENTION), config_of("mamba", **RECURRENT)]
    model = ManticoreForCausalLM(
        ManticoreConfig(components=components, num_blocks=2, vocab_size=VOCAB)
    )
    with torch.device("cpu"):  # few numbers, but they decide what runs
        model.backbone.rows = Mixture(2, 2)
        model.backbone.loyalty = Loyalty(model.config.loyalty_values(), learn=False)
    model.freeze_mixture()
    return model


def lora() -> nn.Module:
    config = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    return peft.get_peft_model(llama(), config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "mamba": mamba,
    "hybrid": hybrid,
    "lora": lora,
}


def make_batch() -> dict[str, Tensor]:
    ids = torch.zeros(BATCH, SEQ_LEN, dtype=torch.long)
    return {"input_ids": ids, "labels": ids.clone()}


@pytest.fixture(params=MODELS)
def build(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return MODELS[request.param]


def allocated(work: Callable[[], object]) -> int:
    """Highest sum of bytes that the allocator had handed out at one time during `work`."""
    gc.collect()  # what earlier tests left would be freed, and counted, during the work
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def planned(
    build: Callable[[], Any], checkpointing: bool = False, **how: Any
) -> tuple[Memory, nn.Module]:
    shadow = Shadow()
    model = shadow.build(build)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return training_memory(shadow, model, make_batch, causal_loss, **how), model


def real_training(build: Callable[[], Any], checkpointing: bool = False, **how: Any) -> int:
    """Weights, two steps of the training loop, moments and all: everything from nothing."""

    def work() -> None:
        model = build()
        if checkpointing:
            model.gradient_checkpointing_enable()
        config = TrainConfig(steps=2, lr=1e-3, device="cpu", **how)
        train(model, lambda step: make_batch(), config, loss_fn=causal_loss, progress=False)

    return allocated(work)


def test_planned_training_is_what_a_training_allocates(build):
    memory, _ = planned(build)
    assert memory.total == pytest.approx(real_training(build), rel=TOLERANCE)


def test_pieces_of_a_batch_bfloat16_and_checkpointing_are_planned_as_they_are_allocated():
    for build, how, real in (
        (llama, {"pieces": 4}, {"grad_accumulation": 4}),
        (llama, {"precision": "bf16"}, {"precision": "bf16"}),
        (hybrid, {"checkpointing": True}, {"checkpointing": True}),
    ):
        memory, _ = planned(build, **how)
        assert memory.total == pytest.approx(real_training(build, **real), rel=TOLERANCE), how


def test_planned_generation_is_what_a_generation_allocates(build):
    check_generation(build, prompt=40, new=12)


def test_a_short_prompt_and_a_long_answer_are_most_at_the_last_token():
    check_generation(llama, prompt=3, new=45)


def check_generation(build: Callable[[], Any], prompt: int, new: int) -> None:
    shadow = Shadow()
    model = shadow.build(build)
    memory = generation_memory(shadow, model, batch_size=3, prompt_tokens=prompt, new_tokens=new)

    def work() -> None:
        ids = torch.zeros(3, prompt, dtype=torch.long)
        length = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        real = build().eval()
        real.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **length)

    assert memory.total == pytest.approx(allocated(work), rel=TOLERANCE)
    assert memory.cache > 0


def test_parts_are_those_of_the_model_and_of_adamw():
    memory, model = planned(lora, pieces=2)
    real = lora()
    trained = [p for p in real.parameters() if p.requires_grad]
    assert memory.weights == bytes_of([*real.parameters(), *real.buffers()])
    # Two moments like each parameter, and a float32 count of steps for each.
    assert memory.optimizer == sum(2 * p.numel() * 4 + 4 for p in trained)
    # A gradient of the first piece waits while the second is computed.
    assert memory.gradients == pytest.approx(sum(p.numel() * 4 for p in trained), rel=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_masked_batch_answers_whether_anything_is_padded():
    # The mask is computed for real: rows of equal length take the path without a mask.
    def loss_at(padding: int) -> Callable[[nn.Module, Any], Tensor]:
        def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            mask = torch.ones_like(batch["input_ids"])
            mask[0, SEQ_LEN - padding :] = 0
            return model(**batch, attention_mask=mask, use_cache=False).loss

        return loss

    totals = []
    for padding in (0, 1):
        shadow = Shadow()
        model = shadow.build(llama)
        totals.append(training_memory(shadow, model, make_batch, loss_at(padding)).total)
    assert totals[0] < totals[1]


def test_a_model_that_looks_at_its_numbers_is_refused_with_a_reason():
    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[x.sum(dim=-1) > 0])

    shadow = Shadow()
    model = shadow.build(lambda: Looking(4, 4))
    with pytest.raises(ValueError, match="Looking cannot be told without its numbers"):
        training_memory(
            shadow, model, lambda: {"x": torch.zeros(3, 4)}, lambda m, batch: m(batch["x"]).sum()
        )
