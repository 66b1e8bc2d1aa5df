"""The pages in a real browser, headless: keys, pointer, player, speed, and what a screen reader is told."""

from __future__ import annotations

import re
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merc_model.pages.talk import talk
from tests.browser import BROWSER, DRIVER, Browser
from tests.model.test_talk_page import HOSTILE, NAMES, odds, spoken_by

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (tests/browser.py)")

FOCUS = "return document.activeElement.id"
IN_SIGHT = "const b = document.activeElement.getBoundingClientRect(); return b.top >= -1 && b.bottom <= innerHeight + 1"
SHOWN = "return document.querySelector('caption').textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five utterances, one in each of the first seconds of a recording."""
    folder = tmp_path_factory.mktemp("page")
    with wave.open(str(folder / "a b.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.zeros(8000 * 6, np.int16).tobytes())
    starts = np.arange(5.0)
    words = ["so", *HOSTILE]
    spoken = spoken_by(5, words=words, starts=starts, ends=starts + 1, media=[folder / "a b.wav"] * 5)
    (folder / "talk.html").write_bytes(talk("talk", "a note", odds(5), NAMES, spoken, folder))
    return folder / "talk.html"


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [" ".join(["word"] * int(count)) for count in np.random.default_rng(0).integers(1, 40, 2000)]
    path = tmp_path_factory.mktemp("page") / "long.html"
    path.write_bytes(talk("long", "", odds(2000), NAMES, spoken_by(2000, words=words), None))
    return path


def test_hostile_words_do_nothing_and_the_policy_is_kept(browser: Any, short: Path) -> None:
    browser.open(short)
    assert browser.run("return document.title") == "talk"
    assert browser.complaints() == []
    assert browser.run("return [...document.querySelectorAll('.talk p > span')].map(e => e.textContent)")[:4] == [
        "so",
        *HOSTILE[:3],
    ]
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s)"
    )
    assert browser.run("return document.title") == "talk"
    assert any("Content Security Policy" in line for line in browser.complaints())


def test_keys_walk_through_the_conversation(browser: Any, short: Path) -> None:
    browser.open(short)
    seen = []
    for _ in range(20):  # the button, then the first utterance
        browser.press("Tab")
        seen.append(browser.run(FOCUS))
        if seen[-1] == "u1":
            break
    assert seen == ["theme", "u1"]
    for keys, expected in (
        (["Down", "Down"], "u3"),
        (["Up"], "u2"),
        (["End"], "u5"),
        (["Down"], "u5"),
        (["Home"], "u1"),
    ):
        browser.press(*keys)
        assert browser.run(FOCUS) == expected
        assert browser.run(SHOWN).endswith(f", utterance {expected[1:]}")
    assert browser.run("return document.querySelectorAll('#talk [tabindex=\"0\"]').length") == 1
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_pointer_shows_probabilities(browser: Any, short: Path) -> None:
    browser.open(short)
    browser.point("#u2")
    assert browser.run(SHOWN) == "Bob, utterance 2"
    shown = browser.run(
        "return [...document.querySelectorAll('#odds td:last-child')].map(e => parseInt(e.textContent))"
    )
    np.testing.assert_allclose(shown, odds(5)[1] * 100, atol=1)
    browser.point("h1")
    assert browser.run(SHOWN) == "Ann, utterance 1"  # the chosen one again


def test_the_timeline_goes_to_the_utterance(browser: Any, short: Path) -> None:
    browser.open(short)
    browser.point("#timeline svg", click=True)
    assert browser.run(FOCUS) == "u3"
    assert int(browser.run("return document.querySelector('.here').getAttribute('x')")) == 4000


def test_enter_and_button_play_from_the_utterance(browser: Any, short: Path) -> None:
    browser.open(short)
    browser.until("return player.readyState >= 1")
    browser.run("u4.focus()")
    browser.press("Enter")
    browser.until("return player.currentTime >= 3 && !player.paused")
    browser.until("return document.querySelector('[aria-current]')?.id === 'u4'")
    browser.until("return document.querySelector('[aria-current]')?.id === 'u5'")  # it follows
    assert browser.run("return document.querySelector('.chosen').id") == "u5"
    browser.point("#u2 button", click=True)
    browser.until("return player.currentTime >= 1 && player.currentTime < 2.5")
    assert browser.complaints() == []


def test_a_recording_that_was_moved_can_be_chosen(browser: Any, short: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.html"
    moved.write_bytes(short.read_bytes())
    browser.open(moved)
    browser.until("return !note.hidden")
    browser.type("#file", str(short.parent / "a b.wav"))
    browser.until("return note.hidden && player.readyState >= 1")


def test_what_a_screen_reader_is_told(browser: Any, short: Path) -> None:
    browser.open(short)
    browser.run("u1.focus()")
    browser.press("Down")
    nodes = browser.devtools("Accessibility.getFullAXTree", {})["nodes"]
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert ("main", "") in told
    assert ("complementary", "Chosen utterance") in told
    assert ("list", "Conversation") in told
    assert ("button", "Play utterance 4") in told
    assert not [role for role, name in told if role in ("button", "checkbox", "heading") and not name]
    focused = next(node for node in nodes if node["role"]["value"] == "listitem" and node.get("name", {}).get("value"))
    assert re.fullmatch(r"2 · 0:01 .*Bob.*(calm|glad|cross).*\d+%", focused["name"]["value"], re.DOTALL)
    assert re.match(r"calm \d+%, glad \d+%, ", focused["description"]["value"])


def test_dark_and_light(browser: Any, short: Path) -> None:
    browser.open(short)
    ground = "return getComputedStyle(document.body).backgroundColor"
    assert browser.run(ground) == "rgb(255, 255, 255)"
    browser.point("#theme", click=True)
    assert browser.run(ground) == "rgb(20, 23, 28)"
    assert browser.run("return theme.textContent") == "Light"
    browser.point("#theme", click=True)
    assert browser.run(ground) == "rgb(255, 255, 255)"


def test_a_narrow_screen_needs_no_sideways_scrolling(short: Path, long: Path) -> None:
    below = "u4.getBoundingClientRect().bottom"
    with Browser(width=360, height=640, dark=True) as narrow:
        for page in (short, long):
            narrow.open(page)
            narrow.run("u1.focus()")
            narrow.press(*["Down"] * 3)  # what is chosen is not under the panel
            narrow.until(f"return {below} <= document.querySelector('aside').getBoundingClientRect().top")
            assert narrow.run("return document.documentElement.scrollWidth") <= 360
            assert narrow.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"


def test_two_thousand_utterances_scroll_and_nothing_is_laid_out_anew(browser: Any, long: Path) -> None:
    def laid_out() -> int:
        metrics = browser.devtools("Performance.getMetrics", {})["metrics"]
        return next(int(metric["value"]) for metric in metrics if metric["name"] == "LayoutCount")

    browser.open(long)
    browser.devtools("Performance.enable", {})
    before = laid_out()
    browser.run("""
        window.frames_ = 0;
        const step = () => { scrollBy(0, 100); if (++frames_ < 60) requestAnimationFrame(step); };
        requestAnimationFrame(step);""")
    browser.until("return frames_ >= 60", 60)
    assert browser.run("return scrollY") == 6000
    assert laid_out() - before < 10  # which is why it scrolls smoothly
    browser.run("u1.focus()")
    browser.press("End")
    assert browser.run(FOCUS) == "u2000"
    browser.until(IN_SIGHT)
    for key in ["Home"] + ["Down"] * 30:
        browser.press(key)
        browser.until(IN_SIGHT)


def test_a_link_opens_at_its_utterance(browser: Any, long: Path) -> None:
    browser.open("about:blank")
    browser.open(long.as_uri() + "#u1000")
    assert browser.run("return document.querySelector('.chosen').id") == "u1000"
    browser.until("const top = u1000.getBoundingClientRect().top; return top > -2 && top < 700")
