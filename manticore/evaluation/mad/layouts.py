"""Layouts to choose from: token mixers alone and striped with attention, in several sizes.

Poli et al., 2024 (arXiv:2403.17844), design by four changes: striping (attention in every n-th
block), more heads, more state, and mixtures of experts for the channels. A layout here is a choice
in each.
"""

from __future__ import annotations

from dataclasses import dataclass

from manticore.evaluation.mad.entry import Entry, entry_of_layers
from manticore.mixers.attention import AttentionSpec
from manticore.mixers.interface import MixerSpec
from manticore.models.architectures import architecture
from manticore.models.configuration_mixer_lm import layer_spec

SHARES = (0.0, 1 / 12, 0.25, 0.5, 1.0)
"""Of blocks with attention: none, 8 %, 25 %, 50 %, all."""
TOKEN_MIXERS = (
    "hyena",
    "mh-hyena",
    "mamba",
    "mh-gated-linear-attention",
    "gated-deltanet",
)
CHANNEL_MIXERS = ("swiglu", "moe-mlp")
ATTENTION = "mh-attention"
WHOLE_BLOCKS = ("mamba", "normed-mamba", "mamba2")
"""Token and channel mixer in one: two of them make a block (Gu and Dao, 2023)."""


@dataclass(frozen=True, kw_only=True)
class LayoutSpace:
    """The layouts that are proposed; words as in `manticore mad run --layers`."""

    token_mixers: tuple[str, ...] = TOKEN_MIXERS
    """Each with its settings, so that "mamba:d_state=32" expands a state."""
    channel_mixers: tuple[str, ...] = CHANNEL_MIXERS
    """Tried with every token mixer that needs one."""
    shares: tuple[float, ...] = SHARES
    """Shares of blocks that get attention."""
    blocks: int = 4
    """Pairs of a token mixer and a channel mixer."""
    attention: str = ATTENTION
    """The mixer of the striped blocks."""
    d_model: int = 128
    """Width."""

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks={self.blocks}: at least one block is needed.")
        for share in self.shares:
            if not 0 <= share <= 1:
                raise ValueError(f"{100 * share:g} % attention is not between 0 and 100 %.")
        if not (self.token_mixers and self.channel_mixers and self.shares):
            raise ValueError("Name at least one token mixer, one channel mixer and one share.")
        for word in (*self.token_mixers, self.attention):
            if _spec(word, self.d_model).kind != "token":
                raise ValueError(
                    f"{word!r} is a channel mixer: it does not look at other tokens. Name it with "
                    "--channel-mixers."
                )
        if not isinstance(_spec(self.attention, self.d_model), AttentionSpec):
            raise ValueError(
                f"attention={self.attention!r} is no attention. Choose mh-attention, attention, "
                "or one with a window."
            )


def propose(space: LayoutSpace) -> tuple[list[Entry], list[str]]:
    """All layouts of a space, each once, and what was left out.

    Returns:
        entries: the layouts.
        notes: shares that this many blocks cannot have.
    """
    entries: dict[tuple[str, ...], Entry] = {}
    notes: list[str] = []
    for share in space.shares:
        attended = share * space.blocks
        if abs(attended - round(attended)) > 1e-6:
            notes.append(
                f"{100 * share:.0f} % attention is no whole number of {space.blocks} blocks and "
                f"was left out; {_fitting(share)} blocks would do."
            )
            continue
        for token in space.token_mixers:
            for channel in space.channel_mixers:
                words = tuple(striped(token, channel, space.attention, space.blocks, share))
                if words not in entries:
                    entries[words] = entry_of_layers(words, space.d_model)
    return list(entries.values()), notes


def striped(token: str, channel: str, attention: str, blocks: int, share: float) -> list[str]:
    """The layers of one layout: attention ends every period of 1/share blocks."""
    attended = round(share * blocks)
    layers: list[str] = []
    for block in range(blocks):
        # Spread evenly, also where the share is no unit fraction.
        is_attended = (block + 1) * attended // blocks > block * attended // blocks
        if is_attended:
            layers += [attention, channel]
        elif token.partition(":")[0] in WHOLE_BLOCKS:
            layers += [token, token]
        else:
            layers += [token, channel]
    return layers


def _spec(word: str, d_model: int) -> MixerSpec:
    return layer_spec(architecture([word])[0], d_model)


def _fitting(share: float) -> int:
    """The smallest number of blocks of which a share is a whole number."""
    return next((n for n in range(1, 101) if abs(n * share - round(n * share)) < 1e-6), 100)
