"""Linear maps between the widths of components: translators (streams) and projectors (shared)."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from manticore.models.component_logits import is_plain_linear


class Translators(nn.Module):
    """Translators T_bjk of `mixing="streams"`: one linear map for each boundary and ordered pair.

    Boundary b = 0..B lies before block b+1; boundary B lies before the heads. T_bjk maps the
    stream of component j (width d_j) to the width d_k of component k; T_bkk is the identity and
    is not stored.
    """

    def __init__(self, num_blocks: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)
        self.boundaries = nn.ModuleList(
            nn.ModuleDict(
                {
                    pair_name(j, k): nn.Linear(widths[j], widths[k])
                    for j in range(len(widths))
                    for k in range(len(widths))
                    if j != k
                }
            )
            for _ in range(num_blocks + 1)
        )

    def at(self, boundary: int, source: int, target: int) -> nn.Linear:
        """The map from component `source` to component `target` at this boundary."""
        return self.boundaries[boundary][pair_name(source, target)]  # type: ignore[index]

    def pairs(self) -> Iterator[tuple[int, int, int, nn.Linear]]:
        """All maps as (boundary, source, target, linear)."""
        for boundary, maps in enumerate(self.boundaries):
            for name, linear in maps.items():  # type: ignore[operator]
                source, target = (int(part) for part in name.split("_to_"))
                yield boundary, source, target, linear

    def gather(
        self, boundary: int, target: int, streams: dict[int, Tensor], weights: Sequence[Tensor]
    ) -> Tensor:
        """Read all streams from the point of view of `target`: x_bk = sum_j w_bkj T_bjk(y_j).

        Args:
            streams: component -> (batch, seq, d_component), the active ones.
            weights: w_bkj of all K components; those of the active ones sum to 1. Empty on a
                path without gradients (`reading_weights`).

        Returns:
            (batch, seq, d_target).
        """
        if list(streams) == [target]:
            return streams[target]
        if not weights:  # a path: one stream, and its weight is 1
            ((source, stream),) = streams.items()
            return self.at(boundary, source, target)(stream)
        mixed = None
        for source, stream in streams.items():
            mixed = self._add(mixed, weights[source], boundary, source, target, stream)
        assert mixed is not None, "a row of the mixture has at least one active component"
        return mixed

    def _add(
        self, mixed: Tensor | None, weight: Tensor, boundary: int, j: int, k: int, stream: Tensor
    ) -> Tensor:
        weight = weight.to(stream.dtype)
        if j != k:
            linear = self.at(boundary, j, k)
            if is_plain_linear(linear) and stream.numel() > linear.weight.numel():
                # The weight scales the small matrix, not the long activations.
                term = functional.linear(stream, linear.weight * weight, linear.bias * weight)
                return term if mixed is None else mixed + term
            stream = linear(stream)  # few tokens, or an adapter whose own forward decides
        return stream * weight if mixed is None else torch.addcmul(mixed, stream, weight)


class SharedProjectors(nn.Module):
    """In_bk and Out_bk of `mixing="shared"` (the paper): D -> d_k and d_k -> D.

    A component that is alone has its gate at 1 everywhere and gets none.
    """

    def __init__(self, num_blocks: int, widths: Sequence[int], shared_width: int) -> None:
        super().__init__()
        widths = widths if len(widths) > 1 else []
        self.project_in = nn.ModuleList(
            nn.ModuleList(nn.Linear(shared_width, width) for width in widths)
            for _ in range(num_blocks)
        )
        self.project_out = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, shared_width) for width in widths)
            for _ in range(num_blocks)
        )

    def into(self, block: int, component: int) -> nn.Linear:
        """In_bk: shared stream to component."""
        return self.project_in[block][component]  # type: ignore[index]

    def out_of(self, block: int, component: int) -> nn.Linear:
        """Out_bk: component to shared stream."""
        return self.project_out[block][component]  # type: ignore[index]


def pair_name(source: int, target: int) -> str:
    """Name of the translator between two components in a module dictionary."""
    return f"{source}_to_{target}"


def pad_width(hidden: Tensor, width: int) -> Tensor:
    """Zero-pad the last dimension to `width` (the paper's Pad0)."""
    missing = width - hidden.shape[-1]
    return functional.pad(hidden, (0, missing)) if missing else hidden


@torch.no_grad()
def set_identity(linear: nn.Linear) -> None:
    """Make a linear map copy the common coordinates: truncate or zero-pad, no bias."""
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)


@torch.no_grad()
def set_random(linear: nn.Linear, generator: torch.Generator) -> None:
    """Draw a linear map from torch's default distribution, with a generator of its own."""
    bound = linear.in_features**-0.5
    for parameter in (linear.weight, linear.bias):
        value = torch.rand(parameter.shape, generator=generator) * (2 * bound) - bound
        parameter.copy_(value)


def initialise(
    linears: Sequence[nn.Linear], how: str, generator: torch.Generator | None = None
) -> None:
    """Initialise projectors: `identity` or `random` (closed form lives in `closed_form`)."""
    choices: dict[str, Callable[[nn.Linear], None]] = {
        "identity": set_identity,
        "random": lambda linear: set_random(linear, generator or torch.Generator().manual_seed(0)),
    }
    if how not in choices:
        raise ValueError(f"Unknown initialisation {how!r} of projectors. Known: {list(choices)}.")
    generator = generator or torch.Generator().manual_seed(0)
    for linear in linears:
        choices[how](linear)
