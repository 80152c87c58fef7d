"""What may go wrong when a saved hybrid is loaded, said before a wrong model runs.

transformers fills weights that a checkpoint lacks with random numbers and drops those it does not
know. That is right for a classifier's layer, and for language heads where there is no use for
them; it is wrong for everything that the hybrid computes with.
"""

import copy
from typing import Any

# What a config fixes and weights were saved for; changing it on loading cannot be right.
STRUCTURE = (
    "num_blocks",
    "partition",
    "mixing",
    "vocab_size",
    "router",
    "own_embed_mixture",
    "own_head_mixture",
)
# Mamba's scan reads the matrix of dt_proj itself, heads are small errors' shortest way to the
# logits, and the hybrid's own maps are trained.
UNQUANTIZED = (
    "dt_proj",
    "lm_head",
    "embed_out",
    "heads",
    "score",
    r".*\btranslators\b.*",
    r".*\bprojectors\b.*",
    "router",
)


def check_options(name: str, options: dict[str, Any]) -> None:
    """Refuse what would change a saved hybrid's structure or read a pickle."""
    changed = [key for key in STRUCTURE if key in options]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} cannot be changed while loading {name!r}: its weights belong "
            "to the structure in its config.json. Build a new hybrid with from_components, or use "
            "prune and set_mixture on the loaded one."
        )
    if options.get("use_safetensors") is False:
        raise ValueError(
            f"use_safetensors=False for {name!r}: a pickle can run code when it is read, so "
            "Manticore reads safetensors only. Leave the option out."
        )


def check_loaded(name: str, info: dict[str, Any], allow_mismatch: bool) -> None:
    """Raise when weights do not fit, or when some are missing or left over.

    Args:
        info: transformers' loading information.
        allow_mismatch: the caller asked to draw weights of another shape anew.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched and not allow_mismatch:
        key, saved, expected = mismatched[0]
        raise ValueError(
            f"{len(mismatched)} weights of {name!r} have another shape than its config asks for: "
            f"{key} is {tuple(saved)} in the checkpoint and {tuple(expected)} in the model. Use "
            "the config.json that was saved with the weights (for a classifier with other labels: "
            "ignore_mismatched_sizes=True)."
        )
    for keys, problem in (
        (info["missing_keys"], "lacks {} weights of the hybrid, which would be random"),
        (info["unexpected_keys"], "holds {} weights that its config does not know"),
    ):
        may_differ = ("score",) if keys is info["missing_keys"] else ("score", "heads")
        wrong = sorted(key for key in keys if part_of(key) not in may_differ)
        if wrong:
            raise ValueError(
                f"The checkpoint {name!r} {problem.format(len(wrong))} (first: {wrong[0]}). Use "
                "the config.json that was saved with the weights, or save the hybrid again."
            )


def spare_from_quantization(options: dict[str, Any]) -> dict[str, Any]:
    """Loading options whose bitsandbytes config leaves the parts of `UNQUANTIZED` as they are."""
    quantization = options.get("quantization_config")
    if quantization is None or not hasattr(quantization, "llm_int8_skip_modules"):
        return options
    quantization = copy.deepcopy(quantization)
    skipped = [*(quantization.llm_int8_skip_modules or []), *UNQUANTIZED]
    quantization.llm_int8_skip_modules = list(dict.fromkeys(skipped))
    return {**options, "quantization_config": quantization}


def part_of(key: str) -> str:
    """The part of the hybrid that a weight's name belongs to: "components", "heads", ..."""
    return key.removeprefix("model.").split(".")[0]
