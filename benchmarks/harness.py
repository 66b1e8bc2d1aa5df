"""Runs a subject: in each cell every provider is predicted, checked against float64, weighed and timed, side by side.

What comes out is a list of rows, one for each cell, provider and pass. The ``status`` of a row is one of

    ok              measured
    wrong           its error is over the subject's limit: no time is given
    skipped         its predicted time or memory is over the budget; ``prediction`` says what was expected
    out of memory   a result like any other
    failed          it raised; ``reason`` says what
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.cell import Call, Cell, Floor, Problem, Provider, Subject
from benchmarks.growth import Prediction, Predictor, exponents
from benchmarks.memory import ProcessLostError, Worker, is_out_of_memory
from benchmarks.timing import interleaved, quantiles

CALLS = 8  # made of one pass at least: memory, accuracy, warm-up, samples
SILENCE = {"cpu": 120.0, "cuda": 45.0}  # seconds after which a first call, compiled in them, is taken to hang
OPERATORS = ("focal_contrastive", "kd_divergence")  # subjects of one operator; the others use both
Row = dict[str, Any]
Run = dict[str, Any]
Truth = tuple[float, Any, int]


@dataclass(frozen=True)
class _Checked:
    """A provider whose result is right: its calls, and what is known of it."""

    provider: Provider
    problem: Problem
    values: Row
    no_graph: str


@dataclass
class Budget:
    """What a run may take."""

    seconds: float  # of one provider in one cell, all its calls together
    extra_bytes: int  # of one call
    deadline: float | None = None  # on `time.monotonic`'s clock; None: no end

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def objection(self, prediction: Prediction | None) -> str | None:
        """Why a call of that prediction is not made, or None."""
        if self.left <= 0:
            return "the time of the whole run was up"
        if prediction is None:
            return None
        if prediction.extra_bytes is not None and prediction.extra_bytes > self.extra_bytes:
            return f"predicted memory is over the budget of {self.extra_bytes / 2**30:.1f} GiB"
        if CALLS * prediction.seconds > self.seconds:
            return f"predicted time of {CALLS} calls is over the budget of {self.seconds:.0f} s"
        if CALLS * prediction.seconds > self.left:
            return "predicted time is more than the whole run had left"
        return None


class Harness:
    """Measures subjects on one device.

    Args:
        say: takes a line of progress.
        keep: takes a subject's run after each of its cells.
    """

    def __init__(
        self,
        device: str,
        budget: Budget,
        say: Callable[[str], None] = print,
        keep: Callable[[Run], object] = lambda run: None,
    ) -> None:
        self._device, self._budget, self._say, self._keep = device, budget, say, keep
        limit = budget.extra_bytes + (2 << 30)  # beside torch itself and the inputs
        self._worker = Worker(device, limit, SILENCE[device])
        self._lost: dict[tuple[str, str], str] = {}  # subject, kernels → where, and why

    def run(self, subject: Subject, cells: list[Cell]) -> Run:
        """The subject's rows, the exponents fitted to them, and the providers that are absent, with the reason."""
        providers = subject.providers(self._device)
        predictor = Predictor()
        run: Run = {"subject": subject.name, "floor": subject.floor_is, "rows": [], "growth": []}
        run["absent"] = {provider.name: provider.absent for provider in providers if not provider.loss}
        for cell in cells:
            started = time.monotonic()
            rows = self._cell(subject, cell, [p for p in providers if p.loss and p.takes(cell)], predictor)
            self._say("\n  ".join([f"{cell.title}: {time.monotonic() - started:.1f} s", *map(line, rows)]))
            run["rows"] = run["rows"] + rows
            run["growth"] = exponents(run["rows"])
            self._keep(dict(run))
        return run

    def close(self) -> None:
        """End the process that weighs."""
        self._worker.close()

    def _cell(self, subject: Subject, cell: Cell, providers: list[Provider], predictor: Predictor) -> list[Row]:
        rows: list[Row] = []

        def note(provider: Provider, name: str, values: Row) -> None:
            head: Row = {"subject": cell.subject, "formula": cell.formula, "provider": provider.name}
            head |= {"device": self._device, "dtype": cell.dtype, "sizes": dict(cell.sizes), "pass": name}
            rows.append(head | values)

        truth = functools.cache(lambda: subject.truth(cell, self._device))
        right: dict[str, _Checked] = {}
        for provider in providers:
            prediction = predictor.predict(provider, cell, subject.work(cell))
            if (reason := self._budget.objection(prediction)) is not None:
                expected = None if prediction is None else asdict(prediction)
                verdict: Row | _Checked = {"status": "skipped", "reason": reason, "prediction": expected}
            else:
                verdict = self._checked(subject, cell, provider, truth)
            if isinstance(verdict, _Checked):
                right[provider.name] = verdict
            else:
                for name in cell.passes:
                    note(provider, name, verdict)
        floor = self._floor(subject, cell) if right else None
        for name in cell.passes:
            for key, numbers in self._timed(cell, name, right, floor).items():
                provider, values = right[key].provider, right[key].values
                kept = values if name == "both" else {part: values[part] for part in ("error", "error_rows")}
                note(provider, name, kept | numbers)
                if name == "both" and numbers["status"] == "ok":
                    measured = Prediction(numbers["median_ms"] / 1e3, values["peak_extra_bytes"])
                    predictor.learn(provider, cell, subject.work(cell), measured)
        return rows

    def _checked(
        self, subject: Subject, cell: Cell, provider: Provider, truth_of_cell: Callable[[], Truth]
    ) -> Row | _Checked:
        """The provider's calls, weighed and right; or the numbers of a row that says why not."""
        if (reason := self._lost_before(subject, provider)) is not None:
            return {"status": "failed", "reason": f"not run again after {reason}"}
        try:
            if self._device == "cuda":
                torch.cuda.empty_cache()
            weighed = self._worker.weigh(subject.name, cell, provider.name)
            truth = truth_of_cell()
            problem = subject.problem(cell, provider, self._device)
            whole = truth[2] == cell.sizes["rows"]
            checked = problem if whole else subject.problem(cell, provider, self._device, rows=truth[2])
            error = relative_error(checked.result(), truth)
        except Exception as raised:  # whatever a peer raises is its result, and the others go on
            if isinstance(raised, ProcessLostError):
                self._lost[subject.name, _kernels_of(provider)] = f"{cell.title}: {raised}"
            return _failure(raised)
        values = {"error": error, "error_rows": truth[2], "peak_extra_bytes": weighed.extra_bytes}
        if error <= subject.limit[cell.dtype]:  # a NaN is not
            return _Checked(provider, problem, values, weighed.no_graph)
        return {"status": "wrong", **values}

    def _lost_before(self, subject: Subject, provider: Provider) -> str | None:
        """Where and why its kernels took a process along, in this subject or in one of an operator that it uses."""
        for (name, kernels), reason in self._lost.items():
            if kernels == _kernels_of(provider) and (name == subject.name or subject.name not in OPERATORS):
                return reason
        return None

    def _floor(self, subject: Subject, cell: Cell) -> Floor | None:
        try:
            return subject.floor(cell, self._device)
        except Exception as error:  # the rows stand without it
            self._say(f"{cell.title}: no floor: {error}")
            return None

    def _timed(self, cell: Cell, name: str, right: Mapping[str, _Checked], floor: Floor | None) -> dict[str, Row]:
        """Provider → numbers of one pass."""
        numbers: dict[str, Row] = {}
        calls: dict[str, Call] = {}
        for key, checked in right.items():
            if name == "graph" and checked.no_graph:
                numbers[key] = {"status": "failed", "reason": checked.no_graph}
                continue
            try:
                calls[key] = checked.problem.call(name)
            except Exception as error:  # as above
                numbers[key] = _failure(error)
        timed = calls if floor is None else calls | {"floor": floor.call}
        times = interleaved(timed, cell.seconds, self._device) if calls else {}
        least = None
        if floor is not None and name in floor.shares and isinstance(of_floor := times.get("floor"), list):
            least = floor.shares[name] * quantiles(of_floor)["median_ms"]
        for key in calls:
            values = times[key]
            if isinstance(values, Exception):
                numbers[key] = _failure(values)
                continue
            row: Row = {"status": "ok", **quantiles(values), "floor_ms": least}
            numbers[key] = row | {"share_of_floor": None if least is None else least / row["median_ms"]}
        return numbers


def _kernels_of(provider: Provider) -> str:
    """``merc:triton, tf32`` and ``merc:triton`` are the same."""
    return provider.name.partition(",")[0]


def relative_error(result: tuple[float, Any], truth: Truth) -> float:
    """Of value and gradient, the larger."""
    value = abs(result[0] - truth[0]) / abs(truth[0])
    if truth[1] is None:
        return value
    gradient = float((result[1].double() - truth[1]).norm() / truth[1].norm())
    return max(value, gradient) if gradient == gradient else gradient  # max would drop a NaN


def line(row: Row) -> str:
    """A row for the eye."""
    head = f"{row['provider']:24} {row['pass']:8}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {row.get('reason', row.get('error'))}"
    share, extra = row["share_of_floor"], row.get("peak_extra_bytes")
    parts = [f"{head} {row['median_ms']:10.3f} ms"]
    parts += [] if share is None else [f"{share:6.1%} of the floor"]
    parts += [] if extra is None else [f"{extra / 2**20:8.1f} MiB"]
    return ", ".join([*parts, f"error {row['error']:.1e}"])


def _failure(error: Exception) -> Row:
    if is_out_of_memory(error):
        return {"status": "out of memory", "reason": str(error)[:300]}
    return {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
