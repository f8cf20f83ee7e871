"""The pieces of an HTML page: tables, figures and sections. Whatever comes from outside is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape as _escape
from typing import Any

__all__ = ["code", "details", "escape", "figure", "paragraph", "section", "table"]

_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=%|points|(?:[mµ]?s|[mµ]?J|[kMG]?B|[kMG]?MACs)\b)")
_CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}


def escape(text: str) -> str:
    """Plain text as HTML, a number kept on one line with its unit."""
    return _NUMBER_AND_UNIT.sub("&nbsp;", _escape(text))


def section(title: str, *parts: str) -> str:
    """A heading and what follows it; the parts are HTML."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text."""
    kind = f' class="{style}"' if style else ""
    return f"<p{kind}>{escape(text)}</p>"


def code(text: str) -> str:
    """Commands or source to copy."""
    return f"<pre><code>{_escape(text)}</code></pre>"


def details(title: str, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    best: int | None = None,
    words: Sequence[int] = (),
    fit: bool = False,
) -> str:
    """A table of plain text; row `best` stands out, columns `words` hold sentences, `fit` wraps cells on a narrow screen."""
    head = "".join(f'<th scope="col"{_style(i, words, "text")}>{escape(text)}</th>' for i, text in enumerate(heads))
    body = "\n".join(_row(row, index == best, words) for index, row in enumerate(rows))
    kind = ' class="fit"' if fit else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def figure(drawing: Any, name: str) -> str:
    """A Plotly figure in an element of the id `name`; the page brings plotly.js along."""
    html = drawing.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=_CONFIG)
    return f'<div class="plot">{html}</div>'


def _row(cells: Sequence[str], best: bool, words: Sequence[int]) -> str:
    style = ' class="best"' if best else ""
    return (
        f"<tr{style}>"
        + "".join(f"<td{_style(i, words, 'long')}>{escape(c)}</td>" for i, c in enumerate(cells))
        + "</tr>"
    )


def _style(column: int, words: Sequence[int], name: str) -> str:
    return f' class="{name}"' if column in words else ""
