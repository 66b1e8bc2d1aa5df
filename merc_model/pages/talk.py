"""The page of one conversation: who said what and with which emotion, the timeline, and the recording."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from merc_model.data.spoken import Spoken
from merc_model.files import relative
from merc_model.pages.page import COLOURS, heading, page, plain

_WIDTH = 10_000  # units of the timeline
_MOST_SPEAKERS = 12  # with a lane of their own
_VIDEO = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".ogv")


def talk(
    title: str,
    note: str,
    probabilities: NDArray[np.float32],
    label_names: Sequence[str],
    spoken: Spoken,
    folder: Path | None,
) -> bytes:
    """The page of a conversation.

    Args:
        title: its name.
        note: a line on where the emotions come from.
        probabilities: ``(L, C)``.
        label_names: the C emotions.
        spoken: the L utterances.
        folder: where the page will lie, from which its recordings are found; None leaves them out.
    """
    sources = {} if folder is None else _sources(spoken, folder)
    speakers = list(dict.fromkeys(spoken.speakers))
    count = f"{len(probabilities):,} utterances" if len(probabilities) > 1 else "1 utterance"
    count += f", {len(speakers)} speakers" if len(speakers) > 1 else ""
    keys = "↑ and ↓ walk through the conversation" + (", Enter plays from there" if sources else "")
    body = [
        heading(title, count, plain(note)),
        '<noscript><p class="hint">Without JavaScript the probabilities and the player do not work.</p></noscript>',
        _timeline(probabilities, label_names, spoken, speakers),
        '<div class="columns"><main><h2 id="said">Conversation</h2>',
        f'<p class="hint">{keys}.</p>',
        '<ol class="talk" id="talk" role="list" aria-labelledby="said">',
        *_rows(probabilities, label_names, spoken, sources),
        "</ol></main>",
        f'<aside aria-label="Chosen utterance">{_panel(label_names)}{_player(sources)}</aside></div>',
    ]
    return page(title, "\n".join(body), ("talk.js",))


def _rows(
    probabilities: NDArray[np.float32], label_names: Sequence[str], spoken: Spoken, sources: dict[Path, str]
) -> list[str]:
    numbers = {path: number for number, path in enumerate(sources)}
    rows = []
    for index, odds in enumerate(probabilities):
        emotion, start, media = int(odds.argmax()), spoken.starts[index], spoken.media[index]
        data = f'data-odds="{" ".join(str(round(1000 * float(share))) for share in odds)}"'
        when = str(index + 1)
        if np.isfinite(start):
            data += f' data-start="{start:.3f}"'
            when += f" · {clock(start)}"
        if media in numbers:
            data += f' data-media="{numbers[media]}"' + ("" if np.isfinite(start) else ' data-start="0"')
            when += f' <button type="button" tabindex="-1" aria-label="Play utterance {index + 1}">▶</button>'
        words = spoken.words[index]
        rows.append(
            f'<li id="u{index + 1}" class="c{emotion % COLOURS}" tabindex="{-1 if index else 0}" {data}>'
            f'<span class="when">{when}</span>'
            f'<p><bdi class="who">{plain(spoken.speakers[index])}</bdi>'
            + (f'<br><span dir="auto">{plain(words)}</span>' if words else "")
            + f'</p><span class="felt"><bdi>{plain(label_names[emotion])}</bdi>'
            f" <small>{odds[emotion]:.0%}</small></span></li>"
        )
    return rows


def _timeline(
    probabilities: NDArray[np.float32], label_names: Sequence[str], spoken: Spoken, speakers: Sequence[str]
) -> str:
    """A lane for each emotion, with a bar as high as it is sure, and one for each speaker."""
    length = len(probabilities)
    if spoken.timed:
        lefts = spoken.starts
        following = np.append(lefts[1:], lefts[-1] + 1)
        rights = np.where(np.isfinite(spoken.ends), spoken.ends, following)
        total = float(rights.max())
        ends = [clock(share * total) for share in (0, 0.5, 1)]
    else:
        lefts = np.arange(length, dtype=np.float64)
        rights, total = lefts + 1, float(length)
        ends = [f"{round(1 + share * (length - 1)):,}" for share in (0, 0.5, 1)][:length]
    lefts, rights = lefts / total * _WIDTH, rights / total * _WIDTH
    emotions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    lanes = []
    for index, name in enumerate(label_names):
        members = np.flatnonzero(emotions == index)
        bars = [_bar(lefts[i], rights[i], confidence[i]) for i in members]
        lanes.append(_lane(f"c{index % COLOURS}", name, f"{len(members):,}", bars))
    shown = speakers[:_MOST_SPEAKERS] if len(speakers) > 1 else ()
    for name in shown:
        said = [i for i in range(length) if spoken.speakers[i] == name]
        bars = [_bar(lefts[i], rights[i], 0.5) for i in said]
        lanes.append(_lane("" if name != shown[0] else "first", name, f"{len(said):,}", bars))
    more = len(speakers) - _MOST_SPEAKERS
    seconds = f' data-seconds="{total:.3f}"' if spoken.timed else ""
    return (
        '<section aria-labelledby="when"><h2 id="when">Timeline</h2>'
        f'<ul class="lanes" id="timeline" role="list"{seconds}>'
        + "".join(lanes)
        + f'</ul><div class="axis" aria-hidden="true">{"".join(f"<span>{end}</span>" for end in ends)}</div>'
        + '<p class="hint">A bar is as high as the model is sure; a click goes to the utterance.'
        + (f" {more} more speakers have no lane." if more > 0 else "")
        + "</p></section>"
    )


def _lane(colour: str, name: str, count: str, bars: Sequence[str]) -> str:
    return (
        f'<li class="lane {colour}"><span><bdi>{plain(name)}</bdi> <small>{count}</small></span>'
        f'<svg viewBox="0 0 {_WIDTH} 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{"".join(bars)}"/><rect class="here" x="-99" width="30" height="100"/></svg></li>'
    )


def _bar(left: float, right: float, height: float) -> str:
    return f"M{left:.0f} 100V{100 - 90 * float(height):.0f}H{right:.0f}V100z"


def _panel(label_names: Sequence[str]) -> str:
    """Its numbers are those of the utterance that is chosen or under the pointer."""
    lines = [
        f'<tr class="c{index % COLOURS}"><th scope="row"><bdi>{plain(name)}</bdi></th>'
        '<td aria-hidden="true"><span class="bar"><i></i></span></td><td></td></tr>'
        for index, name in enumerate(label_names)
    ]
    return f'<h2>Probabilities</h2><table id="odds"><caption></caption><tbody>{"".join(lines)}</tbody></table>'


def _player(sources: dict[Path, str]) -> str:
    if not sources:
        return ""
    kind = "video" if any(path.suffix.lower() in _VIDEO for path in sources) else "audio"
    data = "".join(f' data-source{number}="{plain(url)}"' for number, url in enumerate(sources.values()))
    return (
        f'<{kind} id="player" controls preload="metadata"{data}></{kind}>'
        '<p id="note" role="status" hidden><label>The recording is not where it was; choose it: '
        '<input type="file" id="file" accept="audio/*,video/*"></label></p>'
        '<p><label><input type="checkbox" id="follow" checked> follow while it plays</label></p>'
    )


def _sources(spoken: Spoken, folder: Path) -> dict[Path, str]:
    """The recordings, and how the page finds them: relative to where it lies."""
    paths = dict.fromkeys(path for path in spoken.media if path is not None)
    return {path: quote(relative(path, folder), errors="backslashreplace") for path in paths}


def clock(seconds: float) -> str:
    """Seconds as 1:23 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
