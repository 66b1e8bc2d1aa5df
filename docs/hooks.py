"""Of the site: result files, which stand outside docs/, go along with the pages that name them."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    """Add the result files, as results/NAME."""
    for path in sorted(RESULTS.glob("*.json")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to them, as they hold in the repository, as they hold on the site."""
    return markdown.replace("](../benchmarks/results/", "](results/")
