"""What the stages of a student cost: tokens and FLOPs, those of the teacher apart.

Per token at length T, with F the forward FLOPs of `models.costs` and D the share of a model's
weights that are trained:

    forward F, gradients of activations F, gradients of weights D F
    calibration: the teacher's F, and F of the student's converted layers alone
    alignment: the teacher's F, and 3 F of the student's converted layers alone
    distillation: the teacher's F beside the student's

Under an adapter D is the share of new weights; the adapter's own small products are left out. The
student's backward pass counts activations of all layers, also below the lowest one that is
trained, so the sum is an upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from manticore.models.costs import component_cost, layer_cost


@dataclass
class Ledger:
    """Adds up tokens and FLOPs."""

    teacher_forward: float
    """FLOPs per token of the teacher."""
    student_forward: float
    """FLOPs per token of the student."""
    layer_forward: float
    """FLOPs per token of one layer of the student, the mean over layers."""
    tokens: float = 0.0
    """Seen by the student, in all stages."""
    flops: float = 0.0
    """Of the student and of the teacher."""
    teacher_flops: float = 0.0
    """Of the teacher alone."""

    @classmethod
    def of(cls, teacher: PreTrainedConfig, student: PreTrainedConfig, seq_len: int) -> Ledger:
        """An empty ledger of these two models at one length."""
        layers = student.num_hidden_layers
        return cls(
            teacher_forward=float(component_cost(teacher, seq_len).forward.total),
            student_forward=float(component_cost(student, seq_len).forward.total),
            layer_forward=layer_cost(student, 0, layers, seq_len).forward.total / layers,
        )

    def calibrate(self, tokens: float, converted: int) -> None:
        """Count the text on which new mixers are scaled."""
        self._match(tokens, converted, passes=1)

    def align(self, tokens: float, converted: int) -> None:
        """Count a stage of alignment."""
        self._match(tokens, converted, passes=3)

    def _match(self, tokens: float, converted: int, passes: int) -> None:
        """Converted layers fed by the teacher, with a backward pass or without."""
        told = tokens * self.teacher_forward
        self.tokens += tokens
        self.teacher_flops += told
        self.flops += told + passes * tokens * converted * self.layer_forward

    def after_training(self, tokens: float, how: dict[str, Any]) -> dict[str, float]:
        """What it comes to after so many tokens of training; the ledger stays as it is.

        Args:
            how: `frozen`, the share of these tokens with inherited weights frozen; `new`, the
                share of the weights that were trained even then; `distil`.
        """
        share = how["frozen"] * how["new"] + (1 - how["frozen"])
        told = tokens * self.teacher_forward if how["distil"] else 0.0
        return {
            "tokens": self.tokens + tokens,
            "flops": self.flops + told + tokens * self.student_forward * (2 + share),
            "teacher_flops": self.teacher_flops + told,
        }

    def so_far(self) -> dict[str, float]:
        """The sums as plain values."""
        return {
            "tokens": self.tokens,
            "flops": self.flops,
            "teacher_flops": self.teacher_flops,
        }
