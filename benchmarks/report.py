"""Makes what the documents show of other files: no number is typed.

Results stand in README.md, docs/benchmarks.md, docs/drop-in.md, docs/several-machines.md and the figure, the settings
of the model in docs/model.md.

python -m benchmarks.report            prints the README's part
python -m benchmarks.report --write    rewrites the documents and the figure
"""

import argparse
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks import distributed, drop_in, figure, tables
from benchmarks.goals import PREDICTED
from benchmarks.process import ROOT
from benchmarks.results_file import RESULTS, Result, load
from merc_model.config import Config

MODEL, DROP_IN = ROOT / "docs/model.md", ROOT / "docs/drop-in.md"
MACHINES = ROOT / "docs/several-machines.md"
README, DOCS, FIGURE = ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.svg"
MISSING = {
    "cuda": "No GPU has been measured yet: `make gpu` does it, on a machine that has one.",
    "cpu": "No CPU result is committed yet: `make bench` makes it.",
}


def block(results: list[Result], path: Path) -> str:
    """What stands between the marks of a document: the README's has the figure, one machine of a kind, and is brief."""
    brief = path == README
    parts = []
    if brief and (shown := figured(results)) is not None:
        parts.append(f"![Time and memory of focal_contrastive on {shown['device']}](docs/benchmarks.svg)")
    for kind, missing in MISSING.items():
        found = newest_first(result for result in results if result["kind"] == kind)
        for result in found[:1] if brief else found:
            file = f"[{result['file']}]({'' if brief else '../'}benchmarks/results/{result['file']})"
            text = f"Forward and backward on {tables.machine(result)}; {file} has all that was measured."
            parts.append("\n\n".join([text, tables.summary(result, brief)]))
        parts += [] if found else [missing]
    return "\n\n".join(parts)


def newest_first(results: Iterable[Result]) -> list[Result]:
    """By the day of their first run; files that say none last."""
    return sorted(results, key=lambda result: str(result["runs"][0]["environment"].get("date", "")), reverse=True)


def figured(results: list[Result]) -> figure.Data | None:
    """What the figure shows: a GPU, or a CPU where there is none."""
    by_kind = sorted(newest_first(results), key=lambda result: result["kind"] != "cuda")
    return next((shown for result in by_kind if (shown := figure.data(result)) is not None), None)


def settings() -> str:
    """The fields of the model's configuration, as its docstring tells them."""
    texts = inspect.cleandoc(Config.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", texts, re.MULTILINE)
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, text in entries:
        value = getattr(Config, name)
        shown = str(value).lower() if isinstance(value, bool) else value
        lines.append(f"| `{name}` | {shown} | {' '.join(text.split()).removesuffix('.').replace('``', '`')} |")
    return "\n".join(lines)


def predictions() -> str:
    """What an H100 is predicted to take for the goal cells."""
    found = json.loads(PREDICTED.read_text())
    lines = ["| forward and backward | predicted on an H100, ms | launches | longest kernels and what bounds them |"]
    lines.append("|---|---|---|---|")
    for title, cell in found["cells"].items():
        kernels = sorted(cell["kernels"], key=lambda row: -row["predicted_us"] * row["launches"])[:2]
        named = "; ".join(f"{row['kernel'].removesuffix('_kernel')}: {row['bound']}" for row in kernels)
        shown = f"{tables.number(cell['predicted_ms'])} predicted"
        lines.append(f"| {title} | {shown} | {cell['launches']} | {named} |")
    return "\n".join(lines)


def replaced(text: str, block: str, mark: str = "benchmarks") -> str:
    """The text with the block between its marks.

    Raises:
        ValueError: there are no marks.
    """
    marks = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"text: expected the marks <!-- {mark} --> and <!-- /{mark} -->, got none")
    return marks.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)


def changes(results: list[Result]) -> dict[Path, str]:
    """File → its new text, for those that differ; the figure's is its digest."""
    wanted = {path: replaced(path.read_text(), block(results, path)) for path in (README, DOCS)}
    if (measured := RESULTS / drop_in.FILE).exists():
        wanted[DROP_IN] = replaced(DROP_IN.read_text(), drop_in.table(json.loads(measured.read_text())), "drop-in")
    wanted[DOCS] = replaced(wanted[DOCS], predictions(), "predicted")
    wanted[MODEL] = replaced(MODEL.read_text(), settings(), "settings")
    wanted[MACHINES] = replaced(MACHINES.read_text(), distributed.tables(), "distributed")
    changed = {path: text for path, text in wanted.items() if text != path.read_text()}
    shown = figured(results)
    digest = None if shown is None else figure.digest(shown)
    return changed if figure.drawn_from(FIGURE) == digest else changed | {FIGURE: digest or ""}


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = [result for result in load(options.results) if result["scale"] == "full"]
    if not options.write:
        print(block(results, README))
        return
    shown = figured(results)
    for path, text in changes(results).items():
        if path != FIGURE:
            path.write_text(text)
        elif shown is None:
            FIGURE.unlink()
        else:
            figure.draw(shown, FIGURE)
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
