"""The model card says what a hybrid is, and nothing that comes from outside can break it."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from manticore import ManticoreForCausalLM
from manticore.hybrids.card import joint_license, model_card, plain, table, write_card
from manticore.hybrids.modeling_classification import ManticoreForSequenceClassification
from tests.hybrids.pairs import build, members

NASTY = 'x: "y"\n---\n| <script>alert(1)</script> `a` [b](c) ```'


def fields(card: str) -> dict:
    start, block, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(block)


@pytest.fixture
def hybrid() -> ManticoreForCausalLM:
    return build(members(2), num_blocks=2)


def test_front_matter_names_task_tags_licence_and_base_models(hybrid: ManticoreForCausalLM) -> None:
    hybrid.config.components[0]._name_or_path = "EleutherAI/pythia-14m"
    hybrid.config.components[1]._name_or_path = "/home/somebody/secret/mamba"
    card = model_card(hybrid, component_licenses=["apache-2.0", "mit"])
    assert fields(card) == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["manticore", "hybrid", "gpt_neox", "mamba"],
        "pipeline_tag": "text-generation",
        "base_model": ["EleutherAI/pythia-14m"],
        "base_model_relation": "merge",
    }
    assert "secret" not in card


def test_a_classifier_is_loaded_by_its_own_auto_class() -> None:
    card = model_card(ManticoreForSequenceClassification.from_components(members(2)))
    assert fields(card)["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained" in card


def test_card_holds_components_mixture_recipe_data_and_results(
    hybrid: ManticoreForCausalLM,
) -> None:
    card = model_card(
        hybrid,
        name="someone/hybrid",
        component_licenses=["mit"],
        recipe={"blocks": 2, "search": {"method": "gaea"}},
        data=[{"corpus": "novels", "sha256": "ab" * 32}],
        results=[{"row": "hybrid", "nats": 1.23456789}, {"row": "best component", "nats": 1.5}],
        limits=["English only."],
    )
    for part in (
        'AutoModelForCausalLM.from_pretrained("someone/hybrid")',
        "import manticore",
        "| 0 | gpt\\_neox | local weights | mit | 32 | 4 |",
        "| 1 | mamba | local weights | unknown | 40 | 5 |",
        "| 1 | 0.500 | 0.500 |",
        "method: gaea",
        "ab" * 32,
        "| hybrid | 1.235 |",
        "- English only.",
        f"{hybrid.num_parameters():,} parameters",
    ):
        assert part in card, part
    assert fields(card)["license"] == "other"


def test_nothing_from_outside_breaks_out_of_its_place(hybrid: ManticoreForCausalLM) -> None:
    hybrid.config.components[0]._name_or_path = NASTY
    card = model_card(
        hybrid,
        name=NASTY,
        license=NASTY,
        component_licenses=[NASTY, NASTY],
        recipe=f"a: 1\n{NASTY}\n````\nb: 2",
        data=[{"corpus": NASTY}],
        limits=[NASTY],
        tags=[NASTY],
    )
    hub = ModelCard(card)  # as the hub reads it
    assert hub.data.license == NASTY
    assert hub.data.tags == ["manticore", "hybrid", "gpt_neox", "mamba", NASTY]
    fenced_off = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", hub.text, flags=re.DOTALL | re.MULTILINE)
    assert "alert" in fenced_off
    assert "<script>" not in fenced_off
    assert "\n---\n" not in fenced_off
    assert "\n`````\n\n## Limits" in card


def test_cells_stay_on_one_line_and_in_their_column() -> None:
    text = table([{"a": "x|y\nz", "b": 1}, {"c": None}])
    assert text.splitlines()[2] == "| x\\|y z | 1 |  |"
    assert len(text.splitlines()) == 4
    assert plain(0.000123456) == "0.0001235"


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["mit", "MIT"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["mit", None], "other"),
        (["mit", "gpl-3.0"], "other"),
        (["llama3", "llama3"], "llama3"),
        ([None, None], "other"),
    ],
)
def test_the_joint_licence_is_the_strictest_or_left_to_the_reader(
    licenses: list[str | None], expected: str
) -> None:
    assert joint_license(licenses) == expected


def test_saving_writes_a_card_once_and_keeps_one_that_is_there(
    hybrid: ManticoreForCausalLM, tmp_path: Path
) -> None:
    hybrid.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    assert fields(path.read_text())["tags"][0] == "manticore"
    path.write_text("mine")
    hybrid.save_pretrained(tmp_path)
    assert path.read_text() == "mine"
    write_card(tmp_path, hybrid, limits=["Small."])
    assert "- Small." in path.read_text()


def test_a_given_text_is_saved_as_the_card(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    hybrid.card_text = "# My hybrid\n"
    hybrid.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My hybrid\n"


def test_snippet_of_the_card_runs(hybrid: ManticoreForCausalLM, tmp_path: Path) -> None:
    hybrid.save_pretrained(tmp_path)
    card = model_card(hybrid, name=str(tmp_path))
    code = card.split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(code.split("tokenizer =")[0], scope)  # our own text: the card promises that it runs
    assert type(scope["model"]) is ManticoreForCausalLM
