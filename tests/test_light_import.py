"""`import manticore` is light, and the Auto classes know hybrids in either order of import."""

from __future__ import annotations

import importlib.util

import pytest

import manticore

_HEAVY = {"torch", "transformers", "numpy", "peft", "accelerate", "matplotlib"}

_CONFIG = (
    "components=[LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, "
    "num_attention_heads=2, vocab_size=32)]"
)
# A saved hybrid's configuration is all that the Auto classes are given.
_USE = f"""
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
config = AutoConfig.for_model("manticore", {_CONFIG})
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification,
             AutoModelForTokenClassification):
    print(type(auto.from_config(config)).__name__)
"""
_CLASSES = [
    "ManticoreModel",
    "ManticoreForCausalLM",
    "ManticoreForSequenceClassification",
    "ManticoreForTokenClassification",
]


def test_importing_blocks_nothing_heavy_and_is_quick(run_python):
    code = (
        "import time; start = time.process_time()\nimport manticore\n"
        "seconds = time.process_time() - start\nimport sys\n"
        f"assert not {_HEAVY!r} & set(sys.modules)\nprint(seconds)"
    )
    assert min(float(run_python("-c", code).stdout) for _ in range(3)) < 0.1


def test_importing_works_where_torch_and_transformers_cannot_be_imported(run_python):
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'numpy'): sys.modules[name] = None\n"
        "import manticore, manticore.runs, manticore.config, manticore.seeds, manticore.cli.main\n"
        "assert manticore.seeds.derive_seed(0) >= 0"
    )
    run_python("-c", code)


@pytest.mark.parametrize(
    "first",
    [
        "import manticore\nimport transformers",
        "from transformers import AutoModelForCausalLM\nimport manticore",
        # The Auto classes arrive in the middle of the import of transformers' modeling code.
        "import manticore\nfrom transformers import MambaForCausalLM",
        pytest.param(
            "from manticore.hybrids.modeling_classification import ManticoreForTokenClassification",
            marks=pytest.mark.slow,
        ),
        pytest.param("import manticore", marks=pytest.mark.slow),
        pytest.param("import transformers\nimport manticore", marks=pytest.mark.slow),
        pytest.param("import manticore\nmanticore.ManticoreConfig", marks=pytest.mark.slow),
        pytest.param("import manticore\nmanticore.ManticoreForCausalLM", marks=pytest.mark.slow),
        pytest.param("import manticore\nfrom transformers import pipeline", marks=pytest.mark.slow),
        pytest.param("from manticore.models import fast_paths", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_build_hybrids_whatever_was_imported_first(run_python, first):
    assert run_python("-c", f"{first}\n{_USE}").stdout.split() == _CLASSES


def test_transformers_alone_is_not_made_heavier(run_python):
    code = (
        "import sys, manticore, transformers\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'manticore.hybrids.modeling_manticore' not in sys.modules"
    )
    run_python("-c", code)


def test_a_mistyped_name_is_answered_with_a_suggestion():
    with pytest.raises(AttributeError, match=r"no attribute 'ManticoreConfg'\. Did you mean 'Ma"):
        _ = manticore.ManticoreConfg
    with pytest.raises(AttributeError, match=r"no attribute 'zebra'\.$"):
        _ = manticore.zebra


def test_an_import_error_inside_a_public_name_is_not_hidden(run_python):
    code = (
        "import sys; sys.modules['torch'] = None\nimport manticore\n"
        "try: manticore.ManticoreForCausalLM\n"
        "except ImportError: print('told')"
    )
    assert run_python("-c", code).stdout == "told\n"


def test_completion_offers_public_names_and_rooms_and_no_imports(run_python):
    code = "import manticore, manticore.seeds; print([n for n in dir(manticore) if n[0] != '_'])"
    names = sorted([*manticore._PUBLIC, "seeds"])
    assert run_python("-c", code).stdout == f"{names}\n"


@pytest.mark.parametrize("name", [n for n in manticore.__all__ if n != "__version__"])
def test_every_public_name_exists(name):
    module = manticore._PUBLIC[name]
    assert importlib.util.find_spec(module) is not None
    assert getattr(manticore, name).__name__ == name
    assert name in dir(manticore)
