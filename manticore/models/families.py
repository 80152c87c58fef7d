"""The table of model families: where a Hugging Face base model keeps the parts we need.

A family counts as supported when its rows in the shared checks pass (`tests/models`). Adding one
takes a row here, tiny configurations in those checks, and sometimes a formula for its costs:
CONTRIBUTING.md, "Add a model family".
"""

from typing import Any

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
