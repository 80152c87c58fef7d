"""Loading a component: what is right comes back equal, what is wrong is named in time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from manticore.models.loading import load_component, load_config
from manticore.models.supported import UnsupportedFamilyError
from tests.models.tiny import FAMILY_NAMES, tiny, token_ids


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sound GPT-NeoX checkpoint in a folder."""
    folder = tmp_path / "component"
    tiny("gpt_neox").save_pretrained(folder)
    return folder


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def no_model_is_built(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After the checkpoint was made, which builds one.
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was built before the error")

    monkeypatch.setattr(PreTrainedModel, "__init__", refuse)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@torch.no_grad()
def test_a_saved_component_comes_back_equal(family: str, tmp_path: Path) -> None:
    model = tiny(family, variant=1)
    model.save_pretrained(tmp_path)
    loaded = load_component(tmp_path)
    ids = token_ids(model, 1, 9)
    assert not loaded.training
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_shards_come_back_equal(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load_component(str(tmp_path)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_dtype_is_the_checkpoints_own_unless_one_is_asked_for(tmp_path: Path) -> None:
    tiny("gpt2").bfloat16().save_pretrained(tmp_path)
    assert load_component(tmp_path).dtype == torch.bfloat16
    assert load_component(tmp_path, dtype=torch.float16).dtype == torch.float16
    assert load_component(tmp_path, "float32").dtype == torch.float32


def test_other_arguments_reach_from_pretrained(checkpoint: Path) -> None:
    model = load_component(checkpoint, attn_implementation="eager", device_map={"": "meta"})
    assert model.config._attn_implementation == "eager"
    assert model.device.type == "meta"


def test_quantization_settings_reach_from_pretrained(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def record(*_: object, **settings: object) -> None:
        seen.update(settings)
        raise RuntimeError("stop here")

    model_class = type(tiny("gpt_neox"))
    monkeypatch.setattr(model_class, "from_pretrained", record)
    with pytest.raises(ValueError, match="stop here"):
        load_component(checkpoint, quantization_config="four bits")
    assert seen["quantization_config"] == "four bits"
    assert seen["use_safetensors"] is True


@pytest.mark.usefixtures("no_model_is_built")
class TestBeforeAModelIsBuilt:
    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no folder '.*nowhere'.*Give an existing folder"):
            load_component(tmp_path / "nowhere")

    def test_an_unknown_name_is_neither_folder_nor_on_the_hub(self) -> None:
        with pytest.raises(ValueError, match=r"'no-such-model-here' is neither a folder"):
            load_component("no-such-model-here", local_files_only=True)

    def test_a_folder_without_config_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no config.json.*save_pretrained"):
            load_component(tmp_path)

    def test_a_file_instead_of_a_folder_is_refused(self, checkpoint: Path) -> None:
        with pytest.raises(ValueError, match="There is no folder"):
            load_component(checkpoint / "model.safetensors")

    @pytest.mark.parametrize("text", ["{", "", "\x00\x01", "[1, 2]"])
    def test_a_broken_config_is_named(self, checkpoint: Path, text: str) -> None:
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config.json (is not valid JSON|holds a list)"):
            load_component(checkpoint)

    def test_a_config_with_an_invalid_field_is_named(self, checkpoint: Path) -> None:
        edit_config(checkpoint, hidden_size="wide")
        with pytest.raises(ValueError, match=r"not a valid gpt_neox config: .*hidden_size"):
            load_component(checkpoint)

    @pytest.mark.parametrize("model_type", ["persimmon", "gptneox", None, ["llama"]])
    def test_an_unknown_family_is_refused(self, checkpoint: Path, model_type: object) -> None:
        edit_config(checkpoint, model_type=model_type)
        (checkpoint / "model.safetensors").unlink()  # so no weight can have been read
        with pytest.raises(UnsupportedFamilyError, match=r"Known: .*gpt2, .*gpt_neox,"):
            load_component(checkpoint)

    def test_a_misspelt_family_gets_a_suggestion(self, checkpoint: Path) -> None:
        edit_config(checkpoint, model_type="gptneox")
        with pytest.raises(UnsupportedFamilyError, match="Did you mean 'gpt_neox'"):
            load_component(checkpoint)

    def test_a_pickle_is_refused_with_the_way_to_convert_it(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        # Unpickling this would raise at once: opcode 0xff does not exist.
        (checkpoint / "pytorch_model.bin").write_bytes(b"\xff")
        with pytest.raises(ValueError, match=r"pickle \(pytorch_model.bin\).*save_pretrained"):
            load_component(checkpoint)

    def test_a_folder_without_weights_is_named(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="has no safetensors weights"):
            load_component(checkpoint)

    @pytest.mark.parametrize("kept", [0, 5, 1_000, -1])
    def test_a_truncated_file_is_named_with_its_size(self, checkpoint: Path, kept: int) -> None:
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        size = path.stat().st_size
        with pytest.raises(ValueError, match=rf"model.safetensors is corrupt .*{size} bytes"):
            load_component(checkpoint)

    def test_a_missing_shard_is_named(self, checkpoint: Path) -> None:
        weights = checkpoint / "model.safetensors"
        shutil.move(weights, checkpoint / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"not there \(first: gone.safetensors\)"):
            load_component(checkpoint)

    def test_an_index_that_leaves_the_folder_is_refused(self, checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        index = {"weight_map": {"a": "../elsewhere.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="not a valid index"):
            load_component(checkpoint)

    def test_an_adapter_alone_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(ValueError, match=r"holds an adapter, not a model.*merge_and_unload"):
            load_component(tmp_path)

    @pytest.mark.parametrize(
        "argument", [{"trust_remote_code": True}, {"use_safetensors": False}, {"config": None}]
    )
    def test_arguments_that_would_loosen_the_rules_are_refused(
        self, checkpoint: Path, argument: dict[str, object]
    ) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(argument))}=.* cannot be set"):
            load_component(checkpoint, **argument)


def test_code_in_a_checkpoint_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    proof = tmp_path / "code_was_run"
    for name in ("modeling_evil.py", "configuration_evil.py"):
        (checkpoint / name).write_text(f"open({str(proof)!r}, 'w')\n")
    edit_config(
        checkpoint,
        auto_map={
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModelForCausalLM": "modeling_evil.EvilModel",
        },
        attn_implementation="someone/kernel",
        _attn_implementation="someone/kernel",
    )
    model = load_component(checkpoint)
    assert type(model).__module__.startswith("transformers.")
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(model.config, "auto_map")
    assert not proof.exists()


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, intermediate_size=24)
    with pytest.raises(ValueError, match=r"do not belong to its config\.json"):
        load_component(checkpoint)


def test_missing_weights_are_not_replaced_by_random_ones(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=5)
    with pytest.raises(ValueError, match=r"lacks \d+ weights .*layers.4"):
        load_component(checkpoint)


def test_surplus_layers_are_not_dropped_in_silence(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"holds \d+ weights .*layers.3"):
        load_component(checkpoint)


def test_a_config_alone_loads_without_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert load_config(checkpoint).hidden_size == 32
