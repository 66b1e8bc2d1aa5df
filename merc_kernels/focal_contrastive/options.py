"""The options of the focal contrastive loss: their only list."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from merc_kernels._shared import checks
from merc_kernels._shared.options import Options

Focal = Literal["similarity", "probability"]
Reduction = Literal["mean", "batchmean", "sum", "none"]
# Of unit rows and no smaller a temperature no |s| exceeds 1 / tau, and e^(1 / tau) and its inverse are float32, with
# room for a sum and for a G: such scores need no running maximum.
SMALLEST_BOUNDED = 0.025


@dataclass(frozen=True, kw_only=True)
class FocalContrastiveOptions(Options):
    """Options of the focal contrastive loss.

    Attributes:
        temperature: tau, from 1e-9 to 1e9, it divides; a float, for which a 0-dim tensor may stand in that gets its
            gradient.
        gamma: >= 0, the exponent of the focal factor h.
        focal: ``"similarity"``: h = ((1 - z_i.z_j) / 2)^gamma, the base clamped to at most 1;
            ``"probability"``: h = (1 - exp(s_ij - L_i))^gamma. Either base is clamped to at least 2^-24
            (2^-53 in float64), with derivative 0 where clamped.
        detach_focal: keep gradients out of h.
        prototype_anchors: prototypes are anchors too, with the same candidates (but never themselves).
        ref_only: the refs are the only candidates, as for two views or two modalities: no row is then
            excluded as the anchor itself.
        normalize: L2-normalise all vectors. A zero row stays zero and gets a zero gradient.
        overlap_threshold: in [0, 1), for multi-hot labels: positives are the candidates of a larger overlap with the
            anchor, their common labels by all labels of the two (Jaccard); it multiplies a positive's term.
        ignore_index: rows, prototypes and refs of this label are neither anchor nor candidate, whatever they
            hold (a NaN too), and get a zero gradient.
        reduction: ``"mean"`` divides the sum over anchors by the number of anchors with a positive,
            ``"batchmean"`` by the number of kept rows (and prototypes, where they are anchors), both over all
            groups; ``"sum"``; ``"none"`` gives each row's loss, 0 where it does not count. Class weights never
            divide.
    """

    not_in_schema: ClassVar[tuple[str, ...]] = ("overlap_threshold",)

    temperature: float = 0.1
    gamma: float = 2.0
    focal: Focal = "similarity"
    detach_focal: bool = True
    prototype_anchors: bool = False
    ref_only: bool = False
    normalize: bool = True
    overlap_threshold: float = 0.3
    ignore_index: int = -100
    reduction: Reduction = "mean"

    def check(self) -> None:
        """Every value is in its range, or a ValueError says which is not."""
        checks.temperature("temperature", self.temperature)
        checks.number("gamma", self.gamma)
        checks.choice("focal", self.focal, get_args(Focal))
        checks.flag("detach_focal", self.detach_focal)
        checks.flag("prototype_anchors", self.prototype_anchors)
        checks.flag("ref_only", self.ref_only)
        checks.flag("normalize", self.normalize)
        checks.number("overlap_threshold", self.overlap_threshold, below=1)
        checks.integer("ignore_index", self.ignore_index)
        checks.choice("reduction", self.reduction, get_args(Reduction))
        if self.prototype_anchors and self.reduction == "none":
            checks.fail("prototype_anchors", 'False with reduction="none"', self.prototype_anchors)
