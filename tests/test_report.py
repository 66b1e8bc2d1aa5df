"""The README's numbers are those of the result files."""

import json

from benchmarks import report


def test_the_readme_shows_the_committed_result():
    result = json.loads((report.RESULTS / "focal_contrastive-cpu.json").read_text())
    readme = report.README.read_text()
    assert report.table(result) in readme
    assert report.render(readme, result) == readme
    result["rows"][0]["providers"]["ours"]["median"] *= 2
    assert report.render(readme, result) != readme
