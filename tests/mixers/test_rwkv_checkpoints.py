"""Published RWKV checkpoints, run by a model of our mixers, give the logits published with them.

The logits are those of rwkv.cpp's own tests: after the prompt `"in`, byte by byte.
"""

import os
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from manticore.mixers.rwkv5 import RWKV5Spec
from manticore.mixers.rwkv7 import RWKV7Spec
from manticore.mixers.rwkv_channel import RWKVChannelSpec

FOLDER = Path(os.environ.get("MANTICORE_SHARED_DATA", "absent")) / "ckpt-tiny-rwkv"
FILES = {5: "tiny-rwkv-5v2-730K", 7: "tiny-rwkv-7v0-834K"}
LOGITS = {5: "expected-logits-5v2-730K.bin", 7: "expected-logits-7v0-834K.bin"}
PROMPT = list(b'"in')

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="MANTICORE_SHARED_DATA does not hold ckpt-tiny-rwkv"
)


class TinyRWKV(torch.nn.Module):
    """A whole RWKV for a published checkpoint: norms, heads and tables here, the rest is ours."""

    def __init__(self, version):
        super().__init__()
        self.version = version
        self.weights = load_file(FOLDER / f"{FILES[version]}.safetensors")
        self.d_model = self.weights["emb.weight"].shape[1]
        n_layers = 1 + max(int(k.split(".")[1]) for k in self.weights if k.startswith("blocks."))
        self.time = torch.nn.ModuleList(self._time_mixer(i, n_layers) for i in range(n_layers))
        self.channel = torch.nn.ModuleList(
            self._channel_mixer(i, n_layers) for i in range(n_layers)
        )

    def forward(self, ids, states=None):
        """Logits (batch, seq, vocab) and the states after the last token."""
        x = self._norm("blocks.0.ln0", self.weights["emb.weight"][ids])
        states = [(None, None)] * len(self.time) if states is None else states
        after, first_value = [], None
        for i, (time, channel) in enumerate(zip(self.time, self.channel, strict=True)):
            mixed = self._norm(f"blocks.{i}.ln1", x)
            if self.version == 7:
                mixed, value, time_state = time.prefill_with_value(mixed, first_value, states[i][0])
                first_value = value if i == 0 else first_value
            else:
                mixed, time_state = time.prefill(mixed, states[i][0])
            x = x + mixed
            mixed, channel_state = channel.prefill(self._norm(f"blocks.{i}.ln2", x), states[i][1])
            x = x + mixed
            after.append((time_state, channel_state))
        return self._norm("ln_out", x) @ self.weights["head.weight"].T, after

    def _norm(self, name, x):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, (self.d_model,), weight, bias)

    def _part(self, prefix):
        return {
            name.removeprefix(prefix): value
            for name, value in self.weights.items()
            if name.startswith(prefix)
        }

    def _time_mixer(self, layer, n_layers):
        old = self._part(f"blocks.{layer}.att.")
        names = ("receptance", "key", "value", "output")
        new = {f"{name}.weight": old.pop(f"{name}.weight") for name in names}
        new |= {f"norm.{name}": old.pop(f"ln_x.{name}") for name in ("weight", "bias")}
        place = {"d_model": self.d_model, "layer_index": layer, "n_layers": n_layers}
        if self.version == 5:
            # rwkv.cpp's norm has 1e-5 where the authors' code has 64e-5, and so have its logits.
            spec = RWKV5Spec(**place, head_size=old["time_decay"].shape[1], norm_eps=1e-5)
            new["gate.weight"] = old.pop("gate.weight")
            new["blend"] = torch.stack([old.pop(f"time_mix_{name}") for name in "rkvg"])
            # The file holds the decay itself.
            new["decay"] = old.pop("time_decay").flatten().log().neg().log()
            new["bonus"] = old.pop("time_faaaa").flatten()
        else:
            n_heads = old["r_k"].shape[0]
            spec = RWKV7Spec(
                **place,
                head_size=self.d_model // n_heads,
                gate_rank=old["g1"].shape[0],
                value_residual=layer > 0,
            )
            new["blend"] = old.pop("x_rwkvag").squeeze(1)
            parts = {"w": "decay", "a": "replace", "g": "gate"} | (
                {"v": "value_share"} if layer else {}
            )
            for letter, name in parts.items():
                new[f"{name}.down.weight"] = old.pop(f"{letter}1")
                new[f"{name}.up.weight"] = old.pop(f"{letter}2")
                if letter != "g":
                    new[f"{name}.bias"] = old.pop(f"{letter}0").flatten()
            scales = {"k_k": "removal_scale", "k_a": "replace_scale", "r_k": "bonus"}
            new |= {name: old.pop(letters).flatten() for letters, name in scales.items()}
        return _loaded(spec.build(), new, old)

    def _channel_mixer(self, layer, n_layers):
        old = self._part(f"blocks.{layer}.ffn.")
        inner = old["key.weight"].shape[0]
        new = {f"{name}.weight": old.pop(f"{name}.weight") for name in ("key", "value")}
        if self.version == 5:
            new["receptance.weight"] = old.pop("receptance.weight")
            new["blend_key"] = old.pop("time_mix_k")
            new["blend_receptance"] = old.pop("time_mix_r")
        else:
            new["blend_key"] = old.pop("x_k").flatten()
        spec = RWKVChannelSpec(
            d_model=self.d_model, version=self.version, expand=inner / self.d_model
        )
        return _loaded(spec.build(), new, old)


def _loaded(mixer, new, left_over):
    mixer.load_state_dict(new)  # strict: every weight of ours is set
    assert not left_over, left_over  # and every weight of the file is used
    return mixer


@torch.no_grad()
@pytest.mark.parametrize("version", [5, 7])
def test_a_published_checkpoint_gives_its_published_logits(version):
    model = TinyRWKV(version)
    expected = torch.from_numpy(numpy.fromfile(FOLDER / LOGITS[version], dtype=numpy.float32))
    at_once, _ = model(torch.tensor([PROMPT]))
    states = None
    for byte in PROMPT:
        logits, states = model(torch.tensor([[byte]]), states)
    # Twelve layers in float32, in another order of sums than theirs.
    torch.testing.assert_close(at_once[0, -1], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[0, -1], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("version", [5, 7])
def test_chunks_give_the_logits_that_steps_give_on_a_long_text(version):
    model = TinyRWKV(version)
    text = torch.randint(0, 256, (1, 130), generator=torch.Generator().manual_seed(0))
    at_once, _ = model(text)
    states, one_by_one = None, []
    for t in range(text.shape[1]):
        logits, states = model(text[:, t : t + 1], states)
        one_by_one.append(logits)
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), at_once, rtol=1e-4, atol=1e-4)
