"""The field's own releases as tables of utterances: MELD's CSVs and IEMOCAP's folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from merc_model.errors import UserError
from merc_model.extract.table import Utterance, in_order, read_rows

LAYOUTS = ("iemocap", "meld")
LABELS = {
    "iemocap": ("happy", "sad", "neutral", "angry", "excited", "frustrated"),
    "meld": ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
}
_CLIPS = {"train": "train_splits", "valid": "dev_splits_complete", "test": "output_repeated_splits_test"}
_TABLES = {"train_sent_emo.csv": "train", "dev_sent_emo.csv": "valid", "test_sent_emo.csv": "test"}
_QUOTES = str.maketrans("\x85\x91\x92\x93\x94\x96\x97", "…‘’“”–—")  # Windows' marks, that MELD has as control codes
_CODES = dict(zip(("hap", "sad", "neu", "ang", "exc", "fru"), LABELS["iemocap"], strict=True))
_SAID = re.compile(r"(Ses\d\d[FM]_\w+?_([FM])[\dX]+\w*) \[(\d+\.\d+)-(\d+\.\d+)\]: ?(.*)")
_JUDGED = re.compile(r"\[\d+\.\d+ - \d+\.\d+\]\t(\w+)\t(\w+)\t")


def read_meld(paths: Sequence[Path]) -> list[Utterance]:
    """MELD's CSVs or their folder; the clips where they lie in the release's folders beside them or a folder below."""
    found: list[Utterance] = []
    for path in _meld_tables(paths):
        split = _TABLES.get(path.name.lower())
        if split is None:
            raise UserError(f"{path}: expected MELD's folder, or of it {', '.join(_TABLES)}")
        head = path.name.lower().split("_")[0]
        places = (path.parent / _CLIPS[split], path.parent / head / _CLIPS[split])
        clips = next((place for place in places if place.is_dir()), None)
        rows = read_rows(path, "cp1252")
        lacking = {"Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID"} - set(rows[0][1] if rows else ())
        if lacking:
            raise UserError(f"{path}: no column {min(lacking)!r}; expected a CSV of MELD")
        for line, row in rows:
            place, label = f"{path}, line {line}", row["Emotion"].strip().lower()
            if label not in LABELS["meld"]:
                raise UserError(f"{place}: Emotion: expected one of {', '.join(LABELS['meld'])}, got {label!r}")
            name = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}.mp4"
            found.append(
                Utterance(
                    place=place,
                    dialogue=f"{head}-{row['Dialogue_ID']}",
                    speaker=row["Speaker"],
                    text=row["Utterance"].translate(_QUOTES).strip(),
                    label=label,
                    split=split,
                    media=None if clips is None else clips / name,
                )
            )
    return in_order(found)


def _meld_tables(paths: Sequence[Path]) -> list[Path]:
    tables = []
    for path in paths:
        inside = [file for name in _TABLES for file in (*sorted(path.glob(name)), *sorted(path.glob(f"*/{name}")))]
        if path.is_dir() and not inside:
            raise UserError(f"{path}: no {', '.join(_TABLES)} in it or a folder below")
        tables += inside if path.is_dir() else [path]
    return tables


def read_iemocap(paths: Sequence[Path]) -> list[Utterance]:
    """The release's folder, with Session1 to Session5 in it; test is the fifth, as in the benchmark.

    Utterances of other emotions than the six stay, unlabelled: they are part of the conversation.
    """
    transcripts = [file for path in paths for file in sorted(path.glob("Session*/dialog/transcriptions/Ses*.txt"))]
    if not transcripts:
        raise UserError(f"{paths[0]}: no Session*/dialog/transcriptions/Ses*.txt; give IEMOCAP's release folder")
    found: list[Utterance] = []
    for file in transcripts:
        session, dialogue = file.parents[2], file.stem
        judged = session / "dialog" / "EmoEvaluation" / file.name
        codes = dict(_JUDGED.findall(judged.read_text("latin-1"))) if judged.is_file() else {}
        for line, said in enumerate(file.read_text("latin-1").splitlines(), start=1):
            match = _SAID.match(said)
            if match is None or match[1] not in codes:  # stage directions and overlaps, that nobody judged
                continue
            clip = session / "sentences" / "wav" / dialogue / f"{match[1]}.wav"
            found.append(
                Utterance(
                    place=f"{file}, line {line}",
                    dialogue=dialogue,
                    speaker=match[2],
                    text=match[5].strip(),
                    label=_CODES.get(codes[match[1]], ""),
                    split="test" if dialogue.startswith("Ses05") else "train",
                    media=clip if clip.parents[2].is_dir() else None,
                    group=dialogue[:5],
                )
            )
    return in_order(found)
