"""The page of a conversation, as text; test_pages_in_browser.py opens it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.cli import main
from merc_model.data.spoken import Spoken
from merc_model.pages.page import COLOURS, page
from merc_model.pages.talk import clock, talk
from tests.model.command import conversation, failure

NAMES = ["calm", "glad", "<cross & 'sad\">"]
HOSTILE = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    '" onfocus="document.title=\'taken\'" x="',
    "$title ${style} {policy} &lt; \ud800 \u202e مرحبا 开心",
]


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def spoken_by(length: int, **changed: Any) -> Spoken:
    known: dict[str, Any] = {
        "speakers": ["Ann", "Bob"] * (length // 2) + ["Ann"] * (length % 2),
        "words": [f"word {number}" for number in range(length)],
        "starts": np.full(length, np.nan),
        "ends": np.full(length, np.nan),
        "media": [None] * length,
    }
    return Spoken(**(known | changed))


def odds(length: int, classes: int = 3) -> Any:
    return np.random.default_rng(0).dirichlet(np.ones(classes), length).astype(np.float32)


def made(spoken: Spoken, folder: Path | None = Path()) -> bytes:
    return talk("talk", "a note", odds(len(spoken.words)), NAMES, spoken, folder)


def test_each_utterance_stands_there_with_speaker_words_emotion_and_odds() -> None:
    shown, probabilities = Elements(made(spoken_by(5))), odds(5)
    rows = [attributes for tag, attributes in shown.found if tag == "li" and "data-odds" in attributes]
    assert [row["id"] for row in rows] == ["u1", "u2", "u3", "u4", "u5"]
    for row, expected in zip(rows, probabilities, strict=True):
        np.testing.assert_allclose([int(share) / 1000 for share in row["data-odds"].split()], expected, atol=5.1e-4)
        assert row["class"] == f"c{expected.argmax()}"
    text = " ".join(shown.text)
    for number, row in enumerate(probabilities):
        emotion = NAMES[row.argmax()]
        assert re.search(rf"word {number}\s+{re.escape(emotion)}\s+{row.max():.0%}", text)


def test_hostile_texts_are_shown_and_do_nothing() -> None:
    quiet = Elements(made(spoken_by(4)))
    spoken = spoken_by(4, words=HOSTILE, speakers=HOSTILE, media=[Path(text) for text in HOSTILE])
    names = [HOSTILE[0], HOSTILE[1], HOSTILE[2]]
    data = talk(HOSTILE[0], HOSTILE[1], odds(4), names, spoken, Path())
    shown = Elements(data)
    text = "\n".join(shown.text)
    for hostile in HOSTILE:
        assert text.count(hostile.encode(errors="backslashreplace").decode()) >= 2
    assert sum(tag == "script" for tag, _ in shown.found) == 1
    assert not any(tag == "img" for tag, _ in shown.found)
    usual = {name for _, attributes in quiet.found for name in attributes}
    new = {name for _, attributes in shown.found for name in attributes} - usual
    assert not [name for name in new if name.startswith("on")]
    assert b"<b>" not in data


def test_the_page_loads_nothing_and_its_policy_says_so() -> None:
    spoken = spoken_by(3, media=[Path("https://example.org/a.wav"), Path("//example.org/b.wav"), Path("c d.wav")])
    data = made(spoken)
    shown = Elements(data)
    text = data.decode()
    assert not [name for _, attributes in shown.found for name in attributes if name in ("src", "href", "action")]
    assert not re.search(r"url\(|@import|import ?\(|fetch|XMLHttp", text)
    assert not re.search(r"https?://", text)
    sources = [value for _, attributes in shown.found for name, value in attributes.items() if "source" in name]
    assert sources[0] == "https%3A/example.org/a.wav"
    assert sources[2] == "c%20d.wav"
    policy = next(attributes["content"] for tag, attributes in shown.found if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for element in ("style", "script"):
        content = text.split(f"<{element}>")[1].split(f"</{element}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert " style=" not in text


def test_two_thousand_utterances_are_less_than_a_megabyte() -> None:
    generator = np.random.default_rng(1)
    words = [" ".join(["word"] * int(count)) for count in generator.integers(1, 25, 2000)]
    starts = np.cumsum(generator.uniform(1, 5, 2000))
    spoken = spoken_by(2000, words=words, starts=starts, ends=starts + 1)
    assert len(talk("long", "", odds(2000, 7), list("abcdefg"), spoken, None)) < 1_000_000


def test_times_make_the_timeline_where_all_are_known_of_one_recording() -> None:
    starts = np.array([0.0, 2.0, 6.0])
    timed = spoken_by(3, starts=starts, ends=np.array([1.0, np.nan, 10.0]))
    text = made(timed).decode()
    assert 'data-seconds="10.000"' in text
    for bar in ("M0 100V", "H1000V", "M2000 100V", "H6000V", "M6000 100V", "H10000V"):
        assert bar in text  # the second has no end: it lasts until the third
    assert 'data-start="6.000"' in text
    for other in (
        spoken_by(3, starts=np.array([0.0, np.nan, 6.0])),
        spoken_by(3, starts=starts[::-1].copy()),
        spoken_by(3, starts=starts, media=[Path("a.wav"), Path("b.wav"), Path("b.wav")]),
    ):
        assert "data-seconds" not in made(other).decode()


def test_recordings_are_found_from_where_the_page_lies() -> None:
    spoken = spoken_by(2, media=[Path("calls/one.mp4"), Path("calls/two.mp4")])
    assert b'<video id="player"' in made(spoken, Path("pages"))
    assert b'data-source0="../calls/one.mp4" data-source1="../calls/two.mp4"' in made(spoken, Path("pages"))
    assert b'id="player"' not in made(spoken, None)
    assert b'<audio id="player"' in made(spoken_by(1, media=[Path("a.wav")]))


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 61, 3723)] == ["0:00", "0:59", "1:01", "1:02:03"]


def luminance(colour: str) -> float:
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(theme: int) -> None:
    text = page("", "").decode()
    pairs = re.findall(r"(?:\.(c\d) \{ )?--(\w+): light-dark\((#\w{6}), (#\w{6})\)", text)
    colours = {kind or name: both[theme] for kind, name, *both in pairs}
    for ground, ink in itertools.product(("ground", "chosen"), ("text", "dim")):
        assert contrast(colours[ground], colours[ink]) >= 4.5
    for name in (*(f"c{number}" for number in range(COLOURS)), "focus"):
        assert contrast(colours["ground"], colours[name]) >= 3


def test_predict_makes_a_page(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    values = conversation(Path("talk"))
    values |= {"speakers": list("AABABB"), "transcript": ["so", None, *HOSTILE], "start": [0, 1, 2, 3, 4, 5]}
    values |= {"end": [1, 2, 3, 4, None, 9.5], "media": ["talk.wav"] * 6}
    Path("talk.json").write_text(json.dumps(values))
    assert main(["predict", str(finished), "talk.json", "--out", "talk.html"]) == 0
    text = Path("talk.html").read_text()
    assert 'data-source0="talk.wav"' in text
    assert 'data-seconds="9.500"' in text
    assert not list(Path().glob("*.png"))  # the timeline stands in the page
    assert main(["predict", str(finished), "talk.json", "--out", "talk.csv"]) == 0
    emotions = [line.split(",")[2] for line in Path("talk.csv").read_text().splitlines()[1:]]
    assert re.findall(r'class="felt"><bdi>(\w+)<', text) == emotions
    capsys.readouterr()
    assert "talk.html exists" in failure(["predict", str(finished), "talk.json", "--out", "talk.html"], capsys)


def test_predict_makes_a_page_of_arrays(finished: Path, tmp_path: Path) -> None:
    conversation(tmp_path / "talk")
    arrays = dict(np.load(tmp_path / "talk.npz"))
    names = {"speaker_names": np.array(list("PPQPQQ")), "transcript": np.array(["hello"] * 6)}
    out = tmp_path / "talk.html"
    for more, expected in (({}, ["speaker 0", "speaker 1"]), (names, ["P", "Q"])):
        np.savez(tmp_path / "talk.npz", **arrays, **more)
        assert main(["predict", str(finished), str(tmp_path / "talk.npz"), "--out", str(out), "--force"]) == 0
        assert set(re.findall(r'class="who">([^<]*)<', out.read_text())) == set(expected)
        assert out.read_text().count("hello") == (6 if more else 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transcript": ["so"]}, "transcript: expected (6,), one for each utterance, got (1,)"),
        ({"transcript": "so"}, "transcript: expected a list of texts"),
        ({"transcript": [1, 2, 3, 4, 5, 6]}, "transcript: expected a list of texts"),
        ({"start": [0, 1, 2, 3, 4, "five"]}, "start: expected a list of seconds"),
        ({"start": 5}, "start: expected a list of seconds"),
        ({"end": [10**400] * 6}, "end: expected a list of seconds"),
        ({"start": [0, 1, 2, 3, 4, -5]}, "expected 0 <= start < end, got -5 and nan at dialogue 'talk', utterance 6"),
        ({"start": [0, 1, 2, 3, 4, 5], "end": [1, 1, 3, 4, 5, 6]}, "got 1 and 1 at dialogue 'talk', utterance 2"),
        ({"end": [float("inf")] * 6}, "got nan and inf at dialogue 'talk', utterance 1"),
    ],
)
def test_a_transcript_that_cannot_be_is_one_line(
    finished: Path, tmp_path: Path, capsys: Any, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({**conversation(tmp_path / "talk"), **values}))
    assert message in failure(["predict", str(finished), str(path), "--out", str(tmp_path / "a.html")], capsys)
