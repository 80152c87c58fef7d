"""Load an exported folder in a process of its own and compare it with what the parent computed.

Run as a file, never imported: `python -P export_child.py FOLDER EXPECTED alone|with-manticore|fla`.
EXPECTED is a safetensors file with `input_ids` (rows, seq), `logits` (rows, seq, vocab_size) and
`tokens` (1, seq + new). Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class Blocker(MetaPathFinder):
    """Fails every import of Manticore, wherever it is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raise for Manticore; leave everything else to the finders behind."""
        if name.partition(".")[0] == "manticore":
            raise ImportError(f"{name} is blocked: this process checks what loads without it.")
        return None


def main(folder: str, expected: str, how: str) -> dict[str, object]:
    """Compare; returns what is printed."""
    if how == "alone":
        sys.meta_path.insert(0, Blocker())
    else:
        __import__("manticore")  # the one import that the model card asks for
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    if how == "fla":  # its own kernels need a GPU, so this is our reader
        from manticore.models.imports_fla import read_fla_model

        model = read_fla_model(folder).double()
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        ).eval()
    wanted = load_file(expected)
    prompt = wanted["input_ids"][:1]
    with torch.no_grad():
        logits = model(wanted["input_ids"]).logits
    new = wanted["tokens"].shape[1] - prompt.shape[1]
    length = {"max_new_tokens": new, "min_new_tokens": new}
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **length
    )
    if how == "alone":
        assert "manticore" not in sys.modules
    return {
        "class": type(model).__name__,
        "difference": (logits - wanted["logits"]).abs().max().item(),
        "largest": wanted["logits"].abs().max().item(),
        "same_tokens": bool(torch.equal(tokens, wanted["tokens"])),
        "new_tokens": new,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
