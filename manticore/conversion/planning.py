"""Decide what becomes of every tensor, from the shapes alone.

Which parts are copied is the recipe's choice (`parts`). Queries, keys and values carry over where
the target keeps the source's heads and rotary angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.first_weights import first_weights
from manticore.conversion.heads import HeadsSpec
from manticore.conversion.mixer_choice import HEADS
from manticore.conversion.modeling_converted import ConvertedForCausalLM
from manticore.conversion.parts import part_of, parts_of
from manticore.conversion.plan import TransferPlan, TransferRow
from manticore.conversion.reading import Source, SourceTensor
from manticore.conversion.softmax_heads import SoftmaxHeadsSpec
from manticore.mixers.interface import MixerSpec


@dataclass(frozen=True)
class Assignment:
    """One tensor of the target and the numbers for it."""

    target: str
    value: Tensor


def make_plan(
    source: Source, model: ConvertedForCausalLM, copy: str | Sequence[str]
) -> tuple[TransferPlan, list[Assignment]]:
    """The plan, and the numbers for every target tensor that inherits some.

    Args:
        model: the target, with or without numbers in it.

    Raises:
        ValueError: queries, keys and values are asked for where the heads do not match.
    """
    config, parts = model.config, parts_of(copy)
    specs = config.specs()
    if "qkv" in parts:
        for index, spec in enumerate(specs):
            _check_qkv(source, config, spec, index)
    rows, assignments = [], []
    aliases = {"lm_head.weight"} if source.block.tied else set()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    moved, constants = _moved_norms(config), {name for name, _ in model.named_buffers()}
    for name, shape in shapes.items():
        if name in aliases:
            note = "the same tensor as model.embed_tokens.weight"
            rows.append(TransferRow(how="tied", target=name, shape=shape, note=note))
            continue
        if name in constants:
            rows.append(TransferRow(how="constant", target=name, shape=shape, part=part_of(name)))
            continue
        row, value = _decide(name, shape, source, specs, parts, moved)
        rows.append(row)
        if value is not None:
            assignments.append(Assignment(name, value))
    rows += _dropped(source, rows, parts, moved)
    layers = tuple(layer["mixer"] for layer in config.layers)
    plan = TransferPlan(tuple(rows), source.model_type, layers)
    plan.check(shapes, source.names)
    return plan, assignments


def _decide(
    name: str,
    shape: tuple[int, ...],
    source: Source,
    specs: Sequence[MixerSpec],
    parts: frozenset[str],
    moved: frozenset[str],
) -> tuple[TransferRow, Tensor | None]:
    part, spec = part_of(name), _spec_of(name, specs)
    shared: dict[str, Any] = {"target": name, "shape": shape, "part": part}
    found = source.tensors.get(name)
    stays = bool(parts) and spec is not None and is_kept(spec, source)
    wanted = part in parts or (stays and part in ("output", "qkv"))
    if found is None or not wanted or name in moved:
        return TransferRow(how="initialised", note=first_weights(name, spec), **shared), None
    if tuple(found.value.shape) == shape:
        row = TransferRow(
            how="mapped" if found.change else "copied",
            source=found.name,
            note=_note(name, found, spec, source),
            **shared,
        )
        return row, found.value
    if part == "qkv" and isinstance(spec, HeadsSpec):
        value = _repeated(found.value, source, spec)
        groups = spec.n_kv_heads // source.block.n_kv_heads
        words = f"{source.block.n_kv_heads} heads repeated {groups} times"
        note = "; ".join(filter(None, [found.change, words]))
        return TransferRow(how="repeated", source=found.name, note=note, **shared), value
    return TransferRow(how="initialised", note=first_weights(name, spec), **shared), None


def is_kept(spec: MixerSpec, source: Source) -> bool:
    """Whether a layer's mixer is the source's own attention."""
    if not isinstance(spec, SoftmaxHeadsSpec):
        return False
    return heads_of(spec) == (
        source.block.n_heads, source.block.n_kv_heads, source.block.head_dim
    )  # fmt: skip


def heads_of(spec: HeadsSpec) -> tuple[int, int, int]:
    """Query heads, key heads and channels of a head."""
    return spec.n_heads, spec.n_kv_heads, spec.head_dim


def _note(name: str, found: SourceTensor, spec: MixerSpec | None, source: Source) -> str:
    words = [found.change]
    if isinstance(spec, HeadsSpec) and spec.n_heads != source.block.n_heads:
        words.append(
            f"columns keep their places; {spec.n_heads} heads instead of {source.block.n_heads}"
        )
    is_rotated = bool(source.block.rotary_frequencies) and ".mixer.q." in name
    if isinstance(spec, HeadsSpec) and is_rotated and not spec.frequencies:
        words.append("without the source's rotation")
    return "; ".join(filter(None, words))


def _repeated(value: Tensor, source: Source, spec: HeadsSpec) -> Tensor:
    groups = spec.n_kv_heads // source.block.n_kv_heads
    by_head = value.unflatten(0, (source.block.n_kv_heads, -1))
    return by_head.repeat_interleave(groups, dim=0).flatten(0, 1)


def _check_qkv(source: Source, config: ConvertedConfig, spec: MixerSpec, index: int) -> None:
    name, block = config.layers[index]["mixer"], source.block
    where = f"Layer {index} ({name})"
    advice = "Keep the source's heads, or leave qkv out of copy (copy='paper')."
    if not isinstance(spec, HeadsSpec):
        raise ValueError(
            f"{where} has no queries, keys and values that the source's could become. "
            f"{_keeping(name)} Or leave qkv out of copy (copy='paper')."
        )
    if (spec.n_heads, spec.head_dim) != (block.n_heads, block.head_dim):
        raise ValueError(
            f"{where} has {spec.n_heads} heads of {spec.head_dim} channels, the source "
            f"{block.n_heads} of {block.head_dim}: copied rows of queries, keys and values would "
            f"change their roles. {advice}"
        )
    if spec.n_kv_heads % block.n_kv_heads:
        raise ValueError(
            f"{where} has {spec.n_kv_heads} key heads, the source {block.n_kv_heads}: they could "
            f"only be averaged, which loses some. {advice}"
        )


def _keeping(name: str) -> str:
    """What to choose instead of a mixer that has projections of its own."""
    if name in HEADS:
        return "Leave out projections: own."
    close = {"mamba2": "mamba2-heads"}.get(name, name.removeprefix("mh-"))
    if close in HEADS:
        return f"Choose {close!r}, the same sum behind the source's projections."
    return f"Choose a mixer that keeps the projections: {', '.join(HEADS)}."


def _dropped(
    source: Source, rows: Sequence[TransferRow], parts: frozenset[str], moved: frozenset[str]
) -> list[TransferRow]:
    used = {row.source for row in rows}
    reasons: dict[str, tuple[str, str]] = {}
    shapes = {row.target: row.shape for row in rows}
    for canonical, tensor in source.tensors.items():
        asked = part_of(canonical) in parts
        if canonical not in shapes:
            reason = "the mixer has no such tensor"
        elif canonical in moved:
            reason = "its norm stands elsewhere in the target's residual lines"
        elif asked:
            reason = f"the target's has another shape, {shapes[canonical]}"
        else:
            reason = "not asked for"
        reasons.setdefault(tensor.name, (reason, part_of(canonical)))
    return [
        TransferRow(
            how="dropped",
            target=None,
            shape=(source.names[name],),
            source=name,
            note=reasons[name][0],
            part=reasons[name][1],
        )
        for name in source.names
        if name not in used
    ]


def _moved_norms(config: ConvertedConfig) -> frozenset[str]:
    """Norms of layers whose residual lines are not the source's: they norm something else."""
    block = config.block_spec
    return frozenset(
        f"model.layers.{index}.{norm}_norm.{leaf}"
        for index, around in enumerate(config.layer_blocks())
        if around != block
        for norm in ("mixer", "mlp")
        for leaf in ("weight", "bias")
    )


def _spec_of(name: str, specs: Sequence[MixerSpec]) -> MixerSpec | None:
    if ".mixer." not in name:
        return None
    return specs[int(name.removeprefix("model.layers.").partition(".")[0])]
