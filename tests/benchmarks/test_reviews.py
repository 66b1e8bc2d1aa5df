"""The table of rated reviews, out of a package as it is published."""

import io
import tarfile

import pytest

from benchmarks.reviews import table


def archive(name, content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as files:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        files.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_ratings_become_labels_and_whole_reviews_splits(tmp_path):
    ratings = b"1_1\t-0.9\tno picture.\r\n1_2\t-0.15\tso, it is.\r\n2_1\t0.5\tgood\r\n3_1\t-0.5\tbad\r\n"
    inner = archive("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt", ratings)
    package = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    package.write_bytes(archive("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner))
    rows = table(package)
    assert [row["label"] for row in rows] == ["negative", "neutral", "positive", "negative"]
    assert [row["split"] for row in rows] == ["test", "test", "valid", "train"]
    assert rows[1] == {"dialogue": "1", "utterance": "1_2", "text": "so, it is.", "label": "neutral", "split": "test"}


def test_another_package_is_named(tmp_path):
    path = tmp_path / "other.tar.gz"
    path.write_bytes(archive("other/setup.py", b""))
    with pytest.raises(SystemExit, match=r"no hutto_ICWSM_2014.tar.gz in it"):
        table(path)
