"""Of the site: result files, which stand outside docs/, go along with the pages; formulas become MathML."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the result files, as results/NAME."""
    for path in sorted(RESULTS.glob("*.json")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to them, as they hold in the repository, as they hold on the site."""
    return markdown.replace("](../benchmarks/results/", "](results/")


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as browsers show them without a script, and so without a network."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    return str(convert(html.unescape(formula[2]).strip(), display=display))
