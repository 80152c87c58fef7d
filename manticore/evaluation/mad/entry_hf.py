"""Models of entries that are Hugging Face configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_hf(
    config: Mapping[str, Any],
    vocab_size: int,
    is_autoencoder: bool,
    compat: str,
    generator: torch.Generator,
) -> nn.Module:
    """A fresh model of a configuration; for compression, the autoencoder around it."""
    from transformers import AutoModel, AutoModelForCausalLM

    from manticore.evaluation.mad.outside import drawn_from
    from manticore.models.configuration_mixer_lm import MixerLMConfig
    from manticore.models.mixer_autoencoder import MixerAutoEncoder

    built = hf_config(config, vocab_size)
    if not is_autoencoder:
        return drawn_from(generator, lambda: AutoModelForCausalLM.from_config(built))
    shell = MixerLMConfig(d_model=built.hidden_size, vocab_size=vocab_size, compat=compat)
    model: Any = MixerAutoEncoder(shell, generator)
    model.model = drawn_from(generator, lambda: AutoModel.from_config(built))
    return model


def hf_config(config: Mapping[str, Any], vocab_size: int) -> Any:
    """The configuration with the task's vocabulary, without dropout and without special tokens."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    values = {key: value for key, value in config.items() if key not in _DROPPED}
    model_type = values.pop("model_type", None)
    for key, value in values.items():
        if "drop" in key and isinstance(value, int | float):
            values[key] = 0.0  # as in every model of MAD
    # Nothing that the file names is ever imported: the type is looked up in transformers.
    if model_type not in CONFIG_MAPPING_NAMES:
        raise ValueError(f"transformers knows no model_type {model_type!r}. {_GIVE}")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{model_type!r} of transformers is no causal language model. {_GIVE}")
    try:
        built = AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ValueError(
            f"This is no configuration of {model_type!r}: {_one_line(error)}. Mend the file."
        ) from error
    built.vocab_size = vocab_size
    built.use_cache = False
    return built


_GIVE = "Give the config.json of a causal language model that transformers ships."
_DROPPED = (
    "auto_map", "architectures", "torch_dtype", "dtype", "vocab_size", "bos_token_id",
    "eos_token_id", "pad_token_id", "transformers_version", "_name_or_path", "use_cache",
)  # fmt: skip


def hf_costs(config: Mapping[str, Any], vocab_size: int, seq_len: int) -> dict[str, int | None]:
    """Parameters, and FLOPs where the family's formula is known."""
    import torch
    from transformers import AutoModelForCausalLM

    from manticore.models.costs import head_cost, layer_cost

    built = hf_config(config, vocab_size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    flops: int | None
    try:
        layers = layer_cost(built, 0, built.num_hidden_layers, seq_len)
        flops = layers.forward.total + head_cost(built).forward.total
    except ValueError:
        flops = None
    return {
        "parameters": model.num_parameters(),
        "state": None,
        "fixed_state": None,
        "flops_per_token": flops,
    }


def check_hf(name: str, config: Mapping[str, Any], longest: int) -> None:
    """Raise when a configuration's model cannot be built, is too short, or sees the future."""
    import torch

    from manticore.evaluation.mad.training_loss import logits_of
    from manticore.seeds import torch_generator

    limit = getattr(hf_config(config, 16), "max_position_embeddings", None)
    if limit is not None and limit < longest:
        raise ValueError(
            f"{name}: max_position_embeddings={limit} is shorter than the longest sequence of the "
            f"protocol, {longest}. Raise it in the configuration, or choose other tasks with "
            "--tasks."
        )
    try:
        model = build_hf(config, 16, False, "fixed", torch_generator(0)).eval()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{name}: its model cannot be built: {_one_line(error)}.") from error
    tokens = torch.arange(8).unsqueeze(0)
    later = tokens.clone()
    later[:, 5:] += 1
    with torch.no_grad():
        before, after = (logits_of(model(t, use_cache=False)) for t in (tokens, later))
    moved = (after - before).abs().amax(dim=(0, 2))  # (T,)
    # Fresh weights leak little of it, and rounding (by FFTs) moves far less than that.
    if moved[:5].max() > 1e-4 * moved[5:].max():
        raise ValueError(
            f"{name} is not causal: changing tokens 5 to 7 changed the output before them. Where "
            'the family has it, put "is_decoder": true into the configuration.'
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:300]
