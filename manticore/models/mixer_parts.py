"""The parts around the mixers: tables, norms, positions, and how their weights start."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import initialization as init

from manticore.mixers.interface import Mixer, MixerSpec
from manticore.models.configuration_mixer_lm import MixerLMConfig
from manticore.models.no_positions import NoPositions


class SinusoidalPositions(nn.Module):
    """Sines, then cosines, of the position at geometrically spaced frequencies.

    Vaswani et al., 2017 (arXiv:1706.03762), section 3.5, with the two halves side by side.
    """

    frequencies: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        steps = torch.arange(0, d_model, 2, dtype=torch.float32) / d_model
        self.register_buffer("frequencies", 10_000.0**-steps, persistent=False)

    def forward(self, position_ids: Tensor) -> Tensor:
        """(batch, seq) positions to (batch, seq, d_model)."""
        # Float32 whatever the model's dtype: in bfloat16 neighbouring positions become one.
        angles = position_ids.unsqueeze(-1).float() * self.frequencies.float()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def new_mixer(spec: MixerSpec, generator: torch.Generator | None) -> Mixer:
    """The mixer with its first weights, drawn in float32 whatever the default dtype.

    While Hugging Face loads a checkpoint it builds models on the meta device. Mixers are small, so
    they are built with numbers all the same: no mixer has to know of that device.
    """
    dtype, is_loading = torch.get_default_dtype(), torch.get_default_device().type == "meta"
    torch.set_default_dtype(torch.float32)
    try:
        if is_loading:  # numbers that the checkpoint replaces; leave the default generator alone
            with torch.device("cpu"):
                mixer = spec.build(torch.Generator().manual_seed(0))
        else:
            mixer = spec.build(generator)
    finally:
        torch.set_default_dtype(dtype)
    return mixer if dtype == torch.float32 else mixer.to(dtype)


def new_positions(config: MixerLMConfig, generator: torch.Generator | None) -> nn.Module:
    """What is added to the embeddings; nothing by default."""
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.hidden_size)
    if config.positions == "learned":
        assert config.max_position_embeddings is not None  # the config checks it
        return embedding(
            config.max_position_embeddings,
            config.hidden_size,
            config.initializer_range,
            generator,
        )
    return NoPositions()


def new_norm(config: MixerLMConfig) -> nn.Module:
    """A norm over the channels."""
    norm = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.norm_eps)


def embedding(rows: int, width: int, std: float, generator: torch.Generator | None) -> nn.Embedding:
    """A table of rows drawn from N(0, std)."""
    table = skip_init(nn.Embedding, rows, width, device=torch.get_default_device())
    assert isinstance(table, nn.Embedding)
    nn.init.normal_(table.weight, std=std, generator=_usable(generator, table.weight))
    return table


def linear(
    d_in: int, d_out: int, generator: torch.Generator | None, bias: object = True
) -> nn.Linear:
    """A linear map as torch draws it, from the generator, with a bias (if any) of zero.

    Torch's own is uniform in +-1/sqrt(d_in); athms/mad-lab zeroes its biases, and so do we.
    """
    has_bias = bias is not None and bias is not False
    layer = skip_init(nn.Linear, d_in, d_out, bias=has_bias, device=torch.get_default_device())
    assert isinstance(layer, nn.Linear)
    bound = d_in**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=_usable(generator, layer.weight))
    if has_bias:
        nn.init.zeros_(layer.bias)
    return layer


def positions_from(attention_mask: Tensor | None, past: int, hidden: Tensor) -> Tensor:
    """How many real tokens come before each new one: (B or 1, T)."""
    seq_len = hidden.shape[1]
    if attention_mask is None:
        return torch.arange(past, past + seq_len, device=hidden.device).unsqueeze(0)
    if attention_mask.dim() != 2 or attention_mask.shape[1] < seq_len:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; a mixer model takes (batch, "
            f"seq) with 1 at tokens and 0 at padding, and seq at least {seq_len}, the new tokens."
        )
    counts = attention_mask.long().cumsum(dim=1) - 1
    if attention_mask.shape[1] == seq_len:
        # A mask of the new tokens only: what came before was not padded.
        counts = counts + past
    return counts.clamp(min=0)[:, -seq_len:]


def mask_of_new_tokens(attention_mask: Tensor | None, hidden: Tensor) -> Tensor | None:
    """(B, T) bool, True at tokens; None where nothing is padding."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, -hidden.shape[1] :].bool()
    # Looking is free on a CPU; elsewhere it would wait for the device, and a mapped or traced
    # mask has no single answer.
    can_look = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and not torch._C._functorch.is_functorch_wrapped_tensor(mask) and mask.all():
        return None
    return mask


def has_real_weights(module: nn.Module) -> bool:
    """Whether the module was built with numbers, not on the meta device."""
    return not any(parameter.is_meta for parameter in module.parameters())


def mark_initialised(module: nn.Module) -> None:
    """Tell Hugging Face that these weights are drawn already."""
    for part in module.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]


def redraw(module: nn.Module, fresh: nn.Module) -> None:
    """Give a module the numbers of a fresh one, except where a checkpoint gave them."""
    drawn = dict([*fresh.named_parameters(), *fresh.named_buffers()])
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        init.copy_(tensor, drawn[name])


def _usable(generator: torch.Generator | None, tensor: Tensor) -> torch.Generator | None:
    # Tensors without numbers take no generator of a real device.
    return None if tensor.is_meta else generator
