"""lm-evaluation-harness scores hybrids and converted models offline, on tasks of a local folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from manticore import transfer
from tests.hybrids.pairs import build, member, random_rows

pytest.importorskip("lm_eval")

ZOO_TOKENIZER = Path(__file__).parents[2] / "recipes" / "zoo" / "tokenizer"
TEXTS = [
    "The old man sat on the bench, and the boy read to him.",
    "Three apples and four apples make seven apples.\nThat is all.",
]
QUESTIONS = [
    {"question": f"What is {a} plus {b}?", "choices": [str(a + b), "many"], "answer": 0}
    for a, b in [(1, 2), (2, 2), (3, 1), (4, 5), (2, 6)]
]
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
"""
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ZOO_TOKENIZER)


@pytest.fixture(scope="module", params=["hybrid", "converted"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A hybrid, or a transformer whose layers became retention but for one."""
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    members = [member(index, **ends) for index in range(2)]
    if request.param == "converted":
        return transfer(members[0], "retention", copy="all", keep=[0])[0]
    hybrid = build(members, num_blocks=2)
    hybrid.set_mixture(random_rows(2, 2))
    return hybrid


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    for name, docs, task in (
        ("rolling", [{"text": text} for text in TEXTS], ROLLING),
        ("choice", QUESTIONS, CHOICE),
    ):
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(json.dumps(doc) for doc in docs))
        (folder / f"{name}.yaml").write_text(task.format(file=data))
    return simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64),
        tasks=["local_rolling", "local_choice"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        verbosity="ERROR",
    )


@torch.no_grad()
def nats(model: PreTrainedModel, context: list[int], tokens: list[int]) -> float:
    """-log p(tokens | context), one token at a time from the whole sequence's logits."""
    ids = torch.tensor([[*context, *tokens]])
    log_p = model(ids).logits[0].double().log_softmax(-1)
    first = len(context)
    return -sum(log_p[first + i - 1, token].item() for i, token in enumerate(tokens))


def test_rolling_bits_per_byte_equal_our_own(
    results: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    start = [tokenizer.eos_token_id]  # the harness puts one in front
    total = sum(nats(model, start, tokenizer.encode(text)) for text in TEXTS)
    expected = total / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    got = results["results"]["local_rolling"]["bits_per_byte,none"]
    assert got == pytest.approx(expected, rel=1e-5)


def test_multiple_choice_picks_what_our_own_likelihoods_pick(
    results: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    right = 0
    for doc in QUESTIONS:
        context = tokenizer.encode(doc["question"])
        scores = []
        for choice in doc["choices"]:
            whole = tokenizer.encode(f"{doc['question']} {choice}")
            scores.append(-nats(model, context, whole[len(context) :]))
        right += scores.index(max(scores)) == doc["answer"]
    assert results["results"]["local_choice"]["acc,none"] == right / len(QUESTIONS)
    samples = results["samples"]["local_choice"]
    assert len(samples) == len(QUESTIONS)
