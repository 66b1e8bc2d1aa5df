"""The site of docs/: mkdocs builds it without a complaint, and what it shows needs no network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material")
pytest.importorskip("latex2mathml")

ROOT = Path(__file__).parents[1]


def build(root, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_site_builds_strictly_and_loads_nothing(tmp_path):
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stderr

    pages = {path.parent.name: path.read_text() for path in tmp_path.glob("*/index.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} <= set(pages)
    for name, page in pages.items():
        assert not re.search(r'<(?:script|img|link)\b[^>]*(?:src|href)="?https?:', page), name
        assert "arithmatex" not in page, name  # every formula became MathML
    assert "<math" in pages["losses"]
    assert (tmp_path / "results/iemocap6-ablation.json").is_file()


def test_a_broken_link_stops_the_build(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "docs/pages.md").open("a") as page:
        page.write("\n[a](nothing.md), [b](losses.md#nowhere), [c](../LICENSE)\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    for broken in ("nothing.md", "#nowhere", "LICENSE"):
        assert broken in built.stderr
