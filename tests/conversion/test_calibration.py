"""After calibration a new mixer is as loud as the source's attention, whatever was copied."""

import pytest
import torch

from manticore.conversion.calibration import rms
from manticore.conversion.observing import observe
from manticore.conversion.transfer import identity, transfer
from tests.conversion.models import LAYOUTS
from tests.models.tiny import tiny

SINGLE = [name for name in LAYOUTS if name not in ("attention", "some attention")]
IDS = torch.randint(3, 61, (4, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("copy", ["scratch", "no-output", "paper"])
@pytest.mark.parametrize("mixer", SINGLE)
@torch.no_grad()
def test_a_calibrated_mixer_is_as_loud_as_the_sources_attention(mixer, copy):
    source = tiny("llama")  # no bias, which is not scaled
    model, _ = transfer(source, LAYOUTS[mixer], copy=copy, calibration=IDS)
    for index, seen in enumerate(observe(identity(source), IDS)):
        # Heads that are each as large add up to a little more or less.
        here = rms(model.model.layers[index].mixer(seen.read)) / rms(seen.mixed)
        assert here == pytest.approx(1.0, rel=0.3)


@torch.no_grad()
def test_each_head_gets_the_size_of_the_same_head_of_the_source():
    source = tiny("gpt_neox")
    model, plan = transfer(source, "retention", copy="all", calibration=IDS)
    heads = []
    for layer in model.model.layers:
        layer.mixer.output.register_forward_pre_hook(lambda _, args: heads.append(args[0]))
    for index, seen in enumerate(observe(identity(source), IDS)):
        model.model.layers[index].mixer(seen.read)
        by_head = [
            x.unflatten(-1, (4, -1)).square().mean((0, 1, 3)) for x in (heads[-1], seen.heads)
        ]
        torch.testing.assert_close(*by_head, rtol=1e-4, atol=0)
    row = next(row for row in plan.rows if row.target == "model.layers.0.mixer.gain")
    assert row.note == "ones, scaled to the source's output"


@torch.no_grad()
def test_a_head_that_was_pruned_in_the_source_leaves_every_gain_finite():
    source = tiny("gpt_neox")
    width = source.config.hidden_size // source.config.num_attention_heads
    rows = source.gpt_neox.layers[0].attention.query_key_value
    for tensor in (rows.weight, rows.bias):
        tensor[2 * width : 3 * width] = 0  # the values of head 0
    model, _ = transfer(source, "retention", copy="all", calibration=IDS)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_scaled_copy_is_no_longer_called_copied():
    plans = [transfer(tiny("llama"), "rwkv6", calibration=ids)[1] for ids in (None, IDS)]
    rows = [r for p in plans for r in p.rows if r.target == "model.layers.0.mixer.output.weight"]
    assert [row.how for row in rows] == ["copied", "mapped"]
    assert [row.note for row in rows] == ["", "scaled to the source's output"]
    assert plans[0].inherited == plans[1].inherited


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (torch.tensor([3, 4]), r"shape \(2,\)\. Give \(batch, seq\)"),
        (torch.empty(0, 4, dtype=torch.long), r"shape \(0, 4\)\. Give \(batch, seq\)"),
        (torch.tensor([[0.5, 1.0]]), "whole numbers from 0 on"),
        (torch.tensor([[3, -1]]), "whole numbers from 0 on"),
    ],
)
def test_what_are_no_rows_of_tokens_is_refused(ids, says):
    with pytest.raises(ValueError, match=says):
        transfer(tiny("llama"), "retention", calibration=ids)
