from __future__ import annotations

import json
from pathlib import Path

import pytest

from merc_model.cli import main
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract.cache import Cache
from merc_model.extract.features import extract
from merc_model.extract.layouts import LABELS, read_iemocap, read_meld
from merc_model.extract.rows import Work, contexts
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance, read_tables
from tests.model.command import SMALL, failure
from tests.model.recordings import text_encoder

HEAD = "dialogue,utterance,speaker,text,label,split,media,start,end\n"


def table(path: Path, *rows: str) -> Path:
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return path


def test_dialogues_stand_together_in_the_order_of_their_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "a,1,Ann,Hi,glad,,,,", "b,1,Bob,No,,test,x.wav,1:02.5,63", 'a,2,Bob,"a, b",,,,,')
    rows = read_tables([path])
    assert [(row.dialogue, row.text) for row in rows] == [("a", "Hi"), ("a", "a, b"), ("b", "No")]
    assert rows[2] == Utterance(f"{path}, line 3", "b", "Bob", "No", "", "test", tmp_path / "x.wav", 62.5, 63.0)
    assert rows[0].split == "train"


def test_tsv_json_lines_and_other_names_of_columns(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("talk\twords\nx\tHi\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"talk": 7, "words": None}) + "\n\n")
    rows = read_tables([tmp_path / "t.tsv", tmp_path / "t.jsonl"], {"dialogue": "talk", "text": "words"})
    assert [(row.dialogue, row.text) for row in rows] == [("x", "Hi"), ("7", "")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            ["a,1,A,x,glad,,,,", "a,1,A,x,cross,,,,"],
            "line 3: utterance '1' of dialogue 'a' is 'cross' here, and 'glad'",
        ),
        (["a,1,A,x,glad,,,,", "a,1,A,x,glad,,,,"], "stands in"),
        (["a,1,A,x,,,m.wav,5,4"], "end 4 is not after start 5"),
        (["a,1,A,x,,,m.wav,soon,4"], "start: expected seconds"),
        (["a,1,A,x,,dream,,,"], "split: expected one of train, valid, test, got 'dream'"),
        (["a,1,A,x,,,,,", "a,2,A,x,,test,,,"], "dialogue 'a' is in 'test' here, and in 'train'"),
        ([",1,A,x,,,,,"], "dialogue: empty"),
        (["a,1"], "line 2: expected 9 cells, got 2"),
        ([], "no column 'dialogue'"),
    ],
)
def test_what_cannot_be_right(
    tmp_path: Path, rows: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "t.csv", *rows)
    assert expected in failure(["extract", str(path), "--out", str(tmp_path / "c.npz")], capsys)
    assert not (tmp_path / "c.npz").exists()


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("dialogue,text\na,né\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_tables([tmp_path / "t.csv"])


def test_melds_csv(tmp_path: Path) -> None:
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    row = '1,"I\x92m, fine",Ross,neutral,neutral,{},{},8,21,"00:16:16,059","00:16:21,731"\n'
    for name in ("train", "dev"):
        text = head + row.format(0, 0) + row.format(0, 1)
        (tmp_path / f"{name}_sent_emo.csv").write_text(text, "utf-8")
    (tmp_path / "train_splits").mkdir()
    rows = read_meld([tmp_path / "train_sent_emo.csv", tmp_path / "dev_sent_emo.csv"])
    assert [(row.dialogue, row.split) for row in rows] == [("train-0", "train")] * 2 + [("dev-0", "valid")] * 2
    assert rows[1].text == "I’m, fine"
    assert rows[1].media == tmp_path / "train_splits" / "dia0_utt1.mp4"
    assert rows[2].media is None


def test_iemocaps_release(tmp_path: Path) -> None:
    for session in (1, 5):
        talk = f"Ses0{session}F_script01_1"
        dialog = tmp_path / f"Session{session}" / "dialog"
        for folder in ("transcriptions", "EmoEvaluation"):
            (dialog / folder).mkdir(parents=True)
        (dialog / "transcriptions" / f"{talk}.txt").write_text(
            f"{talk}_F000 [006.2901-008.2357]: Excuse me.\nM: [LAUGHTER]\n{talk}_M000 [007.5712-010.4750]: Yeah.\n"
        )
        (dialog / "EmoEvaluation" / f"{talk}.txt").write_text(
            f"% head\n[6.2901 - 8.2357]\t{talk}_F000\tneu\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()\n"
            f"[7.5712 - 10.4750]\t{talk}_M000\txxx\t[2.5, 2.5, 2.5]\n"
        )
    rows = read_iemocap([tmp_path])
    assert [(row.speaker, row.text, row.label, row.split, row.group) for row in rows] == [
        ("F", "Excuse me.", "neutral", "train", "Ses01"),
        ("M", "Yeah.", "", "train", "Ses01"),
        ("F", "Excuse me.", "neutral", "test", "Ses05"),
        ("M", "Yeah.", "", "test", "Ses05"),
    ]
    assert LABELS["iemocap"][2] == "neutral"
    with pytest.raises(UserError, match="give IEMOCAP's release folder"):
        read_iemocap([tmp_path / "Session1"])


def test_context_stays_inside_the_dialogue() -> None:
    rows = [
        Utterance("", d, s, t) for d, s, t in (("a", "A", "one"), ("a", "B", "two"), ("a", "A", ""), ("b", "A", "x"))
    ]
    assert contexts(rows, 2) == ["", "A: one", "A: one B: two", ""]
    assert contexts(rows, 0) == [""] * 4


def test_a_table_with_nothing_to_extract_or_learn(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(UserError, match="nothing to extract"):
        extract([Utterance("", "a", "A", "", "glad")], Settings(), Work(cache), name="x")
    with pytest.raises(UserError, match="no label"):
        extract([Utterance("", "a", "A", "hi")], Settings(), Work(cache), name="x")
    cache.close()


MELD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
SAID = [  # emotion, speaker, words as the published files have them
    ("neutral", "Chandler", "also I was the point person on my company\x92s transition from the KL-5 to GR-6 system."),
    ("neutral", "The Interviewer", "You must\x92ve had your hands full."),
    ("surprise", "Chandler", "That I did. \x93That I did.\x94"),
    ("joy", "Chandler", '""No"", don\x92t I beg of you!'),
    ("anger", "Joey", "All right then, we\x85 we\x92ll have a definite answer \x97 Monday."),
]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])  # as published; as spreadsheets save it again
def test_melds_release_goes_through_extract_and_train_on_text(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = text_encoder(tmp_path / "encoder")
    release = tmp_path / "MELD.Raw"
    for folder, name, dialogues in ((release / "train", "train", 6), (release, "dev", 2), (release, "test", 2)):
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f'{number},"{words}",{speaker},{emotion},neutral,{dialogue},{number},8,21,"00:16:16,059","00:16:21,731"'
            for dialogue in range(dialogues)
            for number, (emotion, speaker, words) in enumerate(SAID)
        ]
        (folder / f"{name}_sent_emo.csv").write_bytes("\r\n".join([MELD, *lines, ""]).encode(encoding))
    (release / "dev" / "dev_splits_complete").mkdir(parents=True)
    out, run = tmp_path / "meld.npz", tmp_path / "run"
    command = [
        "extract",
        str(release),
        "--layout",
        "meld",
        "--out",
        str(out),
        "--text",
        str(encoder),
        "--audio",
        "none",
    ]
    assert main(command) == 0
    corpus = Corpus.load(out)
    assert corpus.class_counts(corpus.dialogues("train")).tolist() == [12, 6, 0, 0, 6, 0, 6]
    assert corpus.label_names.tolist() == list(LABELS["meld"])
    assert corpus.dialogue_ids.tolist() == [f"train-{d}" for d in range(6)] + ["dev-0", "dev-1", "test-0", "test-1"]
    assert corpus.transcript is not None
    assert corpus.transcript[0] == SAID[0][2].replace("\x92", "’")
    assert corpus.transcript[2] == "That I did. “That I did.”"
    assert corpus.transcript[3] == '"No", don’t I beg of you!'
    assert corpus.transcript[4] == "All right then, we… we’ll have a definite answer — Monday."
    assert corpus.speakers[:5].tolist() == [0, 1, 0, 0, 2]
    assert corpus.speaker_names is not None
    assert corpus.speaker_names[1] == "The Interviewer"
    assert main(["train", "--data", str(out), "--out", str(run), *SMALL]) == 0
    assert main(["doctor", str(out)]) == 1  # no fear, sadness and disgust to learn from in these few rows
    assert "speakers: 3 of the test dialogues are in training too (Chandler, Joey, The Interviewer)" in (
        capsys.readouterr().out
    )


def test_melds_clips_beside_the_tables_or_a_folder_below(tmp_path: Path) -> None:
    row = '1,"Hi",Ross,joy,neutral,3,4,8,21,"00:16:16,059","00:16:21,731"'
    (tmp_path / "dev_sent_emo.csv").write_text(f"{MELD}\n{row}\n")
    clips = tmp_path / "dev" / "dev_splits_complete"
    clips.mkdir(parents=True)
    assert read_meld([tmp_path])[0].media == clips / "dia3_utt4.mp4"
    with pytest.raises(UserError, match=r"no train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv in it"):
        read_meld([clips])
    with pytest.raises(UserError, match="expected MELD's folder"):
        read_meld([tmp_path / "other.csv"])
