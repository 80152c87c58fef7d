"""A hybrid behaves like any model of transformers: saved, loaded, moved, piped, checkpointed."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    pipeline,
)

from manticore import ManticoreConfig, ManticoreForCausalLM, ManticoreModel
from manticore.hybrids.modeling_classification import (
    ManticoreForSequenceClassification,
    ManticoreForTokenClassification,
)
from tests.hybrids.pairs import build, ids_for, member, members, random_rows, reloaded
from tests.models.tiny import tiny

MIXINGS = ("streams", "shared")
ZOO_TOKENIZER = Path(__file__).parents[2] / "recipes" / "zoo" / "tokenizer"
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
# Two matrix products in another order differ in the last bits of float32.
ROUNDING = 1e-5


def mixed(count: int = 2, mixing: str = "streams", **options: Any) -> ManticoreForCausalLM:
    hybrid = build(members(count), mixing=mixing, num_blocks=2, **options)
    hybrid.set_mixture(random_rows(2, count))
    return hybrid


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(ids_for()).logits


def set_checkpointing(model: Any) -> None:
    new = hasattr(model, "activation_checkpointing_enable")  # the name in later versions
    enable = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
    getattr(model, enable)({"use_reentrant": False})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hybrid")
    mixed().save_pretrained(path)
    return path


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_sharded_checkpoint_gives_the_same_bits(tmp_path: Path, count: int, mixing: str) -> None:
    hybrid = mixed(count, mixing)
    hybrid.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is ManticoreForCausalLM
    assert torch.equal(logits(loaded), logits(hybrid))
    assert torch.equal(loaded.mixture, hybrid.mixture)


def test_own_rows_exact_zeros_and_infinite_loyalty_survive(tmp_path: Path) -> None:
    hybrid = build(num_blocks=2, loyalty=[0.5, "inf", 3.0])
    hybrid.set_mixture(torch.tensor([[1.0, 0.0], [0.3, 0.7]]), embed=[0.2, 0.8], head=[0.0, 1.0])
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.model.rows.active(0) == [0]
    assert loaded.config.loyalty == [0.5, "inf", 3.0]
    assert torch.equal(logits(loaded), logits(hybrid))
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("placement", [{"": "cpu"}, "auto", "cpu"])
def test_device_map_loads_the_same_bits(folder: Path, placement: Any) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=placement)
    assert torch.equal(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(folder)))


def test_a_fresh_process_needs_only_the_import(folder: Path, run_python: Any) -> None:
    expected = logits(AutoModelForCausalLM.from_pretrained(folder)).double().sum().item()
    code = (
        "import manticore, torch; from transformers import AutoModelForCausalLM, AutoConfig\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        "assert type(m).__module__ == 'manticore.hybrids.modeling_manticore'\n"
        f"with torch.no_grad(): out = m(torch.tensor({ids_for().tolist()})).logits\n"
        "print(out.double().sum().item())"
    )
    assert float(run_python("-c", code).stdout.split()[-1]) == expected


def test_tied_tables_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    hybrid = mixed(4)
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for model in (hybrid, loaded):
        tied = [
            head.weight is component.get_input_embeddings().weight
            for head, component in zip(model.heads, model.model.components, strict=True)
        ]
        assert tied == [False, True, True, False]
    loaded.heads[1].weight.data.add_(1)
    table = loaded.model.components[1].get_input_embeddings().weight
    assert torch.equal(table, loaded.heads[1].weight)


def test_a_padding_token_beyond_the_common_tables_is_no_obstacle(tmp_path: Path) -> None:
    odd = tiny("llama", variant=1, vocab_size=65, pad_token_id=64)
    hybrid = build([odd, member(0)])
    assert hybrid.config.vocab_size == 61
    assert torch.equal(logits(reloaded(hybrid, tmp_path)), logits(hybrid))


def test_paper_mode_ties_heads_and_stays_tied(tmp_path: Path) -> None:
    hybrid = build(num_blocks=2, embeddings="new")
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.heads[0].weight is loaded.model.components[0].get_input_embeddings().weight
    assert torch.equal(logits(loaded), logits(hybrid))


def test_half_precision_is_close_and_the_mixture_stays_whole(folder: Path, tmp_path: Path) -> None:
    exact = AutoModelForCausalLM.from_pretrained(folder)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in half.mixture_parameters()} == {torch.float32}
    assert torch.equal(half.mixture, exact.mixture)
    # bfloat16 has 8 bits of mantissa: about 1 % after a dozen layers.
    error = (logits(half).float() - logits(exact)).abs().max() / logits(exact).abs().max()
    assert 0 < error < 0.05
    half.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(half))


def test_every_auto_class_knows_the_hybrid(folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is ManticoreConfig
    base = AutoModel.from_pretrained(folder)
    assert type(base) is ManticoreModel
    whole = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        got, expected = (m(ids_for()).last_hidden_state for m in (base, whole.model))
    assert torch.equal(got, expected)
    for auto, cls, shape in (
        (AutoModelForSequenceClassification, ManticoreForSequenceClassification, (2, 3)),
        (AutoModelForTokenClassification, ManticoreForTokenClassification, (2, 11, 3)),
    ):
        model = auto.from_pretrained(folder, num_labels=3)
        assert type(model) is cls
        assert logits(model).shape == shape


def test_a_saved_classifier_gives_the_same_bits(tmp_path: Path) -> None:
    model = ManticoreForSequenceClassification.from_components(members(), num_labels=3)
    model.config.pad_token_id = 2
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_building_on_the_meta_device_allocates_nothing() -> None:
    config = mixed(4).config
    with torch.device("meta"):
        one = ManticoreForCausalLM(config)
    with init_empty_weights():
        other = AutoModelForCausalLM.from_config(config)
    for model in (one, other):
        assert {p.device.type for p in model.parameters()} == {"meta"}
    assert one.num_parameters() == mixed(4).num_parameters()


def test_a_deep_copy_computes_the_same_and_shares_nothing() -> None:
    hybrid = mixed(4)
    copied = copy.deepcopy(hybrid)
    assert torch.equal(logits(copied), logits(hybrid))
    before = logits(hybrid)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(logits(hybrid), before)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_gradient_checkpointing_leaves_every_gradient_as_it_was(mixing: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        hybrid = mixed(4, mixing).train()
        if checkpointed:
            set_checkpointing(hybrid)
        hybrid(ids_for(), labels=ids_for()).loss.backward()
        gradients.append({n: p.grad for n, p in hybrid.named_parameters()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert torch.equal(gradient, recomputed[name]), name


def test_attention_is_chosen_for_all_or_for_one_component(folder: Path) -> None:
    def chosen(model: Any) -> list[str]:
        configs = [component.config for component in model.model.components]
        assert all(a is b for a, b in zip(configs, model.config.components, strict=True))
        return [config._attn_implementation for config in configs]

    expected = logits(AutoModelForCausalLM.from_pretrained(folder))
    for name in ("eager", "sdpa", {"component_0": "eager"}, {"component_0": "sdpa"}):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name)
        first = name if isinstance(name, str) else name["component_0"]
        assert chosen(model) == [first, "eager"]  # a Mamba has no attention
        torch.testing.assert_close(logits(model), expected, atol=ROUNDING, rtol=ROUNDING)
    model.set_attn_implementation("eager")
    assert chosen(model) == ["eager", "eager"]
    model.set_attn_implementation("sdpa")
    assert chosen(model) == ["sdpa", "eager"]
    model.set_attn_implementation({"component_0": "eager"})
    assert chosen(model) == ["eager", "eager"]
    torch.testing.assert_close(logits(model), expected, atol=ROUNDING, rtol=ROUNDING)
    with pytest.raises(ValueError, match="Known: component_0, component_1"):
        model.set_attn_implementation({"component_7": "eager"})


@pytest.mark.parametrize("size", [70, 50])
@pytest.mark.parametrize("count", [2, 4])
def test_resizing_reaches_every_table_and_survives_saving(
    tmp_path: Path, size: int, count: int
) -> None:
    hybrid = mixed(count)
    before = hybrid(ids_for() % 50).logits
    assert hybrid.resize_token_embeddings(size).num_embeddings == size
    after = hybrid(ids_for() % 50).logits
    kept = min(size, before.shape[-1])
    assert after.shape[-1] == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept], atol=ROUNDING, rtol=0)
    hybrid.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    assert [head.out_features for head in loaded.heads] == [size] * count
    assert torch.equal(loaded(ids_for() % 50).logits, after)


def test_resizing_pads_to_a_multiple_and_keeps_ties() -> None:
    hybrid = mixed(4)
    hybrid.resize_token_embeddings(pad_to_multiple_of=16)
    assert hybrid.config.vocab_size == 64
    assert hybrid.heads[1].weight is hybrid.model.components[1].get_input_embeddings().weight


def test_layers_that_must_not_be_split_are_those_of_all_components() -> None:
    names = set(mixed(4).model._no_split_modules)
    assert {"GPTNeoXLayer", "MambaBlock", "GPTNeoBlock", "LlamaDecoderLayer"} <= names
    assert set(mixed(2)._no_split_modules) >= {"GPTNeoXLayer", "MambaBlock"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_blocks", 1), ("mixing", "shared"), ("vocab_size", 50), ("router", False)],
)
def test_structure_cannot_be_changed_while_loading(folder: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} cannot be changed while loading"):
        ManticoreForCausalLM.from_pretrained(folder, **{option: value})
    with pytest.raises(ValueError, match=r"Use the config\.json that was saved"):
        AutoModelForCausalLM.from_pretrained(folder, **{option: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 1}, "another shape"),
        ({"vocab_size": 50}, "another shape"),
        ({"first": tiny("gpt_neox", hidden_size=48).config}, "another shape"),
        ({"mixing": "shared"}, "lacks 16 weights of the hybrid"),
        ({"router": False}, "holds 2 weights that its config does not know"),
    ],
)
def test_weights_of_another_structure_are_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    saved = ManticoreConfig.from_pretrained(folder)
    settings: dict[str, Any] = {"num_blocks": 2, "vocab_size": saved.vocab_size, **change}
    first = settings.pop("first", saved.components[0])
    config = ManticoreConfig(components=[first, saved.components[1]], **settings)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, config=config)


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    hybrid = mixed()
    hybrid.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}
    (tmp_path / "model.safetensors").unlink()
    torch.save(hybrid.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="safetensors only"):
        AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=False)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ZOO_TOKENIZER)


@pytest.fixture(scope="module")
def with_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> Path:
    path = tmp_path_factory.mktemp("with_tokenizer")
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    components = [member(index, **ends) for index in range(2)]
    build(components, tokenizers=[tokenizer] * 2, num_blocks=2).save_pretrained(path)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return path


def test_text_generation_pipeline_finds_model_and_tokenizer(with_tokenizer: Path) -> None:
    pipe = pipeline("text-generation", model=str(with_tokenizer))
    first, second = pipe(["Once upon a time", "Two"], max_new_tokens=5, do_sample=False)
    assert first[0]["generated_text"].startswith("Once upon a time")
    assert len(second[0]["generated_text"]) > len("Two")


def test_chat_template_feeds_generate(with_tokenizer: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(with_tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer)
    chat = [{"role": "user", "content": "How many?"}]
    inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4
    assert tokenizer.decode(out[0]).startswith("user: How many?")


class FakeHub:
    """Stands in for the hub's API and keeps what would be uploaded."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})()

    def create_commit(self, repo_id: str, operations: list[Any], **_: Any) -> str:
        for operation in operations:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        return repo_id


def test_pushing_uploads_safetensors_configs_and_our_card(monkeypatch: Any) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import EntryNotFoundError
    from transformers.utils import hub

    def nothing_there(*_: Any, **__: Any) -> None:
        raise EntryNotFoundError("no card yet")

    fake = FakeHub()
    monkeypatch.setattr(hub, "hf_api", lambda: fake)
    monkeypatch.setattr(ModelCard, "load", nothing_there)
    mixed().push_to_hub("someone/hybrid", tags=["made-of-two"])
    assert set(fake.files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    card = fake.files["README.md"].decode()
    assert "import manticore" in card
    assert "made-of-two" in card
    assert "automatically generated" not in card
