"""Recipes load strictly, and every mistake is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from manticore.config import ConfigError, describe_fields, dump_yaml, load_recipe, to_plain
from manticore.config.adapter_recipe import AdaptRecipe


@dataclass(frozen=True, kw_only=True)
class Finetune:
    lr: float = 3e-4
    """Peak learning rate."""
    steps: int = 100
    """Optimizer steps."""
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Component:
    path: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    kind: Literal["hybrid"] = "hybrid"
    name: str = "job"
    """What the run is called.

    Any text.
    """
    mixing: Literal["streams", "shared"] = "streams"
    loyalty: float | list[float] = 2.0
    router: bool = True
    blocks: int | Literal["auto"] = 4
    seeds: tuple[int, ...] = (0,)
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    components: tuple[Component, ...] = (Component(path="a"), Component(path="b", weight=2.0))
    finetune: Finetune = Finetune(lr=5e-4)
    extra: Finetune | None = None


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_recipe(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write_recipe


def load(write: Callable[[str], Path], text: str, *overrides: str) -> Job:
    return load_recipe(Job, write(text), overrides)


def test_a_recipe_of_another_verb_is_told_so():
    with pytest.raises(ConfigError, match=r"kind 'hybrid', which is for `manticore run`"):
        load_recipe(AdaptRecipe, "recipes/hybrids/quickstart.yaml")


def test_an_empty_file_gives_the_defaults(write):
    assert load(write, "") == Job()


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(write):
    job = load(write, "finetune:\n  lr: 1e-3\n  steps: 7\n", "finetune.steps=9")
    assert job.finetune == Finetune(lr=1e-3, steps=9)


def test_a_group_keeps_the_values_of_its_default_that_the_file_does_not_mention(write):
    assert load(write, "finetune: {steps: 3}").finetune == Finetune(lr=5e-4, steps=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("2", 2.0), ("-1e-3", -1e-3), ("inf", math.inf)],
)
def test_a_number_is_read_as_people_write_it(write, text, expected):
    for job in (load(write, f"loyalty: {text}"), load(write, "", f"loyalty={text}")):
        assert job.loyalty == expected
        assert type(job.loyalty) is float


def test_words_that_old_yaml_reads_as_something_else_stay_words(write):
    for word in ("no", "on", "1:30", "2024-01-01", "0x10"):
        assert load(write, f"name: {word}").name == word


def test_a_number_with_leading_zeros_is_decimal(write):
    assert load(write, "blocks: 010").blocks == 10


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("name=123", lambda j: j.name, "123"),
        ("name=a: [b", lambda j: j.name, "a: [b"),
        ("name='quoted'", lambda j: j.name, "quoted"),
        ("blocks=auto", lambda j: j.blocks, "auto"),
        ("blocks=1e1", lambda j: j.blocks, 10),
        ("seeds=0,1,2", lambda j: j.seeds, (0, 1, 2)),
        ("seeds=[3]", lambda j: j.seeds, (3,)),
        ("seeds=4", lambda j: j.seeds, (4,)),
        ("loyalty=[1, 2]", lambda j: j.loyalty, [1.0, 2.0]),
        ("folder=runs/x", lambda j: j.folder, Path("runs/x")),
        ("folder=null", lambda j: j.folder, None),
        ("finetune.clip=null", lambda j: j.finetune.clip, None),
        ("weights.code=0.5", lambda j: j.weights, {"code": 0.5}),
        ("components.1.path=c", lambda j: j.components[1], Component(path="c", weight=2.0)),
        ("extra.lr=1", lambda j: j.extra, Finetune(lr=1.0)),
        ("finetune={lr: 1, steps: 2}", lambda j: j.finetune, Finetune(lr=1.0, steps=2)),
    ],
)
def test_an_override_sets(write, override, read, expected):
    assert read(load(write, "", override)) == expected


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "finetune: {learning_rate: 1}",
            [],
            r"'finetune\.learning_rate' in .*job\.yaml\. Did you ",
        ),
        ("finetune: {learning_rate: 1}", [], r"mean 'finetune\.lr'\? Allowed: finetune\.lr, finet"),
        ("finetune: {step: 1}", [], r"Did you mean 'finetune\.steps'\?"),
        ("lr: 1", [], r"Unknown key 'lr' .* Did you mean 'finetune\.lr'\?"),
        ("mixin: shared", [], r"Did you mean 'mixing'\? Allowed: kind, name, mixing"),
        (
            "",
            ["finetun.lr=1"],
            r"Unknown key 'finetun' in the override 'finetun\.lr=1'.*'finetune'",
        ),
        (
            "finetune: {steps: many}",
            [],
            r"'finetune\.steps' in .*'many', but must be a whole number",
        ),
        ("finetune: {steps: 1.5}", [], r"is 1\.5, but must be a whole number"),
        ("finetune: {steps: true}", [], r"is True, but must be a whole number"),
        ("finetune: {lr: true}", [], r"is True, but must be a number"),
        ("router: 1", [], r"'router' .* must be true or false"),
        ("router: 'true'", [], r"'router' .* must be true or false"),
        ("name: [a]", [], r"'name' .* must be a text"),
        ("name: null", [], r"'name' .* is None, but must be a text"),
        ("mixing: stream", [], r"one of 'streams', 'shared'\. Did you mean 'streams'\?"),
        ("finetune: 3", [], r"a group of keys .* Its keys: lr, steps, clip, betas"),
        ("finetune: {betas: [0.9]}", [], r"a list of 2 \(a number; a number\)"),
        (
            "components: [{weight: 1}]",
            [],
            r"'components\.0\.path' is missing in .*Set it to a text",
        ),
        ("components: [{path: a, size: 1}]", [], r"Unknown key 'components\.0\.size'"),
        ("finetune: {steps: 0}", [], r"steps=0 must be at least 1\. \(In 'finetune' of "),
        ("weights: {a: b}", [], r"'weights\.a' .* must be a number"),
        ("", ["components.2.path=x"], r"position in a list of 2 .*\(0 to 1\)"),
        ("name: x", ["name.sub=1"], r"reaches into 'x', which has no 'sub'"),
        ("", ["finetune.lr"], r"is not an override\. Write key=value"),
        (
            "",
            ["finetune.steps=many"],
            r"in the override 'finetune\.steps=many' is 'many', but must",
        ),
        ("name: a\nname: b", [], r"line 2: the key 'name' is already on line 1"),
        ("finetune: {lr: 1, lr: 2}", [], r"the key 'lr' is already on line 1"),
        ("1: a", [], r"the key 1 is not a word"),
        (
            "name: !!python/object/apply:os.system ['echo']",
            [],
            r"line 1: the tag .* is not allowed",
        ),
        ("name: [", [], r"is not valid YAML: line"),
        ("- a", [], r"must hold 'key: value' lines"),
    ],
)
def test_a_mistake_is_named(write, text, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(write, text, *overrides)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        load_recipe(Job, tmp_path / "job.yaml")


def test_a_recipe_survives_dump_and_load(write):
    job = Job(
        name="1e-3",  # a text that looks like a number
        loyalty=[math.inf, 1e-7],
        folder=Path("a b/c"),
        weights={"no": 1.0, "x: y": 0.1},
        components=(Component(path="true"), Component(path="")),
        finetune=Finetune(lr=1e-5, clip=None),
        extra=Finetune(steps=3),
    )
    assert load(write, dump_yaml(job)) == job
    assert to_plain(job)["finetune"]["betas"] == [0.9, 0.95]


def test_a_class_valued_field_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Unsafe:
        factory: type = int

    with pytest.raises(TypeError, match="a recipe cannot hold"):
        load_recipe(Unsafe)


def test_a_recipe_class_that_can_change_is_refused():
    @dataclass
    class Loose:
        a: int = 1

    with pytest.raises(TypeError, match="must be a frozen dataclass"):
        load_recipe(Loose)


def test_fields_are_described_with_type_default_and_text():
    described = {entry.name: entry for entry in describe_fields(Job)}
    assert described["finetune.lr"].help == "Peak learning rate."
    assert described["finetune.lr"].type == "a number"
    assert described["name"].help.startswith("What the run is called.")
    assert described["components.[].path"].default == "required"
    assert described["mixing"].type == "one of 'streams', 'shared'"
    assert described["folder"].default == "null"
