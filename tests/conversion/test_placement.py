"""Which layers stay attention: scores that find a planted layer, on a budget that is kept."""

import json

import pytest
import torch

from manticore.conversion.placement import (
    METHODS,
    compare_placements,
    placement_lines,
    placement_record,
)
from manticore.conversion.placement_budget import (
    CacheBudget,
    LayerBytes,
    evenly_spaced,
    fill,
    first_and_middle,
)
from manticore.conversion.placement_scores import (
    Variant,
    fidelities,
    restore_one_scores,
    restored,
    zero_ablation_scores,
)
from manticore.conversion.transfer import identity, transfer
from manticore.models.costs import cache_bytes
from tests.models.tiny import tiny, token_ids

PLANTED = 3


def planted_teacher(layer=PLANTED):
    """A Llama in which the attention of one layer alone says anything."""
    model = tiny("llama")
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            if index != layer:
                block.self_attn.o_proj.weight.zero_()
    return model


def text(model, count=2, seed=0, seq_len=24):
    """Batches of random tokens."""
    batches = (token_ids(model, 3, seq_len, seed=seed + index) for index in range(count))
    return [{"input_ids": ids, "labels": ids.clone()} for ids in batches]


def one_layer_of(model, context):
    """A budget for one attention layer beside retention."""
    with_one, _ = transfer(model, "retention", keep=[0])
    total = cache_bytes(with_one.config, context, torch.bfloat16).total
    return CacheBudget(max_bytes=total, context=context)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("measure", ["kl", "loss"])
def test_both_scores_find_the_layer_that_alone_matters(layer, measure):
    source = planted_teacher(layer)
    teacher, batches = identity(source), text(source)
    student, _ = transfer(source, "retention", copy="all", calibration=batches[0]["input_ids"])
    ablated = zero_ablation_scores(teacher, batches, measure)
    restoring = restore_one_scores(teacher, student, batches, measure)
    for scores in (ablated, restoring):
        assert [i for i, score in enumerate(scores) if score != 0] == [layer]
    if measure == "kl":  # of random text the loss may rise or fall; a divergence only rises
        assert ablated[layer] > 0.05
        assert restoring[layer] > 0.01


def test_restoring_the_only_layer_that_matters_gives_the_teacher_back():
    source = planted_teacher()
    teacher, batches = identity(source), text(source)
    student, _ = transfer(source, "retention", copy="all")
    none, one = fidelities(
        teacher, [Variant(student), restored(teacher, student, [PLANTED])], batches
    )
    assert one.kl == 0
    assert none.kl > 0.01


def test_loss_and_divergence_equal_torchs():
    source = tiny("gpt_neox")
    teacher, batches = identity(source), text(source, count=1)
    student, _ = transfer(source, "deltanet", copy="all")
    [found] = fidelities(teacher, [Variant(student)], batches)
    ids = batches[0]["input_ids"]
    with torch.no_grad():
        expected = student(ids, labels=ids).loss.item()
        p, q = (m(ids).logits[:, :-1].log_softmax(-1).flatten(0, 1) for m in (teacher, student))
    kl = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True).item()
    assert found.loss == pytest.approx(expected, abs=1e-6)
    assert found.kl == pytest.approx(kl, abs=1e-6)


def test_padding_and_unscored_tokens_do_not_count():
    source = tiny("gpt_neox")
    teacher = identity(source)
    student, _ = transfer(source, "retention", copy="all")
    ids = token_ids(source, 2, 12)
    padded = torch.cat([torch.full((2, 5), 2), ids], 1)
    mask = torch.cat([torch.zeros(2, 5, dtype=torch.long), torch.ones_like(ids)], 1)
    labels = padded.masked_fill(mask == 0, -100)
    labels[:, 5] = -100  # nothing comes before it in the batch without padding
    batches = [{"input_ids": padded, "labels": labels, "attention_mask": mask}]
    [with_padding] = fidelities(teacher, [Variant(student)], batches)
    [without] = fidelities(teacher, [Variant(student)], [{"input_ids": ids, "labels": ids}])
    assert with_padding.loss == pytest.approx(without.loss, abs=1e-5)
    assert with_padding.kl == pytest.approx(without.kl, abs=1e-5)


def test_exchanged_mixers_come_back_even_after_an_error():
    model = identity(tiny("llama"))
    mixers = [layer.mixer for layer in model.model.layers]
    with pytest.raises(RuntimeError), Variant(model, {1: torch.nn.Identity()}).in_place():
        assert model.model.layers[1].mixer is not mixers[1]
        raise RuntimeError
    assert [layer.mixer for layer in model.model.layers] == mixers


def test_on_one_budget_scores_choose_better_than_fixed_places():
    source = planted_teacher()
    budget = one_layer_of(source, 64)
    placements = compare_placements(
        source, "retention", text(source), budget, test_batches=text(source, seed=100)
    )
    table = {p.method: p for p in placements}
    assert list(table) == list(METHODS)
    assert {m: p.attention for m, p in table.items()} == {
        "none": (), "uniform": (2,), "first-middle": (1,), "zero-ablation": (3,),
        "restore-one": (3,),
    }  # fmt: skip
    assert len({p.cache_bytes for p in placements[1:]}) == 1
    assert table["restore-one"].kl == table["zero-ablation"].kl == 0
    assert table["uniform"].kl == table["first-middle"].kl == table["none"].kl > 0.01
    assert len(table["restore-one"].scores) == 4
    # The teacher, the model as it was, and four variants, on 2 batches of 3 x 24 tokens.
    assert table["restore-one"].scoring_tokens == 6 * 144
    json.dumps(placement_record(placements, budget))
    lines = placement_lines(placements)
    assert lines[-1].endswith("    864 tokens  3")
    assert lines[1].endswith("-  none")


@pytest.mark.parametrize("target", ["retention", {"mixer": "mamba2", "head_dim": 8}])
def test_counted_bytes_are_those_of_the_model_that_transfer_then_builds(target):
    source = tiny("llama")
    budget = CacheBudget(max_bytes=10**9, context=100)
    config = transfer(source, target)[0].config
    for kept in ((), (1,), (0, 3), (0, 1, 2, 3)):
        built, _ = transfer(source, target, keep=kept)
        counted = cache_bytes(built.config, 100, torch.bfloat16).total
        assert LayerBytes.of(config, budget).total(kept) == counted


def test_a_student_that_was_aligned_elsewhere_is_the_one_that_is_measured():
    source = tiny("llama")
    student, _ = transfer(source, "retention", copy="all", seed=5)
    with torch.no_grad():
        student.model.layers[2].mixer.output.weight.mul_(30)  # the layer to be restored
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    placements = compare_placements(
        source, "retention", text(source), one_layer_of(source, 64),
        methods=["restore-one"], student=student,
    )  # fmt: skip
    assert placements[0].attention == (2,)
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())


@pytest.mark.parametrize(
    ("n_layers", "count", "expected"),
    [(4, 0, ()), (4, 1, (2,)), (4, 2, (1, 3)), (4, 4, (0, 1, 2, 3)), (24, 2, (6, 18)),
     (5, 3, (0, 2, 4))],
)  # fmt: skip
def test_layers_are_spaced_evenly(n_layers, count, expected):
    assert evenly_spaced(n_layers, count) == expected


@pytest.mark.parametrize(
    ("n_layers", "expected"), [(24, (1, 11)), (16, (1, 7)), (4, (1,)), (2, (1, 0)), (1, ())]
)
def test_first_and_middle_are_the_papers(n_layers, expected):
    assert first_and_middle(n_layers) == expected


def test_a_layer_that_does_not_fit_leaves_room_for_one_that_does():
    sizes = LayerBytes(kept=(100, 30, 30), converted=(10, 10, 10))
    budget = CacheBudget(max_bytes=75, context=8)
    assert fill([0, 2, 1], sizes, budget) == (1, 2)  # windows make layers differ in size
    assert fill([0], sizes, budget) == ()


def test_everything_fits_a_budget_for_everything():
    source = tiny("llama")
    batches = text(source, count=1)
    budget = CacheBudget(max_bytes=10**9, context=64)
    placements = compare_placements(source, "retention", batches, budget, methods=["uniform"])
    assert placements[0].attention == (0, 1, 2, 3)
    assert placements[0].kl == 0


def test_a_budget_that_no_layout_meets_is_refused_with_what_would():
    source = tiny("llama")
    least = cache_bytes(transfer(source, "retention")[0].config, 64, torch.bfloat16).total
    budget = CacheBudget(max_bytes=least - 1, context=64)
    with pytest.raises(ValueError, match=rf"No layout .* 64 tokens within .* holds {least:,}"):
        compare_placements(source, "retention", text(source), budget)
    exact = CacheBudget(max_bytes=least, context=64)
    [only] = compare_placements(source, "retention", text(source), exact, methods=["uniform"])
    assert only.attention == ()


def test_bad_arguments_are_refused():
    source = tiny("llama")
    batches, budget = text(source), CacheBudget(max_bytes=10**9, context=64)
    with pytest.raises(ValueError, match="must be some of none, uniform"):
        compare_placements(source, "retention", batches, budget, methods=["search"])
    with pytest.raises(ValueError, match="must be kl or loss"):
        compare_placements(source, "retention", batches, budget, measure="mse")
    mixed = ["retention", "attention", "retention", "retention"]
    with pytest.raises(ValueError, match="target keeps attention in layer 1"):
        compare_placements(source, mixed, batches, budget)
    other, _ = transfer(source, "deltanet")
    with pytest.raises(ValueError, match="not what target says"):
        compare_placements(source, "retention", batches, budget, student=other)
    with pytest.raises(ValueError, match="no token to score"):
        compare_placements(source, "retention", [], budget)
    with pytest.raises(ValueError, match="context=0"):
        CacheBudget(max_bytes=1, context=0)


def test_text_in_another_vocabulary_is_refused():
    source = tiny("llama")  # 61 tokens
    batches = [{"input_ids": torch.tensor([[3, 61]]), "labels": torch.tensor([[3, 61]])}]
    budget = CacheBudget(max_bytes=10**9, context=64)
    with pytest.raises(ValueError, match=r"token 61, .* ends at 60.*source's own tokenizer"):
        compare_placements(source, "retention", batches, budget)


def test_a_model_with_broken_weights_is_refused():
    source = tiny("llama")
    student, _ = transfer(source, "retention", copy="all")
    with torch.no_grad():
        student.model.layers[0].mixer.gain.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        restore_one_scores(identity(source), student, text(source))
