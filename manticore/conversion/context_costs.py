"""What a token costs teacher and students as the context grows: FLOPs, and bytes of the cache.

By the formulas of `models.costs`, so nothing runs. FLOPs are those of a forward pass over a text of
that length, per token of it. Bytes are those of one sequence while it is generated: keys and values
in bfloat16, states in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from manticore.config.transfer_recipe import StudentConfig
from manticore.conversion.configuration_converted import ConvertedConfig
from manticore.conversion.reading import read_source
from manticore.conversion.transfer import converted_config
from manticore.models.costs import cache_bytes, component_cost

LENGTHS = (128, 512, 2_048, 8_192, 32_768)


def context_costs(source: PreTrainedModel, rows: Sequence[StudentConfig]) -> dict[str, Any]:
    """The teacher and every layout that a row has, once, as plain values for a record."""
    read = read_source(source)
    configs = {"teacher": converted_config(read, "attention")}
    configs |= {row.id: converted_config(read, row.target, row.keep) for row in rows}
    layouts: list[tuple[ConvertedConfig, list[str]]] = []
    for name, config in configs.items():
        alike = [names for known, names in layouts if known.layers == config.layers]
        if alike:
            alike[0].append(name)
        else:
            layouts.append((config, [name]))
    return {"lengths": list(LENGTHS), "layouts": [_costs(*layout) for layout in layouts]}


def _costs(config: ConvertedConfig, rows: list[str]) -> dict[str, Any]:
    return {
        "rows": rows,
        "layers": [layer["mixer"] for layer in config.layers],
        "flops_per_token": [component_cost(config, n).forward.total for n in LENGTHS],
        "cache_bytes": [cache_bytes(config, n, torch.bfloat16).total for n in LENGTHS],
    }
