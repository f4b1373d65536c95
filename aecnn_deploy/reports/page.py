"""HTML by hand: every text is escaped here, and nothing on the page comes from anywhere else."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from aecnn_deploy.reports.canvas import Drawing


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page; ``title`` stands in the table of contents."""

    id: str
    title: str
    body: Html


@dataclass(frozen=True, slots=True)
class Chapter:
    """All sections of one backbone."""

    id: str
    title: str
    intro: Html
    sections: tuple[Section, ...]


def text(value: str) -> Html:
    """``value`` escaped, unless it is HTML already."""
    return value if isinstance(value, Html) else Html(escape(value))


def join(*parts: str) -> Html:
    """The parts, escaped where they have to be, one after the other."""
    return Html("".join(text(part) for part in parts))


def paragraph(value: str, kind: str = "") -> Html:
    """One paragraph; ``kind`` is its class."""
    return Html(f"<p{_class(kind)}>{text(value)}</p>\n")


def bullets(items: Sequence[str], kind: str = "") -> Html:
    """A list."""
    return Html(f"<ul{_class(kind)}>\n" + "".join(f"<li>{text(item)}</li>\n" for item in items) + "</ul>\n")


def cell(main: str, *small: str, kind: str = "") -> Html:
    """A table's cell: a line, and smaller lines below it."""
    lines = "".join(f"<small>{text(line)}</small>" for line in small if line)
    return Html(f"<td{_class(kind)}>{text(main)}{lines}</td>")


def words(value: str) -> Html:
    """A cell that may break its lines."""
    return cell(value, kind="words")


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> Html:
    """A table that scrolls on its own on a narrow screen; the first column heads its row."""
    small = f"<small>{text(note)}</small>" if note else ""
    wordy = [item.startswith('<td class="words"') for item in rows[0]] if rows else [False] * len(header)
    head = "".join(
        f'<th scope="col"{_class("words" if left else "")}>{text(item)}</th>'
        for item, left in zip(header, wordy, strict=True)
    )
    body = "".join(f"<tr>{_row(row)}</tr>\n" for row in rows)
    label = escape(caption, quote=True)
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n<table>\n<caption><span>'
        f"{text(caption)}{small}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _row(row: Sequence[str]) -> str:
    first, *rest = row
    cells = "".join(
        item if isinstance(item, Html) and item.startswith("<td") else f"<td>{text(item)}</td>" for item in rest
    )
    return f'<th scope="row">{text(first)}</th>{cells}'


def picture(drawing: Drawing) -> Html:
    """The figure itself, not a link to it."""
    data = base64.b64encode(drawing.png).decode("ascii")
    return Html(
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(drawing.alt, quote=True)}">\n'
        f"<figcaption>{text(drawing.caption)}</figcaption></figure>\n"
    )


def missing(value: str) -> Html:
    """What stands where there is nothing to show."""
    return Html(f'<p class="missing">{text(value)}</p>\n')


def settings(title: str, document: Any) -> Html:
    """A document that is shown on demand."""
    shown = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True)
    return Html(f"<details><summary>{text(title)}</summary><pre>{escape(shown)}</pre></details>\n")


def page(title: str, lead: str, chapters: Sequence[Chapter]) -> str:
    """The whole document: one file, no script, nothing to load."""
    style = resources.files("aecnn_deploy.reports").joinpath("page.css").read_text("utf-8")
    contents = "".join(_contents(chapter) for chapter in chapters)
    body = "".join(_chapter(chapter) for chapter in chapters)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>\n{paragraph(lead, 'lead')}</header>\n"
        f'<nav aria-label="Contents"><strong>Contents</strong>\n{contents}</nav>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _contents(chapter: Chapter) -> str:
    items = "".join(f'<li><a href="#{item.id}">{text(item.title)}</a></li>\n' for item in chapter.sections)
    return f'<p><a href="#{chapter.id}">{text(chapter.title)}</a></p>\n<ol>\n{items}</ol>\n'


def _chapter(chapter: Chapter) -> str:
    sections = "".join(
        f'<section aria-labelledby="{item.id}">\n<h3 id="{item.id}">{text(item.title)}</h3>\n{item.body}</section>\n'
        for item in chapter.sections
    )
    return f'<h2 id="{chapter.id}">{text(chapter.title)}</h2>\n{chapter.intro}{sections}'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
