"""Makes the figure and the tables of README.md and docs/benchmarks.md from the result files: no number is typed.

python -m benchmarks.report            prints the README's part
python -m benchmarks.report --write    rewrites both files and the figure
python -m benchmarks.report --check    says what --write would change; exit code 1 if anything
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import figure, tables
from benchmarks.environment import RESULTS
from benchmarks.results_file import Result, load

ROOT = Path(__file__).parents[1]
README, DOCS, FIGURE = ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.svg"


def readme_block(results: list[Result]) -> str:
    """The figure of the GPU, or of the CPU where there is none, and a table a device."""
    shown = figured(results)
    parts = []
    if shown is not None:
        parts.append(f"![Time and memory of focal_contrastive on {shown['device']}](docs/benchmarks.svg)")
    for kind, missing in (("cuda", tables.NO_GPU), ("cpu", tables.NO_CPU)):
        made = [text for result in results if result["kind"] == kind and (text := tables.summary(result))]
        parts += made or [missing]
    return "\n\n".join(parts)


def docs_block(results: list[Result]) -> str:
    """Every subject of every device."""
    parts = []
    for result in results:
        parts.append(f"### {result['device'].strip()}\n\n[`{result['file']}`](../benchmarks/results/{result['file']})")
        parts += [tables.subject_tables(run, result["kind"]) for run in result["runs"]]
    missing = [("cuda", tables.NO_GPU), ("cpu", tables.NO_CPU)]
    parts += [text for kind, text in missing if all(result["kind"] != kind for result in results)]
    return "\n\n".join(parts).replace("](docs/benchmarks.md)", "](#how-to-run-them)")


def figured(results: list[Result]) -> figure.Data | None:
    """What the figure shows."""
    by_kind = sorted(results, key=lambda result: result["kind"] != "cuda")
    return next((shown for result in by_kind if (shown := figure.data(result)) is not None), None)


def replaced(text: str, block: str) -> str:
    """The text with the block between its marks.

    Raises:
        ValueError: there are no marks.
    """
    marks = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError("text: expected the marks <!-- benchmarks --> and <!-- /benchmarks -->, got none")
    return marks.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


def changes(results: list[Result]) -> dict[Path, str]:
    """File → its new text, for those that differ; the figure's is its digest."""
    wanted = {path: replaced(path.read_text(), block) for path, block in _blocks(results).items()}
    changed = {path: text for path, text in wanted.items() if text != path.read_text()}
    shown = figured(results)
    digest = None if shown is None else figure.digest(shown)
    if figure.drawn_from(FIGURE) != digest:
        changed[FIGURE] = digest or ""
    return changed


def _blocks(results: list[Result]) -> dict[Path, str]:
    return {README: readme_block(results), DOCS: docs_block(results)}


def main() -> int:
    """Print, write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = [result for result in load(options.results) if result["scale"] == "full"]
    if not options.write and not options.check:
        print(readme_block(results))
        return 0
    changed = changes(results)
    for path, text in changed.items():
        print(f"{'differs' if options.check else 'written'}: {path.relative_to(ROOT)}")
        if options.check:
            continue
        shown = figured(results)
        if path != FIGURE:
            path.write_text(text)
        elif shown is None:
            FIGURE.unlink()
        else:
            figure.draw(shown, FIGURE)
    return int(options.check and bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
