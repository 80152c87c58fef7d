"""Build a hybrid from pretrained components: vocabulary, heads, first mixture, projectors."""

import copy
import difflib
import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from manticore.hybrids.component_configs import with_vocabulary
from manticore.hybrids.configuration_manticore import ManticoreConfig
from manticore.hybrids.loading import spare_from_quantization
from manticore.hybrids.projectors import initialise
from manticore.hybrids.vocabulary import VocabularyReport, align_vocabulary, check_shared
from manticore.models.loading import load_component
from manticore.models.pretrained import split_causal_lm
from manticore.models.supported import check_supported
from manticore.text.tokenizers import tokenizer_beside

if TYPE_CHECKING:
    from manticore.hybrids.modeling_manticore import ManticoreForCausalLM

EMBEDDINGS = ("own", "new")
LABEL_OPTIONS = ("num_labels", "id2label", "label2id", "problem_type", "classifier_dropout")


def from_components(
    cls: "type[ManticoreForCausalLM]",
    components: Sequence[PreTrainedModel | str],
    *,
    num_blocks: int = 1,
    partition: list[list[list[int]]] | None = None,
    mixing: str = "streams",
    loyalty: float | Sequence[float | str] | str = 2.0,
    learn_loyalty: bool = False,
    router: bool = True,
    tokenizers: Sequence[Any] | None = None,
    host: int = 0,
    embeddings: str = "own",
    projectors: str = "random",
    seed: int = 0,
    **load_options: Any,
) -> "ManticoreForCausalLM":
    """Build a hybrid with a uniform mixture from pretrained causal language models.

    Args:
        components: loaded models, or names and paths for `from_pretrained`. The hybrid shares
            the layers of loaded models, it does not copy them.
        num_blocks, partition, mixing, loyalty, learn_loyalty, router: see `ManticoreConfig`.
        tokenizers: one for each component when they differ; the host's becomes the hybrid's and
            the other components' embedding rows are transplanted. Default: one shared tokenizer.
        host: whose tokenizer and special tokens the hybrid uses.
        embeddings: "own" keeps every component's pretrained tables, "new" draws new ones with
            tied heads (the paper's mode).
        projectors: "random" (the paper) or "identity"; the closed-form start is
            `closed_form.fit_projectors`.
        seed: of random projectors and new embeddings.
        load_options: passed to `from_pretrained` (dtype, quantization_config, device_map, ...);
            for classifiers, `num_labels`, `id2label`, `label2id`, `problem_type` and
            `classifier_dropout` go to the config.

    Returns:
        The hybrid. `hybrid.vocabulary_report` says what happened to the tables.
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(f"Unknown embeddings {embeddings!r}. Known: {', '.join(EMBEDDINGS)}.")
    _check_options(components, load_options)
    _check_host(host, len(components))
    _check_no_empty_block(partition)
    label_options = {key: load_options.pop(key) for key in LABEL_OPTIONS if key in load_options}
    loaded = _load_all(components, load_options)
    if tokenizers is None and embeddings == "own":
        rows = min(model.get_input_embeddings().num_embeddings for model in loaded)
        check_shared([_tokenizer_of(component) for component in components], rows)
    tables, report = align_vocabulary(loaded, tokenizers, host)
    bases = [_with_table(model, embed) for model, (embed, _) in zip(loaded, tables, strict=True)]
    config = ManticoreConfig(
        components=[base.config for base in bases],
        num_blocks=num_blocks,
        partition=partition,
        mixing=mixing,
        loyalty=loyalty,
        learn_loyalty=learn_loyalty,
        router=router,
        vocab_size=report.vocab_size,
        host=host,
        **_special_tokens(loaded[host].config, report.vocab_size),
        **label_options,
    )
    heads = [head for _, head in tables]
    mark_initialised([*bases, *heads])
    hybrid = cls(config, components=bases, heads=heads)
    join_components(hybrid)
    generator = torch.Generator().manual_seed(seed)
    initialise(list(projector_maps(hybrid)), projectors, generator)
    if embeddings == "new":
        _draw_new_tables(hybrid, generator)
    hybrid.vocabulary_report = report
    if hybrid.can_generate():
        hybrid.generation_config.update(**_special_tokens(loaded[host].config, report.vocab_size))
    return hybrid.eval()


def projector_maps(hybrid: Any) -> list[nn.Linear]:
    """All linear maps between widths, in a fixed order."""
    backbone = hybrid.backbone
    if hybrid.config.mixing == "streams":
        return [linear for _, _, _, linear in backbone.translators.pairs()]
    projectors = backbone.projectors
    return [
        linear
        for maps in (projectors.project_in, projectors.project_out)
        for block in maps
        for linear in block
    ]


def join_components(hybrid: Any) -> None:
    """Give the hybrid's own parts the dtype and device of its host; the mixture stays float32."""
    host = hybrid.backbone.components[hybrid.config.host]
    hybrid.to(dtype=host.dtype)
    # Components come with their device, from `device_map` or a quantizer; the rest joins them.
    parts = dict(hybrid.backbone.named_children()) | dict(hybrid.named_children())
    for name, part in parts.items():
        if name not in ("components", "heads", hybrid.base_model_prefix):
            part.to(device=host.device)
    keep_mixture_in_float32(hybrid)


def keep_mixture_in_float32(hybrid: Any) -> None:
    """The mixture is a handful of numbers: half precision would only hurt it."""
    hybrid.backbone.rows.float()
    if hybrid.config.mixing == "streams":
        hybrid.backbone.loyalty.float()


def _check_host(host: int, num_components: int) -> None:
    if num_components and not 0 <= host < num_components:
        raise ValueError(f"host={host}: allowed are 0 to {num_components - 1}.")


def _check_no_empty_block(partition: list[list[list[int]]] | None) -> None:
    # Pruning leaves empty blocks behind, with weight 0. A new hybrid gives every block weight.
    for k, ranges in enumerate(partition or []):
        empty = [block for block, (first, last) in enumerate(ranges) if first == last]
        if empty:
            raise ValueError(
                f"partition gives component {k} no layers in block {empty[0]} ({ranges}). Give "
                "every block at least one layer, or choose a smaller num_blocks."
            )


def _tokenizer_of(component: PreTrainedModel | str) -> Any:
    """What comes with a component; a loaded one is asked for its folder, not for the hub."""
    if not isinstance(component, PreTrainedModel):
        return tokenizer_beside(component)
    folder = component.name_or_path
    return tokenizer_beside(folder) if folder and os.path.isdir(folder) else None


def _check_options(components: Any, load_options: dict[str, Any]) -> None:
    """A path for a list of them, and slips of the pen that `from_pretrained` would be given."""
    if isinstance(components, (str, os.PathLike, PreTrainedModel)):
        raise ValueError("components is a single one. Give a list: [component, ...].")
    own = inspect.signature(from_components).parameters
    for key in load_options:
        close = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
        if close:
            raise ValueError(f"There is no option {key!r}. Did you mean {close[0]!r}?")


def _load_all(components: Sequence[Any], load_options: dict[str, Any]) -> list[PreTrainedModel]:
    if not components:
        raise ValueError("components is empty. Give at least one model, path or name.")
    if load_options and not any(isinstance(c, str) or hasattr(c, "__fspath__") for c in components):
        raise ValueError(
            f"Options {sorted(load_options)} are for loading components by name, but all are "
            "loaded already. Remove them (or check their spelling)."
        )
    loaded = []
    for component in components:
        if isinstance(component, PreTrainedModel):
            check_supported(component.config)
            loaded.append(component)
        else:
            loaded.append(load_component(component, **spare_from_quantization(load_options)))
    return loaded


def _with_table(model: PreTrainedModel, table: nn.Embedding) -> PreTrainedModel:
    """The model's base with this embedding table; the given model itself is not changed."""
    base, _ = split_causal_lm(model)
    view = copy.copy(base)
    view._modules = dict(base._modules)
    view.config = copy.deepcopy(with_vocabulary(base.config, table.num_embeddings))
    # Layers choose their attention kernel by their config, the view makes the mask by its own:
    # with one config they cannot disagree.
    for module in view.modules():
        if getattr(module, "config", None) is base.config:
            module.config = view.config
    view.config.tie_word_embeddings = bool(getattr(model.config, "tie_word_embeddings", False))
    view.config._name_or_path = model.config._name_or_path
    if base.get_input_embeddings() is not table:
        view.set_input_embeddings(table)
    return view


def mark_initialised(modules: Sequence[nn.Module]) -> None:
    """Keep Hugging Face from drawing new weights for these modules and those inside them."""
    # Hugging Face initialises every module without this mark at the end of construction, and
    # tables that were just cut or transplanted do not have it.
    for module in modules:
        for part in module.modules():
            part._is_hf_initialized = True  # type: ignore[assignment]


def _special_tokens(config: PreTrainedConfig, vocab_size: int) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {name: getattr(config, name, None) for name in names}
    return {n: v for n, v in found.items() if isinstance(v, int) and 0 <= v < vocab_size}


@torch.no_grad()
def _draw_new_tables(hybrid: Any, generator: torch.Generator) -> None:
    # The paper's mode: fresh tables N(0, 0.02), heads tied to them. The old ones belong to the
    # given models, which keep them.
    for k, component in enumerate(hybrid.model.components):
        old = component.get_input_embeddings().weight
        value = torch.randn(old.shape, generator=generator) * hybrid.config.initializer_range
        table = nn.Embedding.from_pretrained(value.to(old), freeze=False)
        component.set_input_embeddings(table)
        if hasattr(hybrid, "heads"):
            hybrid.config.components[k].tie_word_embeddings = True
            hybrid.heads[k] = nn.Linear(old.shape[1], old.shape[0], bias=False, device=old.device)
            hybrid.heads[k].weight = table.weight
    if hasattr(hybrid, "heads"):
        hybrid.config.tie_word_embeddings = True
        hybrid.refresh_tied_keys()


__all__ = ["VocabularyReport", "from_components", "keep_mixture_in_float32", "projector_maps"]
