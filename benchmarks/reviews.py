"""VADER's product reviews as a table for merc extract: 3,708 sentences of 300 reviews, rated by twenty people or more.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python -m benchmarks.reviews vaderSentiment-3.3.2.tar.gz reviews.csv

A sentence is negative where the mean rating, on a scale from -4 to 4, is at most -0.5, and positive from 0.5 on. Of
five reviews in the order of the file the first is for testing, the second for validation. The package is under the MIT
licence, and asks to cite Hutto and Gilbert, VADER, ICWSM 2014.
"""

import csv
import io
import sys
import tarfile
from pathlib import Path

_INNER = "hutto_ICWSM_2014.tar.gz"
_RATINGS = "amazonReviewSnippets_GroundTruth.txt"


def table(package: Path) -> list[dict[str, str]]:
    """The rows of the table, a sentence each."""
    rows = []
    for line in _member(_member(package.read_bytes(), _INNER), _RATINGS).decode().splitlines():
        name, rating, text = line.split("\t")
        review = name.split("_")[0]
        label = "negative" if float(rating) <= -0.5 else "positive" if float(rating) >= 0.5 else "neutral"
        split = {1: "test", 2: "valid"}.get(int(review) % 5, "train")
        rows.append({"dialogue": review, "utterance": name, "text": text, "label": label, "split": split})
    return rows


def _member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        found = next((each for each in files if each.name.endswith(f"/{name}")), None)
        content = found and files.extractfile(found)
        if not content:
            raise SystemExit(f"no {name} in it: expected the source distribution of vaderSentiment 3.3.2")
        return content.read()


if __name__ == "__main__":
    rows = table(Path(sys.argv[1]))
    with Path(sys.argv[2]).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
