"""fastagi_pool.section: mappings as models, and every problem of a file at its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from fastagi_pool.errors import ConfigError
from fastagi_pool.findings import Finding
from fastagi_pool.section import Section, checked
from fastagi_pool.values import Text, Whole
from fastagi_pool.yamlfile import Layout, Location, read_file

LAYOUT = Layout(joined=frozenset({"books"}), folders=frozenset())


class Book(Section):
    """A section in a list."""

    title: Text
    pages: Whole = Field(default=0, alias="pages_read")


class Shelf(Section):
    """A file."""

    room: Text = "kitchen"
    books: tuple[Book, ...] = ()


def known_keys(location: Location) -> list[str]:
    """Give the keys of the mapping at a location."""
    return Book.file_keys() if location[:1] == ("books",) else Shelf.file_keys()


def two_books_at_most(values: Mapping[str, object]) -> Iterable[Finding]:
    """Find what pydantic does not get to."""
    books = values.get("books")
    if isinstance(books, list) and len(books) > 2:
        yield Finding(("books",), "are too many", "take some away")


def check(folder: Path, text: str) -> Shelf:
    """Write a file and check it."""
    path = folder / "shelf.yaml"
    path.write_text(text)
    return checked(read_file(path, {}, LAYOUT), Shelf, known_keys, two_books_at_most)


def problems(folder: Path, text: str) -> list[str]:
    """Return what is wrong with a file, without the folder."""
    with pytest.raises(ConfigError) as caught:
        check(folder, text)
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def test_file_keys() -> None:
    """Keys are named as they stand in the file, not as the program calls them."""
    assert Book.file_keys() == ["title", "pages_read"]


def test_good_file(tmp_path: Path) -> None:
    """A file becomes its model, and the model cannot be changed."""
    shelf = check(tmp_path, "room: attic\nbooks:\n  - {title: Emma, pages_read: 7}\n")
    assert (shelf.room, shelf.books[0].title, shelf.books[0].pages) == ("attic", "Emma", 7)
    with pytest.raises(ValidationError, match="frozen"):
        shelf.room = "cellar"


def test_key_with_nothing_behind_it(tmp_path: Path) -> None:
    """A key whose value was commented out counts as absent, wherever it stands."""
    shelf = check(tmp_path, "room:\nbooks:\n  - title: Emma\n    pages_read: # 7\n")
    assert (shelf.room, shelf.books[0].pages) == ("kitchen", 0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("roon: attic", ["shelf.yaml:1: roon: is not a known key (did you mean 'room'?)"]),
        ("roon:", ["shelf.yaml:1: roon: is not a known key (did you mean 'room'?)"]),
        (
            "books:\n  - titel: x",
            ["shelf.yaml:2: books[0].titel: is not a known key (did you mean 'title'?)"],
        ),
        ("books:\n  - title:", ["shelf.yaml:2: books[0].title: is missing"]),
        ("- room", ["shelf.yaml:1: must hold a mapping of keys, as 'listen: ...'"]),
        (
            "books: [{title: a}, {title: b}, {pages_read: x}]\nroom: {}",
            [
                "shelf.yaml:1: books: are too many (take some away)",
                "shelf.yaml:1: books[2].title: is missing",
                "shelf.yaml:1: books[2].pages_read: must be a whole number without quotes, not 'x'",
                "shelf.yaml:2: room: must be text",
            ],
        ),
        (
            "room: ${NOT_SET}\nbooks: 7",
            [
                "shelf.yaml:1: room: needs the environment variable NOT_SET, which is not set",
                "shelf.yaml:2: books: must be a list, each entry after '- '",
            ],
        ),
    ],
)
def test_problems(text: str, found: list[str], tmp_path: Path) -> None:
    """Every problem is told once, with file, line, key and hint, in the words of the file."""
    assert sorted(problems(tmp_path, text)) == sorted(found)


def test_order_of_problems(tmp_path: Path) -> None:
    """The main file comes first, then what it includes; in each the lines in their order."""
    (tmp_path / "a.yaml").write_text("books:\n  - titel: x\n")
    found = problems(tmp_path, "include: [a.yaml]\nbooks:\n  - title: Emma\n    pages: 7\nroon: x\n")
    assert [line.split(" ")[0] for line in found] == ["shelf.yaml:4:", "shelf.yaml:5:", "a.yaml:2:"]
