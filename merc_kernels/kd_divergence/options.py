"""The options of the divergence: their only list."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from merc_kernels._shared import checks
from merc_kernels._shared.options import Options

Direction = Literal["forward", "reverse", "js"]
Reduction = Literal["batchmean", "sum", "none"]
NOTHING, STATS, GRADIENT = range(3)  # what the forward pass saves


@dataclass(frozen=True, kw_only=True)
class KDDivergenceOptions(Options):
    """Options of the divergence of a student from its teacher.

    Attributes:
        temperature: T, from 1e-9 to 1e9, it divides; a float, for which a tensor may stand in that gets its gradient:
            0-dim, or ``(N,)`` with one for each row. Beyond 1e3 T^2 times the rounding of float32 hides the value.
        direction: ``"forward"`` KL(p | q), as above; ``"reverse"`` KL(q | p); ``"js"`` (1 - beta) KL(q | m) +
            beta KL(p | m) with m = beta p + (1 - beta) q.
        beta: in (0, 1), for ``"js"``.
        ce_weight: >= 0; adds this times the cross entropy of the student at T = 1 with ``labels``.
        teacher_grad: let gradients reach the teacher.
        scale_by_t2: the factor T^2, with which gradients keep their size as T changes.
        ignore_index: rows of this label add 0 and get a zero gradient, whatever they hold (a NaN too).
        reduction: ``"batchmean"`` divides the sum by the number of kept rows, over all groups; ``"sum"``;
            ``"none"`` gives each row's loss. Row weights never divide.
    """

    not_in_schema: ClassVar[tuple[str, ...]] = ("teacher_grad",)

    temperature: float = 2.0
    direction: Direction = "forward"
    beta: float = 0.5
    ce_weight: float = 0.0
    teacher_grad: bool = False
    scale_by_t2: bool = True
    ignore_index: int = -100
    reduction: Reduction = "batchmean"

    def check(self) -> None:
        """Every value is in its range, or a ValueError says which is not."""
        checks.temperature("temperature", self.temperature)
        checks.choice("direction", self.direction, get_args(Direction))
        checks.number("beta", self.beta, above=0, below=1)
        checks.number("ce_weight", self.ce_weight)
        checks.flag("teacher_grad", self.teacher_grad)
        checks.flag("scale_by_t2", self.scale_by_t2)
        checks.integer("ignore_index", self.ignore_index)
        checks.choice("reduction", self.reduction, get_args(Reduction))
