"""What `transfer` says to arguments that are not what it takes."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from manticore import transfer
from tests.models.tiny import tiny


@pytest.mark.parametrize(
    ("target", "more", "says"),
    [
        (None, {}, "A layer is a mixer's name or a dictionary with one, not None"),
        ({"mixer": "retention", "use_gate": "no"}, {}, "'retention': use_gate='no' is not"),
        ({"mixer": "retention", "shortest_memory": "4"}, {}, "shortest_memory='4' is not"),
        ("retention", {"keep": 1}, r"keep=1 is no list of layers. Give one, as in keep=\[1\]"),
        ("retention", {"keep": "1"}, "keep names layer '1'; the source's are 0 to 3"),
        ("retention", {"keep": [-1]}, "keep names layer -1"),
        (
            "retention",
            {"calibration": {"input_ids": [[1]]}},
            "calibration is a dict. Give a tensor",
        ),
        ("retention", {"calibration": torch.arange(3)}, r"the shape \(3,\)"),
    ],
)
def test_wrong_arguments_say_what_to_give(target: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        transfer(tiny("llama"), target, **more)


def test_a_source_under_adapters_is_asked_to_merge_them() -> None:
    adapted = peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=2))
    with pytest.raises(ValueError, match=r"The source is a PeftModel\. .* merge adapters"):
        transfer(adapted, "retention")


def test_a_source_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="lies on the meta device"):
        transfer(tiny("llama").to("meta"), "retention")
