"""Losses before and after their import is changed: the differences are small, and the document shows the file."""

import json

import pytest

from benchmarks import drop_in, report
from benchmarks.results_file import RESULTS


def test_a_project_is_measured():
    pytest.importorskip("pytorch_metric_learning")
    project = next(project for project in drop_in.projects() if project.name == "SDT, from logits")
    row = drop_in.measured(project, seconds=1e-3)
    assert max(row["value_difference"], row["gradient_difference"]) < 1e-5
    assert (row["nan_before"], row["nan_after"]) == ("4 of 4", "0 of 4")
    text = drop_in.table(
        {"environment": {"threads": 2, "cpu": "c", "torch": "t", "commit": "0", "command": "x"}, "rows": [row]}
    )
    assert "SDT, from logits" in text
    assert "(real rows; NaN in 4 of 4 parameters, ours 0 of 4)" in text


def test_the_document_shows_the_committed_result():
    table = drop_in.table(json.loads((RESULTS / drop_in.FILE).read_text()))
    assert report.replaced(text := report.DROP_IN.read_text(), table, "drop-in") == text


def test_what_was_measured_agrees():
    rows = json.loads((RESULTS / drop_in.FILE).read_text())["rows"]
    assert {row["project"].partition(",")[0].partition(" ")[0] for row in rows} == {
        "SupContrast",
        "pytorch-metric-learning",
        "MultiEMO",
        "SDT",
        "CLIP",
    }
    assert [row["size"] for row in rows if row["project"] == "MultiEMO"] == [f"N {n}, D 256" for n in drop_in.ROWS]
    assert all(max(row["value_difference"], row["gradient_difference"]) < 3e-6 for row in rows)
