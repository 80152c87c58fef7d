"""Which tensors of a student are trained, apart or through an adapter."""

from __future__ import annotations

import torch
from torch import nn

from manticore.config.transfer_recipe import FreezeConfig, StudentAdapterConfig
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.plan import TransferPlan
from manticore.conversion.threshold import INHERITED, Unfreezing
from manticore.training import ParameterGroup


def parameter_groups(
    model: ConvertedForCausalLM, plan: TransferPlan, rule: FreezeConfig | None, steps: int
) -> tuple[dict[str, ParameterGroup], Unfreezing | None]:
    """New and inherited parameters, and who decides about the latter.

    Args:
        rule: when frozen inherited parameters are set free; None: all are trained from the start.
        steps: of the training.
    """
    names = set(plan.inherited_names())
    sides: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        sides[name in names].append(parameter)
    groups = {"new": ParameterGroup(parameters=sides[False])}
    if not sides[True]:
        return groups, None
    groups[INHERITED] = ParameterGroup(parameters=sides[True])
    if rule is None:
        return {key: group for key, group in groups.items() if group.parameters}, None
    return groups, Unfreezing(sides[True], rule, steps)


def adapted(
    model: ConvertedForCausalLM, plan: TransferPlan, adapter: StudentAdapterConfig, seed: int = 0
) -> tuple[nn.Module, dict[str, ParameterGroup]]:
    """The model with an adapter on its inherited matrices; new tensors are trained whole.

    Args:
        seed: of the adapter's first weights.
    """
    from manticore.tuning.methods import adapt

    inherited = set(plan.inherited_names())
    targets = [
        name for name, module in model.model.named_modules(prefix="model")
        if isinstance(module, nn.Linear) and f"{name}.weight" in inherited
    ]  # fmt: skip
    new = [p for name, p in model.named_parameters() if name not in inherited]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws from the global generator
        wrapped = adapt(model, adapter.method, adapter.settings, targets)
    for parameter in new:
        parameter.requires_grad_(True)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    return wrapped, {"new": ParameterGroup(parameters=trained)}
