"""Layer-wise matching: what it is zero for, what it trains, and that it helps."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import torch

from manticore.config import recipes_root
from manticore.conversion.align import align_loss, converted_layers, mixer_parameters
from manticore.conversion.transfer import identity, transfer
from manticore.models.loading import load_component
from manticore.text.tokenizers import load_tokenizer
from tests.models.tiny import tiny

IDS = torch.arange(40).reshape(2, 20)


@pytest.mark.parametrize("match", ["mixers", "blocks"])
def test_attention_matches_its_teacher_exactly(match: str) -> None:
    teacher = identity(tiny("llama"))
    # The same layers under another name, so that they count as converted.
    wide = {"mixer": "sliding-attention", "window": 64}
    student, _ = transfer(tiny("llama"), wide, copy="all")
    with torch.no_grad():
        loss = align_loss(teacher, match)(student, {"input_ids": IDS})
    assert float(loss) < 1e-10


def test_a_student_that_gives_nothing_has_a_relative_error_of_one() -> None:
    teacher = identity(tiny("gpt_neox"))
    student, _ = transfer(tiny("gpt_neox"), "retention", keep=[1])
    assert converted_layers(student) == [0, 2, 3]
    with torch.no_grad():
        for index in converted_layers(student):
            student.model.layers[index].mixer.output.weight.zero_()
            student.model.layers[index].mixer.output.bias.zero_()
        loss = align_loss(teacher, "mixers")(student, {"input_ids": IDS})
    assert float(loss) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("changed", [{"projections": "own"}, {"rotary": False}])
def test_attention_that_is_not_the_sources_counts_as_converted(changed: dict[str, object]) -> None:
    layer = {"mixer": "attention", **changed}
    student, _ = transfer(tiny("gpt_neox"), layer, copy="paper", keep=[1])
    assert converted_layers(student) == [0, 2, 3]


def test_matching_trains_the_converted_mixers_and_nothing_else() -> None:
    teacher = identity(tiny("gpt_neox")).requires_grad_(False)
    student, _ = transfer(tiny("gpt_neox"), "retention", copy="all", keep=[1])
    named = dict(student.named_parameters())
    trained = {id(p) for p in mixer_parameters(student)}
    mixers = {n for n in named if ".mixer." in n and ".layers.1." not in n}
    assert {n for n, p in named.items() if id(p) in trained} == mixers

    loss_of = align_loss(teacher, "mixers")
    before = {name: p.clone() for name, p in named.items()}
    optimizer = torch.optim.Adam(mixer_parameters(student), lr=3e-3)
    first = loss_of(student, {"input_ids": IDS}).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(student, {"input_ids": IDS}).backward()
        optimizer.step()
    assert loss_of(student, {"input_ids": IDS}).item() < 0.7 * first
    changed = {name for name, p in named.items() if not torch.equal(p, before[name])}
    assert changed == mixers


def test_thirty_steps_take_45_percent_off_the_error_beside_a_real_teacher() -> None:
    """The zoo's transformer into retention with its queries, keys and values, on unseen text."""
    folder = recipes_root() / "zoo" / "neox-prose"
    source = load_component(folder, dtype=torch.float32)
    teacher = identity(source).requires_grad_(False)
    ids = prose_rows(folder, 31 * 4)  # (rows, 64)
    student, _ = transfer(source, "retention", copy="all", calibration=ids[:16])
    parameters, loss_of = mixer_parameters(student), align_loss(teacher, "mixers")
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95))
    with torch.no_grad():
        before = loss_of(student, {"input_ids": ids[-4:]}).item()
    for batch in ids[:-4].split(4):
        optimizer.zero_grad()
        loss_of(student, {"input_ids": batch}).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        after = loss_of(student, {"input_ids": ids[-4:]}).item()
    assert after <= 0.55 * before


def prose_rows(folder: Path, count: int) -> torch.Tensor:
    """Rows of 64 tokens from evenly spaced places of a novel, (count, 64)."""
    with lzma.open(folder.parent / "texts" / "prose" / "moby-dick.txt.xz", "rt") as file:
        text = file.read()
    tokenizer = load_tokenizer(folder)
    starts = [len(text) * (2 * row + 1) // (2 * count) - 600 for row in range(count)]
    return torch.tensor([tokenizer.encode(text[at : at + 600])[:64] for at in starts])
