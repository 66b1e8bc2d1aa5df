"""The parts of a GPU run, rehearsed on the CPU on small sizes: each leaves its file, and says what it found."""

import json

import pytest
import torch

from benchmarks import ceilings, goals
from benchmarks.results_file import merge, write


@pytest.fixture
def rehearsed(monkeypatch, tmp_path):
    """The exit code of a module on the CPU."""
    monkeypatch.setattr(ceilings, "SECONDS", 0.02)

    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", ["it", *arguments, "--device", "cpu", "--results", str(tmp_path)])
        return module.main()

    return run


def test_ceilings_and_goals(tmp_path, rehearsed):
    assert rehearsed(ceilings, "--shrink", "16384") == 0
    rates = json.loads((tmp_path / "ceilings.json").read_text())["ceilings"]
    assert len(rates) == 7
    assert min(rates.values()) > 0
    title = goals.SMALL[0].title
    write(tmp_path / "predicted", {"backend": "torch", "cells": {title: {"predicted_ms": 500.0}}})
    for name in ("torch", "eager"):
        assert rehearsed(goals, name, "--small", "--predicted", str(tmp_path / "predicted")) == 0
    found = json.loads((tmp_path / "goals.json").read_text())
    assert found.keys() == {"torch", "eager"}
    for rows in found.values():
        assert [row["status"] for row in rows.values()] == ["ok", "ok"]
        row = rows[title]
        assert row["over_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
        assert max(row["kernels_us"].values()) > 0
    row = found["torch"][title]
    assert row["over_predicted"] == pytest.approx(row["median_ms"] / 500)
    assert "predicted_ms" not in found["eager"][title]
    shown = goals.table(found).splitlines()
    assert len(shown) == 3
    assert title in shown[1]
    assert "torch 0.0" in shown[1]


def test_the_goals_go_on_past_a_cell_that_fails(tmp_path, monkeypatch, capsys, rehearsed):
    def broken(cell, name, device):
        if cell is goals.SMALL[0]:
            raise RuntimeError("no such kernel")
        return {"status": "ok", "median_ms": 1.0}

    monkeypatch.setattr(goals, "measured", broken)
    assert rehearsed(goals, "merc", "--small") == 1
    rows = json.loads((tmp_path / "goals.json").read_text())["merc"]
    assert [row["status"] for row in rows.values()] == ["failed", "ok"]
    assert "1 of 2 cells" in capsys.readouterr().out


def test_the_goal_cells_reach_no_further_than_65536_rows():
    assert max(cell.sizes["rows"] for cell in goals.GOALS) == 65536
    assert len({cell.title for cell in goals.GOALS}) == len(goals.GOALS)


def test_the_benchmarks_begin_with_the_goal_cells_and_go_no_further():
    cells = goals.focal_contrastive.SUBJECT.cells("full", "cuda")
    wanted = [cell.title for cell in goals.GOALS if cell.subject == "focal_contrastive"]
    assert [cell.title for cell in cells[: len(wanted)]] == wanted
    assert max(cell.sizes["rows"] for cell in cells) == 65536


def test_the_twelve_cases(tmp_path, monkeypatch):
    from tests.gpu import cases

    assert len(cases.BACKENDS) * sum(map(len, cases.SIZES.values())) == 12
    for operator in cases.SIZES:
        assert cases.one("torch", operator, "cpu", tmp_path) == 0
    monkeypatch.setattr(cases, "call", lambda *of: lambda x, other: x.sum())
    assert cases.one("torch", "kd_divergence", "cpu", tmp_path) == 1
    found = json.loads((tmp_path / "correctness.json").read_text())
    assert [row["status"] for row in found["torch focal_contrastive"]] == ["passed"] * 3
    assert [row["status"] for row in found["torch kd_divergence"]] == ["wrong"] * 3


def test_a_backend_that_is_off_is_absent(tmp_path, monkeypatch):
    from tests.gpu import cases

    monkeypatch.setattr(cases, "why_not", lambda backend: "off: no GPU")
    assert cases.one("cuda", "kd_divergence", "cuda", tmp_path) == 1
    assert json.loads((tmp_path / "correctness.json").read_text())["cuda kd_divergence"][0]["status"] == "absent"


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file.json"
    merge(path, "a", 1)
    with pytest.raises(TypeError):
        merge(path, "b", object())
    merge(path, "c", 2)
    assert json.loads(path.read_text()) == {"a": 1, "c": 2}


class TestTiles:
    @pytest.fixture
    def sweep(self):
        pytest.importorskip("triton", reason="triton is not installed")
        from benchmarks import tile_sweep

        return tile_sweep

    def test_candidates_begin_with_the_tile_that_is_used(self, sweep):
        for question in sweep.QUESTIONS:
            tile = sweep.usual(question, 90)
            tiles = sweep.candidates(tile, question.kernel)
            assert tiles[0] == tile
            assert len(set(tiles)) == len(tiles) > 20

    def test_launches_take_a_given_tile(self, sweep):
        from merc_kernels.focal_contrastive.triton import launch, source_gradient

        for kernel, room in (("sums", launch), ("held", source_gradient), ("matrix", source_gradient)):
            before = getattr(room, f"{kernel}_tile")
            with sweep.given(kernel, "that"):
                assert getattr(room, f"{kernel}_tile")(torch.float32, 3) == "that"
            assert getattr(room, f"{kernel}_tile") is before

    def test_the_table_is_one_that_the_configuration_can_take(self, sweep):
        from merc_kernels.focal_contrastive.triton.configuration import Tile

        def row(kernel, tile, ms, now=False):
            of_it = {"kernel": kernel, "dtype": "bfloat16", "width": 256, "architecture": 90}
            return of_it | {"tile": list(tile), "ms": ms, "now": now}

        ours, other = Tile(128, 64, 256, 2, 8, 2), Tile(64, 64, 256, 2, 4, 3)
        rows = [row("sums", ours, 1.0, now=True), row("sums", other, 0.5), row("sums", other, None)]
        rows += [row("held", ours, 1.0, now=True), row("held", other, 0.99), row("matrix", other, None)]
        table = eval("{" + "\n".join(sweep.best_lines(rows)) + "\n}", {"Tile": Tile})
        assert table == {("sums", "bfloat16", 256, 90): other, ("held", "bfloat16", 256, 90): ours}
