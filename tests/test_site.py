"""The site of docs/: mkdocs builds it without a complaint, and what it shows needs no network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material")
pytest.importorskip("latex2mathml")

ROOT = Path(__file__).parents[1]


def test_the_site_builds_strictly_and_loads_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr

    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= set(pages)
    for name, page in pages.items():
        assert not re.search(r'<(?:script|img|link)\b[^>]*(?:src|href)="?https?:', page), name
        assert "arithmatex" not in page, name  # every formula became MathML
        assert "--8<--" not in page, name
    assert "<math" in pages["losses"]
    assert "pip install torch" in re.sub(r"<[^>]+>", "", pages["index"])  # a part of the README
    assert (tmp_path / "benchmarks/results/iemocap6-ablation.json").exists()
