"""The table of model families: where a Hugging Face base model keeps the parts we need.

A family counts as supported when its rows in the shared checks pass (`tests/models`). Adding one
takes a row here, tiny configurations in those checks, and sometimes a formula for its costs:
CONTRIBUTING.md, "Add a model family".
"""

import difflib
import math
from typing import Any

from transformers import PreTrainedConfig

from manticore.models.family import Family
from manticore.models.mixer_cache import mixer_cache_layers


def _stop_rescaling(view: Any) -> None:
    """Keep RWKV from halving weights in place when it is first run in eval mode."""
    every = view.config.rescale_every
    if view.layers_are_rescaled and 0 < every <= max(block.layer_id for block in view.blocks):
        raise ValueError(
            f"This rwkv was run by transformers in eval mode with rescale_every={every}, which "
            "halved weights in place. Load it again, and set config.rescale_every = 0 before "
            "running it outside of a hybrid."
        )
    view.config.__dict__["rescale_every"] = 0


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="gpt_neox",
            layers="layers",
            final_norm="final_layer_norm",
            entry_dropout="emb_dropout",
            layer_cache="layer_past",
            rotary="rotary_emb",
        ),
        *(
            Family(
                model_type=model_type,
                layers="layers",
                final_norm="norm",
                layer_cache="past_key_values",
                rotary="rotary_emb",
            )
            for model_type in (
                "llama",
                "apertus",
                "arcee",
                "cohere",
                "cohere2",
                "ernie4_5",
                "exaone4",
                "gemma",
                "glm",
                "glm4",
                "helium",
                "mistral",
                "mixtral",
                "olmo",
                "olmo2",
                "olmoe",
                "phi3",
                "qwen2",
                "qwen3",
                "qwen3_moe",
                "seed_oss",
                "smollm3",
                "stablelm",
            )
        ),
        *(
            Family(
                model_type=model_type,
                layers="layers",
                final_norm="norm",
                entry_multiplier="embedding_multiplier",
                layer_cache="past_key_values",
                rotary="rotary_emb",
            )
            for model_type in ("granite", "granitemoe")
        ),
        Family(
            model_type="starcoder2",
            layers="layers",
            final_norm="norm",
            entry_dropout_rate="embedding_dropout",
            layer_cache="past_key_values",
            rotary="rotary_emb",
        ),
        # Two rotary tables and two masks, by kind of layer: left to the base model.
        Family(model_type="gemma2", layers="layers", final_norm="norm"),
        Family(model_type="gemma3_text", layers="layers", final_norm="norm"),
        Family(model_type="olmo3", layers="layers", final_norm="norm"),
        Family(
            model_type="phi",
            layers="layers",
            final_norm="final_layernorm",
            entry_dropout="embed_dropout",
            head_bias=True,
            layer_cache="past_key_values",
            rotary="rotary_emb",
        ),
        Family(model_type="falcon", layers="h", final_norm="ln_f"),
        *(
            Family(
                model_type=model_type,
                layers="h",
                final_norm="ln_f",
                entry_dropout="drop",
                head_bias=True,
                has_table_of_angles=True,
            )
            for model_type in ("gptj", "codegen")
        ),
        Family(
            model_type="gpt2",
            layers="h",
            final_norm="ln_f",
            position_table="wpe",
            entry_dropout="drop",
            layer_cache="past_key_values",
        ),
        Family(
            model_type="gpt_bigcode",
            layers="h",
            final_norm="ln_f",
            position_table="wpe",
            entry_dropout="drop",
            layer_cache="layer_past",
        ),
        Family(
            model_type="gpt_neo",
            layers="h",
            final_norm="ln_f",
            position_table="wpe",
            entry_dropout="drop",
        ),
        Family(
            model_type="opt",
            inner="decoder",
            layers="layers",
            final_norm="final_layer_norm",  # None in the models that norm behind each layer
            position_table="embed_positions",
            position_argument="position_ids",
            position_offset=2,
            layer_cache="past_key_values",
        ),
        Family(
            model_type="mamba",
            layers="layers",
            final_norm="norm_f",
            layer_cache="cache_params",
            float32_logits=True,
            is_recurrent=True,
            restarts_state=True,
        ),
        Family(
            model_type="mamba2",
            layers="layers",
            final_norm="norm_f",
            float32_logits=True,
            is_recurrent=True,
        ),
        Family(
            model_type="falcon_mamba",
            layers="layers",
            final_norm="norm_f",
            float32_logits=True,
            is_recurrent=True,
            restarts_state=True,
        ),
        Family(
            model_type="rwkv",
            layers="blocks",
            final_norm="ln_out",
            is_recurrent=True,
            no_cache="transformers' rwkv ignores padding masks and decodes batches with a cache "
            "wrongly (its token shift mixes the rows)",
            prepare_view=_stop_rescaling,
        ),
        Family(
            model_type="jamba", layers="layers", final_norm="final_layernorm", restarts_state=True
        ),
        Family(model_type="bamba", layers="layers", final_norm="final_layernorm"),
        Family(
            model_type="granitemoehybrid",
            layers="layers",
            final_norm="norm",
            entry_multiplier="embedding_multiplier",
        ),
        Family(
            model_type="falcon_h1",
            layers="layers",
            final_norm="final_layernorm",
            entry_multiplier="embedding_multiplier",
        ),
        Family(model_type="nemotron_h", layers="layers", final_norm="norm_f", float32_logits=True),
        Family(model_type="lfm2", layers="layers", final_norm="embedding_norm"),
        Family(model_type="qwen3_next", layers="layers", final_norm="norm"),
        Family(model_type="olmo_hybrid", layers="layers", final_norm="norm"),
        Family(model_type="kimi_linear", layers="layers", final_norm="norm"),
        Family(
            model_type="manticore_mixers",
            layers="layers",
            final_norm="norm",
            position_table="positions",
            layer_cache="past_key_values",
            own_cache_layers=mixer_cache_layers,
        ),
        Family(
            model_type="manticore_converted",
            layers="layers",
            final_norm="norm",
            position_table="positions",
            layer_cache="past_key_values",
            own_cache_layers=mixer_cache_layers,
        ),
    )
}

WITHOUT_A_ROW = {
    "bloom": "a norm stands between its embeddings and its first layer, which belongs to no range "
    "of layers. Use a falcon with ALiBi (Falcon-RW), which has the same positions.",
    "recurrent_gemma": "its recurrent state lives in its modules instead of a cache, so that beam "
    "search and a second sequence would see the state of the first. For linear recurrences "
    "beside local attention use a hybrid of mamba2 or qwen3_next with gemma2.",
    "xlstm": "it keeps a cache of its own kind that no other component can share, and outside of "
    "training runs long sequences in pieces without gradients. Use qwen3_next, whose memory is a "
    "matrix as well.",
    "zamba2": "its shared attention block reads the embeddings again at many depths, so that its "
    "layers cannot be cut into ranges that hand on one stream. Use bamba, nemotron_h or "
    "granitemoehybrid, which have the same Mamba-2 layers.",
}
"""Families of transformers that we know and refuse, and why."""


class UnsupportedFamilyError(ValueError):
    """A model whose family has no row in the table."""


_FORGET_LIMIT = ("mamba2", "bamba", "granitemoehybrid", "falcon_h1")
"""Families whose cached step in transformers leaves out the limit of the time step."""


def check_supported(config: PreTrainedConfig) -> Family:
    """The row of a config's family; raises `UnsupportedFamilyError` when there is none."""
    # Read past the config's own __getattribute__, which is slow and asked for at every call.
    family = FAMILIES.get(type(config).model_type)
    if family is None:
        raise UnsupportedFamilyError(unsupported_message(config.model_type))
    if family.model_type == "lfm2" and config.conv_bias:
        raise UnsupportedFamilyError(
            "This lfm2 has conv_bias=True, and transformers lets padding leak through that bias. "
            "Published LFM2 models have none; use one of them."
        )
    if family.model_type == "opt" and config.word_embed_proj_dim != config.hidden_size:
        raise UnsupportedFamilyError(
            f"This opt embeds tokens in {config.word_embed_proj_dim} dimensions and projects them "
            f"to its width of {config.hidden_size}; a component's table and head must have the "
            "width of its layers. Of the published sizes only opt-350m is built so: use another."
        )
    if config.__dict__.get("sliding_window") == 1:
        raise UnsupportedFamilyError(
            f"This {config.model_type} has sliding_window=1: each token would see itself alone, "
            "and transformers' cache then keeps every token instead of none. Use a window of 2 or "
            "more, or None."
        )
    limit = config.__dict__.get("time_step_limit")
    if limit is not None and family.model_type in _FORGET_LIMIT and tuple(limit) != (0, math.inf):
        raise UnsupportedFamilyError(
            f"This {config.model_type} has time_step_limit={list(limit)}, which transformers "
            "leaves out when it decodes with a cache. Published models have no limit; use one of "
            "them."
        )
    if config.__dict__.get("add_cross_attention", False):
        raise UnsupportedFamilyError(
            f"This {config.model_type} has add_cross_attention=True: it is the decoder of an "
            "encoder-decoder model. Only decoder-only language models can be components."
        )
    return family


def unsupported_message(model_type: object) -> str:
    """What to tell someone whose model has no row."""
    if isinstance(model_type, str) and model_type in WITHOUT_A_ROW:
        return f"Model family {model_type!r} is not supported: {WITHOUT_A_ROW[model_type]}"
    known = sorted(FAMILIES)
    close = difflib.get_close_matches(str(model_type), known, n=1, cutoff=0.75)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"Model family {model_type!r} is not supported.{hint} Known: {', '.join(known)}. "
        "Choose a component of one of these families, or add a row to "
        "manticore/models/families.py (CONTRIBUTING.md, 'Add a model family')."
    )
