"""The tables and figures, and that the documents show the committed results."""

import copy
import json
from pathlib import Path

import pytest

from benchmarks import figure, regression, report, tables
from benchmarks.results_file import dumps, load, prepare, slug, store

ENVIRONMENT = {"cpu": "A CPU", "gpu": None, "threads": 2, "torch": "2.13.0", "commit": "0123456789ab+", "command": "c"}


def row(provider, rows, ms, **others):
    head = {"subject": "focal_contrastive", "formula": "focal", "provider": provider, "device": "cpu"}
    head |= {"dtype": "float32", "sizes": {"rows": rows, "width": 256}, "pass": "both", "status": "ok"}
    head |= {"median_ms": ms, "p20_ms": ms * 0.9, "p80_ms": ms * 1.1, "floor_ms": ms / 2, "share_of_floor": 0.5}
    return head | {"peak_extra_bytes": 3 << 20, "error": 1e-7} | others


@pytest.fixture
def result():
    rows = [row("merc", 956, 7.0), row("merc:cpu", 956, 6.5), row("eager", 956, 13.0), row("chunked", 956, 8.0)]
    rows += [row("merc", 4096, 95.0), row("eager", 4096, 301.0), row("chunked", 4096, 1.0, status="wrong", error=0.5)]
    skipped = {"reason": "predicted", "prediction": {"seconds": 90.0, "extra_bytes": 30 << 30}}
    rows += [row("merc", 16384, 1622.0), row("eager", 16384, 0, status="skipped", **skipped)]
    run = {"subject": "focal_contrastive", "floor": "products", "absent": {"lightly": "not installed"}, "rows": rows}
    run |= {"growth": [], "environment": ENVIRONMENT}
    return {"device": "A CPU", "kind": "cpu", "scale": "full", "file": "a-2-threads.json", "runs": [run]}


def cells_of(block, title):
    line = next(line for line in block.splitlines() if title in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_readme_block_holds_the_numbers(result):
    block = report.block([result], report.README)
    assert cells_of(block, "N 956") == ["`focal_contrastive`, N 956, D 256", "7.00", "13.0", "3.0 MiB", "3.0 MiB"]
    assert cells_of(block, "N 16384")[2] == "skipped"
    assert "0123456789+" in block
    assert "(benchmarks/results/a-2-threads.json)" in block
    assert report.MISSING["cuda"] in block
    assert report.MISSING["cpu"] not in block


def test_the_readme_shows_the_newest_machine_and_the_docs_show_all(result):
    newer = copy.deepcopy(result) | {"file": "b-2-threads.json"}
    newer["runs"][0]["environment"]["date"] = "2026-11-28"
    shown = {path: report.block([result, newer], path) for path in (report.README, report.DOCS)}
    assert "b-2-threads" in shown[report.README]
    assert "a-2-threads" not in shown[report.README]
    assert shown[report.DOCS].index("b-2-threads") < shown[report.DOCS].index("a-2-threads")


def test_without_results_it_says_so():
    assert report.block([], report.README) == "\n\n".join(report.MISSING.values())


def test_the_docs_block_has_the_spread_the_fastest_other_and_the_share(result):
    block = report.block([result], report.DOCS)
    cells = cells_of(block, "N 956")
    assert len(cells) == 7
    assert cells[1] == "7.00 (6.30–7.70)"
    assert cells[-2:] == ["chunked, 8.00", "50%"]
    assert cells_of(block, "N 4096")[-2] == "–"  # what was wrong has no time
    assert "(../benchmarks/results/a-2-threads.json)" in block


def test_numbers():
    assert [tables.number(x) for x in (0.0612, 5.0, 95.43, 1133.4)] == ["0.0612", "5.00", "95.4", "1133"]
    assert [tables.mebibytes(x) for x in (0, 1 << 20, 1500 << 20, None)] == ["0.0 MiB", "1.0 MiB", "1.5 GiB", "–"]


def test_the_block_goes_between_the_marks():
    text = "a\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nb"
    assert report.replaced(text, r"new \1") == "a\n<!-- benchmarks -->\nnew \\1\n<!-- /benchmarks -->\nb"
    with pytest.raises(ValueError, match="marks"):
        report.replaced("nothing", "new")


def test_the_figure_says_what_it_was_drawn_from(result, tmp_path):
    shown = figure.data(result)
    assert shown["lines"]["merc"] == [[956, 7.0, 3.0], [4096, 95.0, 3.0], [16384, 1622.0, 3.0]]
    figure.draw(shown, tmp_path / "f.svg")
    assert figure.drawn_from(tmp_path / "f.svg") == figure.digest(shown)
    result["runs"][0]["rows"][0]["median_ms"] = 8.0
    assert figure.drawn_from(tmp_path / "f.svg") != figure.digest(figure.data(result))
    assert figure.data({**result, "runs": []}) is None


def test_the_documents_show_the_committed_results():
    committed = [result for result in load() if result["scale"] == "full"]
    changed = [str(path.relative_to(report.ROOT)) for path in report.changes(committed)]
    assert not changed, f"make docs would change {', '.join(changed)}"


def test_a_document_that_was_typed_in_is_found(monkeypatch, tmp_path, result):
    for name in ("README", "DOCS"):
        path = tmp_path / f"{name}.md"
        path.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in ("benchmarks", "predicted")))
        monkeypatch.setattr(report, name, path)
    monkeypatch.setattr(report, "FIGURE", tmp_path / "f.svg")
    changed = report.changes([result])
    assert set(changed) == {report.README, report.DOCS, report.FIGURE}
    report.README.write_text(changed[report.README])
    assert report.README not in report.changes([result])
    report.README.write_text(changed[report.README].replace("7.00", "5.00"))
    assert report.README in report.changes([result])


def test_a_regression_is_a_ratio_that_grew(result):
    new = copy.deepcopy(result)
    for measured in new["runs"][0]["rows"]:
        measured["median_ms"] *= 3  # a slower machine: the ratios stay
    assert not list(regression.slower(new, result, 1.25))
    new["runs"][0]["rows"][4]["median_ms"] *= 1.3
    (line,) = regression.slower(new, result, 1.25)
    assert "rows=4096" in line
    assert "0.41 of eager's time, it was 0.316" in line
    assert not list(regression.slower(new, result, 1.5))
    assert regression.report([new], [result], 1.25)
    assert not regression.report([new | {"file": "other.json"}], [result], 1.25)


def test_a_result_without_a_peer_is_not_compared(result):
    result["runs"][0]["rows"] = [r for r in result["runs"][0]["rows"] if r["provider"].startswith("merc")]
    assert not regression.ratios(result)


def test_files_are_named_for_the_device():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("Intel(R) Xeon(R) Processor", 2) == "intel-xeon-2-threads"


def test_json_has_a_row_a_line(result):
    text = dumps({"runs": [{"rows": result["runs"][0]["rows"]}]})
    assert json.loads(text)["runs"][0]["rows"] == result["runs"][0]["rows"]
    assert sum("median_ms" in line for line in text.splitlines()) == 9


def test_a_folder_that_cannot_take_results_is_refused_before_anything_is_measured(tmp_path: Path):
    file = tmp_path / "file.json"
    file.write_text('{"runs": [')
    with pytest.raises(SystemExit, match=r"file\.json is not valid JSON"):
        prepare(tmp_path)
    with pytest.raises(SystemExit, match="cannot be written to"):
        prepare(file / "folder")
    prepare(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(SystemExit, match="is no folder of results"):
        load(tmp_path / "nowhere")


def test_an_unfinished_run_takes_no_finished_ones_place(tmp_path: Path):
    path = store({"subject": "s", "rows": [1]}, "cpu", tmp_path)
    partial = store({"subject": "s", "rows": [2]}, "cpu", tmp_path, finished=False)
    assert load(tmp_path)[0]["runs"][0]["rows"] == [1]
    assert json.loads(partial.read_text())["runs"][0]["rows"] == [2]
    assert store({"subject": "s", "rows": [3]}, "cpu", tmp_path) == path
    assert load(tmp_path)[0]["runs"][0]["rows"] == [3]
    assert not partial.exists()
