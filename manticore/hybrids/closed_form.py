"""Closed-form start: projectors by ridge regression on the streams of the components alone.

Every component runs alone on some text. At each boundary b the streams of all components are put
side by side with a constant, z_b = [y_b0, y_b1, ..., 1], and only the sum of z z^T is kept:
nothing is stored per token. Every projector is then the ridge solution of a problem whose input
N z and target M z are linear in z, so one Gram matrix answers them all.

Legend: K components of width d_k, D = max d_k, S = sum d_k + 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manticore.hybrids.inputs import Inputs, count_positions
from manticore.hybrids.modeling_backbone import ManticoreModel
from manticore.hybrids.modeling_base import ManticorePreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well one projector explains its target on the text it was fitted on."""

    boundary: int
    """Boundary b = 0..B; B lies before the heads."""
    source: int
    """Component that is read (`-1`: the shared stream)."""
    target: int
    """Component that reads (`-1`: the shared stream)."""
    r2: float
    """Share of the target's variance explained, 1 is perfect."""


@torch.no_grad()
def fit_projectors(
    hybrid: ManticorePreTrainedModel, batches: Iterable[dict[str, Tensor]], ridge: float = 1e-4
) -> list[Fit]:
    """Set all translators or projectors of a hybrid in closed form.

    Args:
        hybrid: a hybrid with either way of mixing; `shared` is fitted at its present mixture.
        batches: dictionaries with `input_ids` (batch, seq) and, optionally, `attention_mask`.
        ridge: penalty as a share of the mean variance of the input; keeps directions that the
            text never used from blowing up.

    Returns:
        The fit of every projector, in-sample.
    """
    backbone = hybrid.backbone
    was_training = backbone.training
    backbone.eval()
    grams = accumulate_grams(backbone, batches)
    backbone.train(was_training)
    if backbone.config.mixing == "streams":
        return _fit_translators(backbone, grams, ridge)
    return _fit_shared(backbone, grams, ridge)


def accumulate_grams(
    backbone: ManticoreModel, batches: Iterable[dict[str, Tensor]]
) -> list[Tensor]:
    """Sum of z z^T at each of the B + 1 boundaries: (S, S), float64."""
    size = sum(backbone.config.widths) + 1
    grams = [
        torch.zeros(size, size, dtype=torch.float64) for _ in range(backbone.config.num_blocks + 1)
    ]
    tokens = 0
    for batch in batches:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        streams = _streams_alone(backbone, ids, mask)
        for gram, z in zip(grams, streams, strict=True):
            # Streams can lie far from zero for their spread, and a small ridge amplifies what
            # float32 products would round away.
            gram += (z.mT.double() @ z.double()).cpu()
        tokens += len(streams[0])
    if tokens < size:
        raise ValueError(
            f"The closed-form start saw {tokens} tokens for {size} unknowns in each row. "
            f"Give it at least a few times {size} tokens."
        )
    return grams


def _streams_alone(backbone: ManticoreModel, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """z_b at every boundary, padding left out: (tokens, S)."""
    inputs = Inputs(
        input_ids=ids,
        inputs_embeds=None,
        attention_mask=mask,
        position_ids=count_positions(mask, ids.shape[1], 0, ids.device),
        cache=None,
    )
    parts = [_component_alone(backbone, k, inputs) for k in range(backbone.config.num_components)]
    keep = slice(None) if mask is None else mask.bool().flatten()
    ones = torch.ones(ids.numel(), 1, device=ids.device)
    return [
        torch.cat([*(p.flatten(0, 1).float() for p in boundary), ones], dim=-1)[keep]
        for boundary in zip(*parts, strict=True)
    ]


def _component_alone(backbone: ManticoreModel, k: int, inputs: Inputs) -> list[Tensor]:
    """Component k's own stream at all boundaries."""
    embedded = backbone.embed_component(k, inputs)
    entered = backbone.enter_component(k, embedded, inputs)
    # In `shared` the stream before the first block carries no positions; the block adds them.
    streams = [entered if backbone.config.mixing == "streams" else embedded]
    hidden = entered
    for block in range(backbone.config.num_blocks):
        hidden = backbone.run_block(k, block, hidden, inputs)
        streams.append(hidden)
    return streams


def _fit_translators(backbone: ManticoreModel, grams: list[Tensor], ridge: float) -> list[Fit]:
    fits = []
    for boundary, source, target, linear in backbone.translators.pairs():
        selectors = _selectors(backbone.config.widths)
        r2 = _solve_into(linear, grams[boundary], selectors[target], selectors[source], ridge)
        fits.append(Fit(boundary=boundary, source=source, target=target, r2=r2))
    return fits


def _fit_shared(backbone: ManticoreModel, grams: list[Tensor], ridge: float) -> list[Fit]:
    config, fits = backbone.config, []
    selectors = _selectors(config.widths)
    spaces = _common_spaces(backbone, grams, selectors)
    for block in range(config.num_blocks):
        gates = backbone.rows.log_row(block).exp().double().tolist()
        for k, gate in enumerate(gates):
            if not 0 < gate < 1:
                continue  # a gate of 0 or 1 leaves the projector out
            before, after, own = spaces[block], spaces[block + 1], selectors[k]
            wanted_in = (own - gate * before[: config.widths[k]]) / (1 - gate)
            linear = backbone.projectors.into(block, k)
            r2 = _solve_into(linear, grams[block], wanted_in, before, ridge)
            fits.append(Fit(boundary=block, source=-1, target=k, r2=r2))
            wanted_out = (after - gate * _pad_rows(own, config.hidden_size)) / (1 - gate)
            linear = backbone.projectors.out_of(block, k)
            r2 = _solve_into(linear, grams[block + 1], wanted_out, own, ridge)
            fits.append(Fit(boundary=block + 1, source=k, target=-1, r2=r2))
    return fits


def _common_spaces(
    backbone: ManticoreModel, grams: list[Tensor], selectors: list[Tensor]
) -> list[Tensor]:
    """What the shared stream should hold at each boundary, as linear maps of z: (D, S).

    The ends are given by the model (mixed embeddings; heads that read truncated streams); in
    between it is the first D principal components of all streams.
    """
    config, width = backbone.config, backbone.config.hidden_size
    embed = backbone.rows.log_embed_row().exp().double()
    head = backbone.rows.log_head_row(0).exp().double()
    padded = [_pad_rows(selector, width) for selector in selectors]
    first = sum(weight * rows for weight, rows in zip(embed, padded, strict=True))
    last = sum(weight * rows for weight, rows in zip(head, padded, strict=True))
    inner = [principal_components(gram, width) for gram in grams[1 : config.num_blocks]]
    return [first, *inner, last]


def principal_components(gram: Tensor, count: int) -> Tensor:
    """First principal components of [streams, 1] from its Gram matrix, as a map of z: (D, S)."""
    tokens, mean = gram[-1, -1], gram[:-1, -1] / gram[-1, -1]
    covariance = gram[:-1, :-1] / tokens - torch.outer(mean, mean)
    _, vectors = torch.linalg.eigh(covariance)  # ascending
    directions = vectors.flip(-1)[:, :count].T
    rows = torch.cat([directions, -(directions @ mean).unsqueeze(-1)], dim=-1)
    return _pad_rows(rows, count)  # a pruned hybrid may have fewer directions


def solve_ridge(
    gram: Tensor, target: Tensor, source: Tensor, ridge: float
) -> tuple[Tensor, Tensor, float]:
    """Ridge regression of `target @ z` on `source @ z`, both centred, from the sum of z z^T.

    Args:
        gram: (S, S) sum over tokens, the last entry of z is the constant 1.
        target: (out, S) and source: (in, S) linear maps of z.

    Returns:
        weight (out, in), bias (out,), R squared.
    """
    tokens, mean = gram[-1, -1], gram[:, -1] / gram[-1, -1]
    covariance = gram / tokens - torch.outer(mean, mean)
    xx, yx = source @ covariance @ source.T, target @ covariance @ source.T
    yy = (target @ covariance * target).sum()
    penalty = ridge * xx.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
    weight = torch.linalg.solve(xx + penalty * torch.eye(len(xx), dtype=xx.dtype), yx.T).T
    bias = target @ mean - weight @ (source @ mean)
    residual = yy - 2 * (weight * yx).sum() + (weight @ xx * weight).sum()
    return weight, bias, float(1 - residual / yy) if yy > 0 else 1.0


def _solve_into(
    linear: nn.Linear, gram: Tensor, target: Tensor, source: Tensor, ridge: float
) -> float:
    weight, bias, r2 = solve_ridge(gram, target, source, ridge)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return r2


def _selectors(widths: list[int]) -> list[Tensor]:
    """For each component the map that picks its stream out of z: (d_k, S)."""
    identity = torch.eye(sum(widths) + 1, dtype=torch.float64)
    return list(identity[:-1].split(widths))


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])
