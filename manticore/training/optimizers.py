"""AdamW over named parameter groups, each with its own learning-rate scale and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

IMPLEMENTATIONS = ("auto", "fused", "foreach", "single")


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are trained alike."""

    parameters: Iterable[nn.Parameter]
    """The parameters; one that is listed twice (a tied table) is trained once."""
    lr_scale: float = 1.0
    """Factor on the scheduled learning rate."""
    weight_decay: float | None = None
    """Decay of this group's matrices; None takes the optimizer's."""
    clip: float | None = None
    """Largest gradient norm of this group, by itself; None takes the optimizer's."""


Parameters = Iterable[nn.Parameter] | Mapping[str, ParameterGroup]


def build_adamw(
    groups: Parameters,
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    clip: float = 1.0,
    implementation: str = "auto",
) -> AdamW:
    """Build AdamW; matrices decay, biases and other one-dimensional parameters do not.

    A parameter that carries ``_no_weight_decay`` (the decay rates of a state-space
    layer) does not decay either. Each torch parameter group gets, beside AdamW's own
    settings, ``name``, ``lr_scale`` and ``clip``; `set_learning_rate` and
    `clip_gradients` read them.

    Args:
        groups: parameters, or named groups of them.
        clip: largest gradient norm per named group; 0 does not clip.
        implementation: ``fused``, ``foreach``, ``single``, or ``auto``: fused where every
            parameter is on a CPU or CUDA device, else torch's default.
    """
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"Unknown AdamW implementation {implementation!r}. Known: {known}.")
    named = name_groups(groups)
    torch_groups: list[dict] = []
    for name, group in named.items():
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        shared = {
            "name": name,
            "lr": lr * group.lr_scale,
            "lr_scale": group.lr_scale,
            "clip": clip if group.clip is None else group.clip,
        }
        members = list(group.parameters)
        for value, part in (
            (decay, [p for p in members if decays(p)]),
            (0.0, [p for p in members if not decays(p)]),
        ):
            if part:
                torch_groups.append({"params": part, "weight_decay": value, **shared})
    parameters = [p for group in torch_groups for p in group["params"]]
    return AdamW(torch_groups, lr=lr, betas=betas, eps=eps, **_kernel(implementation, parameters))


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: a matrix or larger, and not marked otherwise."""
    return parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)


def name_groups(groups: Parameters) -> dict[str, ParameterGroup]:
    """Return named groups with lists of distinct parameters, all of which take gradients."""
    if not isinstance(groups, Mapping):
        groups = {"all": ParameterGroup(parameters=groups)}
    owner: dict[int, str] = {}
    named: dict[str, ParameterGroup] = {}
    for name, group in groups.items():
        members = list({id(p): p for p in group.parameters}.values())
        _check_group(name, members, owner)
        owner.update({id(p): name for p in members})
        named[name] = ParameterGroup(
            parameters=members,
            lr_scale=group.lr_scale,
            weight_decay=group.weight_decay,
            clip=group.clip,
        )
    if not named:
        raise ValueError("There is nothing to train: no parameter group was given.")
    return named


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set every group to ``lr`` times the group's own ``lr_scale`` (1 if it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_gradients(
    optimizer: Optimizer,
    clip_norm: Callable[..., torch.Tensor | None] = nn.utils.clip_grad_norm_,
) -> float:
    """Clip each named group to its own norm and return the norm of all before clipping."""
    by_name: dict[str, list[nn.Parameter]] = {}
    limits: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = group.get("name", "all")
        by_name.setdefault(name, []).extend(p for p in group["params"] if p.grad is not None)
        limits[name] = group.get("clip", 0.0) or math.inf
    # One transfer per group: a NaN or an infinity in any gradient shows in its norm.
    norms = [clip_norm(members, limits[name]) for name, members in by_name.items() if members]
    return math.sqrt(sum(float(norm) ** 2 for norm in norms if norm is not None))


def implementation_of(optimizer: Optimizer) -> str:
    """Say which kernel the optimizer runs: ``fused``, ``foreach``, ``single`` or ``default``."""
    settings = optimizer.param_groups[0]
    if settings.get("fused"):
        return "fused"
    if settings.get("foreach"):
        return "foreach"
    return "single" if settings.get("foreach") is False else "default"


def _kernel(implementation: str, parameters: list[nn.Parameter]) -> dict[str, bool]:
    if implementation == "single":
        return {"foreach": False, "fused": False}
    if implementation == "auto":
        devices = {p.device.type for p in parameters}
        floating = all(p.is_floating_point() for p in parameters)
        return {"fused": True} if devices <= {"cpu", "cuda"} and floating else {}
    return {implementation: True}


def _check_group(name: str, members: list[nn.Parameter], owner: dict[int, str]) -> None:
    if not members:
        raise ValueError(
            f"Parameter group {name!r} is empty, so there is nothing to train in it. "
            "Leave the group out, or unfreeze its parameters."
        )
    frozen = sum(not p.requires_grad for p in members)
    if frozen:
        raise ValueError(
            f"Parameter group {name!r} has {frozen} of {len(members)} parameters with "
            "requires_grad=False. Unfreeze them or leave them out."
        )
    others = sorted({owner[id(p)] for p in members if id(p) in owner})
    if others:
        raise ValueError(
            f"Parameter groups {name!r} and {others[0]!r} share a parameter. "
            "Give each parameter to one group (tied tables count as one parameter)."
        )
