"""The harness on a subject of a few numbers."""

import functools
import math
import time

import pytest

from benchmarks import timing
from benchmarks.cell import Cell, Provider
from benchmarks.growth import Prediction, Predictor, exponent, exponents
from benchmarks.harness import CALLS, Budget, Harness, relative_error
from benchmarks.memory import ProcessLostError, Weighed
from benchmarks.timing import interleaved, quantiles, rounds_of
from tests.benchmarks import subject as made


class Weighless:
    """In place of the process that weighs."""

    def __init__(self, peak=lambda provider: 1 << 20):
        self._peak = peak

    def weigh(self, subject, cell, provider):
        return Weighed(*weighed) if isinstance(weighed := self._peak(provider), tuple) else Weighed(weighed)

    def close(self):
        pass


def run(*providers, budget=None, peak=lambda provider: 1 << 20, cells=None):
    subject = made.Squares(*providers)
    harness = Harness("cpu", budget or Budget(1e9, 1 << 40), lambda text: None)
    harness._worker = Weighless(peak)
    return harness.run(subject, cells or subject.cells("full", "cpu"))


def of(result, provider):
    return [row for row in result["rows"] if row["provider"] == provider]


def test_a_right_provider_has_a_row_a_cell():
    rows = of(run(Provider("right", made.right)), "right")
    assert [row["sizes"]["rows"] for row in rows] == [8, 16]
    for row in rows:
        assert row["status"] == "ok"
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["peak_extra_bytes"] == 1 << 20
        assert row["share_of_floor"] == row["floor_ms"] / row["median_ms"]
        assert row["error"] < 1e-12


@pytest.mark.parametrize("loss", [made.wrong, made.nothing_but_nan])
def test_a_wrong_provider_gets_no_speed(loss):
    result = run(Provider("right", made.right), Provider("wrong", loss))
    for row in of(result, "wrong"):
        assert row["status"] == "wrong"
        assert "median_ms" not in row
        assert not row["error"] <= 1e-4
    assert all(row["status"] == "ok" for row in of(result, "right"))


def test_what_a_provider_raises_is_its_result():
    result = run(Provider("raises", made.raises), Provider("greedy", made.greedy), Provider("right", made.right))
    assert {row["status"] for row in of(result, "raises")} == {"failed"}
    assert "no such kernel" in of(result, "raises")[0]["reason"]
    assert {row["status"] for row in of(result, "greedy")} == {"out of memory"}
    assert {row["status"] for row in of(result, "right")} == {"ok"}


def test_one_that_is_killed_while_it_is_weighed_is_out_of_memory():
    def peak(provider):
        if provider == "right":
            return 1
        raise MemoryError("killed")

    result = run(Provider("right", made.right), Provider("large", made.right), peak=peak)
    assert {row["status"] for row in of(result, "large")} == {"out of memory"}


def test_one_that_takes_its_process_along_is_not_run_again():
    asked = []

    def peak(provider):
        asked.append(provider)
        if provider == "right":
            return 1
        raise ProcessLostError("illegal memory access")

    result = run(Provider("right", made.right), Provider("breaks", made.right), peak=peak)
    first, second = of(result, "breaks")
    assert (first["status"], second["status"]) == ("failed", "failed")
    assert "illegal memory access" in first["reason"]
    assert "not run again after squares rows 8" in second["reason"]
    assert asked == ["right", "breaks", "right"]
    assert [row["status"] for row in of(result, "right")] == ["ok", "ok"]


def test_kernels_that_took_a_process_along_are_not_run_by_what_uses_them():
    harness = Harness("cpu", Budget(1e9, 1 << 40), lambda text: None)
    both, other = made.Squares(), made.Squares()
    other.name = "kd_divergence"
    harness._lost["focal_contrastive", "merc:triton"] = "somewhere"
    tf32, alone = Provider("merc:triton, tf32", made.right), Provider("merc:cuda", made.right)
    assert harness._lost_before(both, tf32) == "somewhere"
    assert harness._lost_before(both, alone) is None
    assert harness._lost_before(other, tf32) is None


def test_what_cannot_be_captured_is_not_captured_again():
    cells = [Cell("squares", {"rows": 8, "width": 4}, passes=("both", "graph"))]
    result = run(Provider("right", made.right), peak=lambda provider: (1, "no capture"), cells=cells)
    both, graph = result["rows"]
    assert both["status"] == "ok"
    assert (graph["status"], graph["reason"]) == ("failed", "no capture")


def test_the_rows_stand_without_a_floor():
    subject = made.Squares(Provider("right", made.right))
    subject.floor = made.raises
    harness = Harness("cpu", Budget(1e9, 1 << 40), lambda text: None)
    harness._worker = Weighless()
    rows = harness.run(subject, subject.cells("full", "cpu"))["rows"]
    assert [(row["status"], row["floor_ms"]) for row in rows] == [("ok", None), ("ok", None)]


def test_what_was_measured_is_kept_after_each_cell():
    kept = []
    subject = made.Squares(Provider("right", made.right))
    harness = Harness("cpu", Budget(1e9, 1 << 40), lambda text: None, kept.append)
    harness._worker = Weighless()
    result = harness.run(subject, subject.cells("full", "cpu"))
    assert [len(run["rows"]) for run in kept] == [1, 2]
    assert kept[-1] == result


def test_an_absent_provider_is_named_with_the_reason():
    result = run(Provider("right", made.right), Provider("gone", absent="not installed"))
    assert result["absent"] == {"gone": "not installed"}
    assert not of(result, "gone")


def test_a_cell_beyond_the_budget_is_skipped_with_its_prediction():
    cells = [Cell("squares", {"rows": rows, "width": 4}) for rows in (8, 1 << 12)]
    square, linear = Provider("square", made.right, square=True), Provider("linear", made.right)
    result = run(square, linear, budget=Budget(1e9, 1 << 30), cells=cells)
    small, large = of(result, "square")
    assert small["status"] == "ok"
    assert large["status"] == "skipped"
    assert "memory" in large["reason"]
    assert large["prediction"]["extra_bytes"] == (1 << 20) * (1 << 9) ** 2
    assert large["prediction"]["seconds"] == pytest.approx(small["median_ms"] / 1e3 * (1 << 9) ** 2)
    assert of(result, "linear")[1]["status"] == "ok"  # 512 MiB


def test_the_budget_objects_to_time_memory_and_a_run_that_is_over():
    budget = Budget(seconds=10, extra_bytes=100)
    assert budget.objection(None) is None
    assert budget.objection(Prediction(9.9 / CALLS, 100)) is None
    assert "time" in budget.objection(Prediction(10.1 / CALLS, 100))
    assert "memory" in budget.objection(Prediction(1.0, 101))
    assert "up" in Budget(10, 100, time.monotonic() - 1).objection(None)
    assert "left" in Budget(100, 100, time.monotonic() + 1).objection(Prediction(1.0, 1))


def test_the_prediction_grows_from_the_largest_cell_that_was_measured():
    predictor, provider = Predictor(), Provider("p", made.right)
    small, large = (Cell("s", {"rows": rows, "width": 256}) for rows in (1000, 2000))
    predictor.learn(provider, large, 4e6, Prediction(2.0, 10))
    predictor.learn(provider, small, 1e6, Prediction(99.0, 10))  # fixed costs: not what counts
    wanted = predictor.predict(provider, Cell("s", {"rows": 4000, "width": 512}), 32e6)
    assert wanted == Prediction(16.0, 40.0)
    other_type = Cell("s", {"rows": 2000, "width": 256}, "bfloat16")
    assert predictor.predict(provider, other_type, 4e6) == Prediction(2.0, 10.0)
    assert predictor.predict(Provider("q", made.right), large, 4e6) is None


def test_the_exponent_is_the_slope():
    sizes = [1024, 4096, 16384]
    assert exponent(sizes, [3e-9 * n**2 for n in sizes]) == pytest.approx(2)
    assert exponent(sizes, [5 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert exponent([1024], [1.0]) is None
    assert exponent([1024, 1024], [1.0, 2.0]) is None


def test_exponents_leave_small_and_failed_cells_out():
    def row(rows, ms, status="ok"):
        head = {"provider": "p", "formula": "f", "dtype": "float32", "pass": "both", "status": status}
        return head | {"sizes": {"rows": rows, "width": 256}, "median_ms": ms, "peak_extra_bytes": 7 * rows}

    rows = [row(200, 50.0), row(2048, 1.0), row(4096, 4.0), row(8192, 16.0), row(16384, 1.0, "wrong")]
    (fit,) = exponents(rows)
    assert fit["rows"] == [2048, 4096, 8192]
    assert fit["time"] == pytest.approx(2)
    assert fit["memory"] == pytest.approx(1)


def test_quantiles():
    numbers = quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert numbers == {"median_ms": 3.5, "p20_ms": 2.0, "p80_ms": 5.0, "samples": 6}
    assert quantiles([7.0])["p20_ms"] == 7.0


def test_rounds_are_bounded():
    assert (rounds_of(1e-3, 1.0), rounds_of(0.1, 1.0), rounds_of(60.0, 1.0)) == (40, 10, 3)


def test_calls_are_interleaved(monkeypatch):
    order = []

    def clock(call, device, repeat, timer):
        call()
        return 0.01 if order[-1] == "c" else 0.004

    monkeypatch.setattr(timing, "clock", clock)
    times = interleaved({name: functools.partial(order.append, name) for name in "abc"}, 0.03, "cpu")
    assert [len(times[name]) for name in "abc"] == [7, 7, 3]
    order = order[6:]  # the first of each warms it up, the second says how long it takes
    assert [name for name in order if name != "c"] == ["a", "b"] * 7
    assert [index // 6 for index, name in enumerate(order) if name == "c"] == [0, 1, 2]  # spread evenly


def test_the_processor_s_time_leaves_out_what_passes_meanwhile():
    times = interleaved({"sleeps": lambda: time.sleep(0.01)}, 0.01, "cpu", time.process_time)["sleeps"]
    assert max(times) < 5


def test_one_that_raises_does_not_stop_the_others():
    def bad():
        raise ValueError("no")

    times = interleaved({"bad": bad, "good": lambda: time.sleep(0.001)}, 0.01, "cpu")
    assert isinstance(times["bad"], ValueError)
    assert len(times["good"]) >= 3


def test_one_that_raises_later_does_not_stop_the_others():
    calls = []

    def bad():
        calls.append(1)
        if len(calls) > 3:
            raise ValueError("no more")
        time.sleep(0.004)

    times = interleaved({"bad": bad, "good": lambda: time.sleep(0.004)}, 0.05, "cpu")
    assert isinstance(times["bad"], ValueError)
    assert len(calls) == 4
    assert len(times["good"]) >= 3


def test_the_error_is_the_larger_of_value_and_gradient():
    truth = (2.0, made.torch.tensor([3.0, 4.0]).double(), 2)
    assert relative_error((2.2, truth[1]), truth) == pytest.approx(0.1)
    assert relative_error((2.0, truth[1] * 1.5), truth) == pytest.approx(0.5)
    assert math.isnan(relative_error((2.0, truth[1] * math.nan), truth))
    assert math.isnan(relative_error((math.nan, truth[1]), truth))
