"""The parts of a model that a transfer copies or leaves.

XATL (arXiv:2404.02684) copies embeddings, norms, MLPs and the output projection.
"""

from __future__ import annotations

from collections.abc import Sequence

PARTS = ("embeddings", "norms", "mlp", "output", "qkv")
PRESETS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "no-output": ("embeddings", "norms", "mlp"),
    "paper": ("embeddings", "norms", "mlp", "output"),
    "all": PARTS,
}


def parts_of(copy: str | Sequence[str]) -> frozenset[str]:
    """The parts that a preset or a list names."""
    if isinstance(copy, str):
        if copy not in PRESETS:
            raise ValueError(
                f"copy={copy!r} is no preset. Known: {', '.join(PRESETS)}, or a list of "
                f"{', '.join(PARTS)}."
            )
        return frozenset(PRESETS[copy])
    unknown = sorted(set(copy) - set(PARTS))
    if unknown:
        raise ValueError(f"copy names {unknown[0]!r}. Known parts: {', '.join(PARTS)}.")
    return frozenset(copy)


def part_of(name: str) -> str:
    """The part that a tensor of a converted model belongs to."""
    if name.startswith(("model.embed_tokens.", "model.positions.", "lm_head.")):
        return "embeddings"
    module = name.removeprefix("model.").split(".", 2)[-1] if ".layers." in name else name
    if module.startswith(("mixer_norm.", "mlp_norm.", "model.norm.")):
        return "norms"
    for prefix, part in (("mlp.", "mlp"), ("mixer.output.", "output")):
        if module.startswith(prefix):
            return part
    is_qkv = module.split(".")[:2] in [["mixer", x] for x in ("q", "k", "v", "q_norm", "k_norm")]
    return "qkv" if is_qkv else "mixer"
