"""The sizes of a layer written out from its config, where they cannot be read off a layer.

GPT-2's matrices are no `nn.Linear`, GPT-Neo's config allows no model of one layer, and of Mamba the
convolution and the scan are counted apart.
"""

from collections.abc import Callable

from transformers import PreTrainedConfig

from manticore.models.shape_types import LayerShape


def _gpt2(config: PreTrainedConfig) -> LayerShape:
    d = config.hidden_size
    d_ff = config.n_inner if config.n_inner is not None else 4 * d
    return LayerShape(
        matrices=((d, 3 * d, True), (d, d, True), (d, d_ff, True), (d_ff, d, True)),
        other_parameters=4 * d,
        final_norm=2 * d,
        attention_width=d,
        kv_width=d,
    )


def _gpt_neo(config: PreTrainedConfig) -> LayerShape:
    d = config.hidden_size
    d_ff = config.intermediate_size if config.intermediate_size is not None else 4 * d
    return LayerShape(
        matrices=(*[(d, d, False)] * 3, (d, d, True), (d, d_ff, True), (d_ff, d, True)),
        other_parameters=4 * d,
        final_norm=2 * d,
        attention_width=d,
        kv_width=d,
    )


def _mamba(config: PreTrainedConfig) -> LayerShape:
    d, channels, states = config.hidden_size, config.intermediate_size, config.state_size
    rank, bias = int(config.time_step_rank), config.use_bias
    conv_bias = channels if config.use_conv_bias else 0
    return LayerShape(
        matrices=(
            (d, 2 * channels, bias),
            (channels, rank + 2 * states, False),
            (rank, channels, True),
            (channels, d, bias),
        ),
        other_parameters=d + conv_bias + channels * states + channels,  # norm, bias, A, D
        final_norm=d,
        channels=channels,
        kernel=config.conv_kernel,
        states=states,
    )


FORMULAS: dict[str, Callable[[PreTrainedConfig], LayerShape]] = {
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "mamba": _mamba,
}
