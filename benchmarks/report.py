"""Writes the README's table of focal_contrastive from its result file, so that no number is typed.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- contrastive -->", "<!-- /contrastive -->"
PEERS = ("eager", "torch.compile", "loop over anchors")


def table(result: dict[str, Any]) -> str:
    """The rows of the result file in Markdown."""
    machine = result["environment"]
    lines = [
        f"**focal_contrastive_loss**, D = 256, six classes, γ = 2, forward and backward, medians in milliseconds on "
        f"{machine['threads']} cores of an {machine['cpu'].strip()}, PyTorch {machine['torch']}",
        "(`python -m benchmarks.focal_contrastive`, `focal_contrastive-cpu.json`). A pass is 2 N² D operations at the "
        "rate of a large",
        "matrix product in the same run; the plain algorithm needs three, ours two:",
        "",
        f"| N | ours | {' | '.join(f'`{name}`' if '.' in name else name for name in PEERS)} | passes | extra memory |",
        "|" + "---|" * (len(PEERS) + 4),
    ]
    for row in result["rows"]:
        ours = row["providers"]["ours"]
        peers = (row["providers"].get(name, {}).get("median") for name in PEERS)
        cells = [f"{row['rows']}" + (", bfloat16" if row["dtype"] == "bfloat16" else ""), _number(ours["median"])]
        cells += ["–" if median is None else _number(median) for median in peers]
        cells += [f"{ours['passes']:.2f}", f"{ours['peak_extra_bytes'] / 2**20:.0f} MiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def render(readme: str, result: dict[str, Any]) -> str:
    """The README with the table between its marks."""
    block = f"{BEGIN}\n{table(result)}\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, readme, flags=re.DOTALL)


def main() -> None:
    """Rewrite the README."""
    result = json.loads((RESULTS / "focal_contrastive-cpu.json").read_text())
    README.write_text(render(README.read_text(), result))


if __name__ == "__main__":
    main()
