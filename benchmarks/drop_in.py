"""Other projects' losses before and after their import is changed: difference, time of the loss, time of a step.

    python -m benchmarks.drop_in [--seconds S] [--results FOLDER]

A step is a small network, the loss, gradients and AdamW. Before: pytorch-metric-learning as it is installed, the others
from their published formulas, in the shape that their code has. Both are timed in one run, interleaved, in float32, on
one thread: the milliseconds that its processor worked, so that other processes of a shared machine are left out.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import contrastive_peers, results_file
from benchmarks.cell import Call
from benchmarks.focal_contrastive import PROPORTIONS
from benchmarks.tables import number
from benchmarks.timing import interleaved, quantiles
from merc_kernels import compat

FEATURES, HIDDEN = 512, 1024
ROWS = (103, 792, 1600)  # of MultiEMO: a batch of few dialogues to one of many
DIALOGUES, LENGTH, CLASSES = 16, 74, 6  # a batch of SDT's on IEMOCAP
FILE = "drop-in.json"
HEAD = ["project", "lines changed", "size", "value and gradient equal to", "loss, ms", "step, ms"]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Project:
    """One project's loss as it is and as it becomes, of the network's output."""

    name: str
    change: str
    size: str
    shape: tuple[int, ...]  # of the output, (rows, width)
    before: Loss
    after: Loss
    compared: Loss | None = None  # the same as before, where that has no gradient to compare with


def sup_contrast(features: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    """SupContrast's loss of (B, V, D) in matrices of all views by all views."""
    views = features.shape[1]
    rows = torch.cat(features.unbind(1))
    s = rows @ rows.T / temperature
    s = s - s.amax(1, keepdim=True).detach()
    others = 1 - torch.eye(len(rows))
    positive = (labels[:, None] == labels).float().repeat(views, views) * others
    log_p = s - (s.exp() * others).sum(1, keepdim=True).log()
    return -((positive * log_p).sum(1) / positive.sum(1).clamp(min=1)).mean()


def swfc(embeddings: Tensor, labels: Tensor) -> Tensor:
    """MultiEMO's loss with class weights that are all alike."""
    return contrastive_peers.loop_over_anchors(embeddings, labels, "swfc") / CLASSES


def masked_kl(log_pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """SDT's loss: padding is multiplied by 0, at whose logarithm the gradient is NaN."""
    rows = mask.view(-1, 1)
    return F.kl_div(log_pred * rows, target * rows, reduction="sum") / mask.sum()


def clip(features: Tensor, scale: float = 14.0) -> Tensor:
    """CLIP's loss of the first half, images, and the second half, texts."""
    images, texts = features.chunk(2)
    logits, pairs = scale * images @ texts.T, torch.arange(len(images))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def projects() -> list[Project]:
    """The five projects, with inputs that are the same on every run."""
    from pytorch_metric_learning import losses

    generator = torch.Generator().manual_seed(0)

    def labels(rows: int) -> Tensor:
        return torch.multinomial(PROPORTIONS, rows, replacement=True, generator=generator)

    def unit(loss: Callable[..., Tensor], *shape: int) -> Callable[..., Tensor]:
        return lambda rows, *others: loss(F.normalize(rows, dim=-1).view(*shape), *others)

    def bound(loss: Callable[..., Tensor], *others: Any) -> Loss:
        return lambda rows: loss(rows, *others)

    def distilled(loss: Callable[..., Tensor]) -> Loss:
        def call(logits: Tensor) -> Tensor:
            """Text, audio and visual logits from those of all modalities, which are not detached."""
            *students, teacher = logits.view(-1, 4, CLASSES).unbind(1)
            target = teacher.softmax(-1)
            return torch.stack([loss(student.log_softmax(-1), target, mask) for student in students]).sum()

        return call

    def from_logits(logits: Tensor) -> Tensor:
        *students, teacher = logits.view(DIALOGUES, LENGTH, 4, CLASSES).unbind(2)
        options = {"temperature": 1.0, "teacher_grad": True}
        return torch.stack([compat.masked_kd_divergence(s, teacher, mask, **options) for s in students]).sum()

    def of_real_rows(log_pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        real = mask.flatten() > 0
        return masked_kl(log_pred[real], target[real], torch.ones_like(mask.flatten()[real]))

    lengths = torch.randint(LENGTH // 3, LENGTH + 1, (DIALOGUES,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).float()
    of_512, of_1024 = labels(512), labels(1024)
    weighted = compat.SampleWeightedFocalContrastiveLoss(0.1, 2.0, 0.0, "IEMOCAP", PROPORTIONS, "cpu")
    padded = f"{DIALOGUES} dialogues of {LENGTH}, padded"
    rows = DIALOGUES * LENGTH
    ours = compat.ClipLoss()

    def our_clip(features: Tensor) -> Tensor:
        loss = ours(*features.chunk(2), 14.0)
        assert isinstance(loss, Tensor)
        return loss

    return [
        Project(
            "SupContrast",
            "1: the import",
            "512 samples, 2 views, D 128",
            (1024, 128),
            bound(unit(sup_contrast, 512, 2, 128), of_512),
            bound(unit(compat.SupContrastLoss(), 512, 2, 128), of_512),
        ),
        Project(
            "pytorch-metric-learning",
            "1: the import",
            "N 1024, D 256",
            (1024, 256),
            bound(losses.SupConLoss(), of_1024),
            bound(compat.SupConLoss(), of_1024),
        ),
        *(
            Project("MultiEMO", "1: the import", f"N {n}, D 256", (n, 256), bound(swfc, names), bound(weighted, names))
            for n, names in ((n, labels(n)) for n in ROWS)
        ),
        Project(
            "SDT",
            "1: the import",
            padded,
            (rows, 4 * CLASSES),
            distilled(masked_kl),
            distilled(compat.MaskedKLDivLoss()),
            distilled(of_real_rows),
        ),
        Project(
            "SDT, from logits",
            "4: the import, three calls",
            padded,
            (rows, 4 * CLASSES),
            distilled(masked_kl),
            from_logits,
            distilled(of_real_rows),
        ),
        Project(
            "CLIP (open_clip)",
            "1: the import",
            "N 1024, D 256",
            (2048, 256),
            unit(clip, 2048, 256),
            unit(our_clip, 2048, 256),
        ),
    ]


def network(shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """One with that output, and its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, shape[1]))
        return layers, torch.randn(shape[0], FEATURES)


def spoiled(loss: Loss, shape: tuple[int, ...]) -> str:
    """Of the parameters' gradients how many hold a NaN."""
    model, features = network(shape)
    gradients = torch.autograd.grad(loss(model(features)), list(model.parameters()))
    return f"{sum(bool(x.isnan().any()) for x in gradients)} of {len(gradients)}"


def step(loss: Loss, shape: tuple[int, ...]) -> Callable[[], object]:
    """A training step of a network with that output."""
    model, features = network(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def call() -> object:
        optimizer.zero_grad()
        value = loss(model(features))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value

    return call


def measured(project: Project, seconds: float) -> dict[str, Any]:
    """The differences of value and gradient, relative to the largest element, and times in milliseconds."""
    x = torch.randn(project.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(loss: Loss) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(loss(x), x)[0]

    value, truth = project.after(x).detach(), (project.compared or project.before)(x).detach()
    slope = gradient(project.compared or project.before)()
    row: dict[str, Any] = {"project": project.name, "change": project.change, "size": project.size}
    row["value_difference"] = float((value - truth).abs() / truth.abs())
    row["gradient_difference"] = float((gradient(project.after)() - slope).abs().max() / slope.abs().max())
    row["nan_before"], row["nan_after"] = (spoiled(loss, project.shape) for loss in (project.before, project.after))
    calls: dict[str, Call] = {"loss before": gradient(project.before), "loss after": gradient(project.after)}
    calls |= {"step before": step(project.before, project.shape), "step after": step(project.after, project.shape)}
    times = interleaved(calls, seconds, "cpu", time.process_time)
    for name, found in times.items():
        if isinstance(found, Exception):
            raise found
        row[name.replace(" ", "_")] = quantiles(found)
    return row


def table(result: dict[str, Any]) -> str:
    """What docs/drop-in.md shows."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in result["rows"]:
        parts = []
        for part in ("loss", "step"):
            before, after = (row[f"{part}_{when}"]["median_ms"] for when in ("before", "after"))
            parts.append(f"{number(before)} → {number(after)}: {number(before / after)}×")
        difference = f"{row['value_difference']:.0e}, {row['gradient_difference']:.0e}"
        if not row["nan_before"].startswith("0 "):
            difference += f" (real rows; NaN in {row['nan_before']} parameters, ours {row['nan_after']})"
        lines.append([row["project"], row["change"], row["size"], difference, *parts])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    where = result["environment"]
    at = f"{where['cpu']}, threads: {where['threads']}, PyTorch {where['torch']}, commit {where['commit'][:10]}"
    return f"{text}\n\nMedians of processor time, forward and backward; {at}, `{where['command']}`."


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="that timing one call may take")
    parser.add_argument("--results", type=Path, default=results_file.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results_file.prepare(options.results)
    where = results_file.environment()
    result = {"environment": where, "rows": [measured(project, options.seconds) for project in projects()]}
    results_file.write(options.results / FILE, result)
    print(table(result))


if __name__ == "__main__":
    main()
