"""The frame of every page: one file, whose policy lets the browser load nothing but what stands in it."""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import resources
from string import Template

COLOURS = 10  # the classes c0 to c9 of page.css

_POLICY = (
    "default-src 'none'; style-src {style}; script-src {script}; img-src data:; media-src 'self' file: blob:;"
    " base-uri 'none'; form-action {forms}"
)


def page(title: str, body: str, scripts: tuple[str, ...] = (), forms: bool = False) -> bytes:
    """A page, in UTF-8.

    Args:
        title: plain text.
        body: HTML, in which all foreign text went through `plain`.
        scripts: files of this folder.
        forms: whether the page may send a form to where it came from.
    """
    style = _part("page.css")
    script = "".join(map(_part, ("theme.js", *scripts)))
    policy = _POLICY.format(style=_hash(style), script=_hash(script), forms="'self'" if forms else "'none'")
    text = Template(_part("page.html")).substitute(
        policy=policy, title=plain(title), style=style, body=body, script=script
    )
    return text.encode(errors="backslashreplace")  # a name that is no UTF-8


def plain(text: object) -> str:
    """Foreign text as HTML that shows it and does nothing, in an element or a quoted attribute."""
    return html.escape(str(text))


def heading(title: str, *lines: str) -> str:
    """The top of a page; the lines are HTML."""
    shown = "".join(f"<p>{line}</p>" for line in lines)
    return (
        f'<header><div><h1 dir="auto">{plain(title)}</h1>{shown}</div>'
        '<button id="theme" type="button" hidden>Dark</button></header>'
    )


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
