"""Docstrings in Google style: taken apart, and written as Markdown.

Laws:
    * No I/O: text goes in and text comes out.
    * Nothing of a docstring is lost: what is no section and no source is text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: As wide as the other pages of docs/.
_WIDTH: Final = 110
_SOURCE = re.compile(r"^Source: ``(.+)``$", re.MULTILINE)
#: A line that ends with a colon, and the indented lines below it.
_SECTION = re.compile(r"^(\S.*):\n((?:[ ]+\S.*(?:\n|\Z)|\n(?=[ ]))+)", re.MULTILINE)
_ITEM = re.compile(r"^(\S[^:]*): (.*(?:\n[ ].*)*)", re.MULTILINE)
_METHOD = re.compile(r":meth:`(?:~?[\w.]*\.)?(\w+)`")
_OTHER_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring, taken apart.

    Attributes:
        paragraphs: The text outside the sections, each paragraph in one line.
        sections: What stands below each head such as ``Raises``, its indentation removed.
        source: What ``Source: ``...```` names; empty if there is no such line.
    """

    paragraphs: tuple[str, ...]
    sections: Mapping[str, str]
    source: str

    def items(self, section: str) -> tuple[tuple[str, str], ...]:
        """Give the names in a section, each with its description in one line; none if it is absent.

        Raises:
            ValueError: The section holds something else too, for example a paragraph of its own.
        """
        text = self.sections.get(section, "")
        found = tuple((name, _one_line(told)) for name, told in _ITEM.findall(text))
        if " ".join(f"{name}: {told}" for name, told in found) != _one_line(text):
            raise ValueError(f"only `name: description` may stand in {section!r}, not:\n{text}")
        return found


def parse(docstring: str) -> Docstring:
    """Take a docstring apart.

    Args:
        docstring: As ``ast.get_docstring`` gives it: its common indentation removed.
    """
    source = _SOURCE.search(docstring)
    rest = _SOURCE.sub("", docstring)
    sections = {head: textwrap.dedent(body).strip() for head, body in _SECTION.findall(rest)}
    paragraphs = tuple(map(_one_line, filter(str.strip, _SECTION.sub("\n", rest).split("\n\n"))))
    return Docstring(paragraphs, sections, source[1] if source else "")


def markdown(text: str) -> str:
    """Write docstring text as Markdown: code, and links to the methods it names."""
    text = _METHOD.sub(r"[`\1`](#\1)", text)
    return _OTHER_ROLE.sub(r"`\1`", text).replace("``", "`")


def paragraph(text: str) -> str:
    """Break Markdown into lines."""
    return _filled(text, "") + "\n"


def bullets(items: tuple[tuple[str, str], ...]) -> str:
    """Write names and descriptions as a list.

    Args:
        items: Names, where several stand between commas, and descriptions as in the docstring.
    """
    return "".join(f"{_filled(line, '  ')}\n" for line in _bullet_lines(items))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table.

    Args:
        head: The columns' names.
        rows: The cells of each row, in Markdown.
    """
    lines = [_row(head), "|" + "---|" * len(head), *map(_row, rows)]
    return "".join(f"{line}\n" for line in lines)


def _bullet_lines(items: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for names, text in items:
        shown = ", ".join(f"`{name}`" for name in names.split(", "))
        yield f"- {shown}: {markdown(text)}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
