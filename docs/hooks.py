"""What mkdocs needs for these pages beside its settings: formulas as MathML, and the result files they link to."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./(benchmarks/results/[^)]+)\)")  # a link that GitHub follows out of docs/
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes the result files that pages link to into the site."""
    texts = [page.content_string for page in files.documentation_pages()]
    for path in sorted({path for text in texts for path in OUTSIDE.findall(text)}):
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to them where they lie in the site."""
    return OUTSIDE.sub(r"](\1)", markdown)


def on_page_content(content: str, **_: object) -> str:
    """Writes formulas as MathML, which browsers show without a script."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    return convert(html.unescape(formula[2]).strip(), display=display)
