"""YAML files as plain values that remember where they stood.

Laws:
    * Nothing an operator can write makes this module raise: whatever is wrong becomes a Problem with
      its file, line and key, and reading goes on to find the next one.
    * A scalar is text. Whether ``off``, ``0123`` or ``4:30`` means more than its letters is decided where
      it is used, by what is wanted there, so YAML 1.1's surprises (``off`` is false, ``4:30`` is 270)
      cannot happen. :class:`Bare` marks the scalars that may be read as a number or a truth value, and
      :func:`bare_value` reads them.
    * The work is bounded: bytes, nodes and depth have limits, so no file can hang a reload.

How it works: PyYAML composes nodes, which carry line marks; the nodes become mappings, lists and text
while ``${...}`` is replaced, and each value's :class:`Place` is noted under its :data:`Location`.
Then the included files are joined to the main one, and the places move along.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from fastagi_pool.errors import Problem

#: A key path: ``("routes", 2, "handler")``.
Location: TypeAlias = tuple[str | int, ...]

#: Largest file in bytes. Far above any real configuration, far below what would hurt.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
#: Largest ``${file:...}`` in bytes: it is meant for a secret, not for a document.
MAX_SECRET_BYTES: Final = 64 * 1024
#: Most mappings, lists and scalars in one file, counted after aliases are followed.
MAX_NODES: Final = 100_000
#: Deepest nesting of mappings and lists.
MAX_DEPTH: Final = 50

_BARE_TAG: Final = "bare"
_TEXT_TAGS: Final = frozenset({_BARE_TAG, "tag:yaml.org,2002:str"})
_SEQUENCE_TAG: Final = "tag:yaml.org,2002:seq"
_MAPPING_TAG: Final = "tag:yaml.org,2002:map"

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
#: Truth values in YAML 1.1 and text in YAML 1.2, so nobody can know what was meant.
_AMBIGUOUS: Final = frozenset({"yes", "no", "on", "off"})
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]{0,17})(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")

_DOLLAR = re.compile(r"\$(?:\$|\{(?P<inside>[^{}]*)\}|(?P<broken>\{))")
_LONE = re.compile(r"\$\{[^{}]*\}")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)

_QUOTE_HINT: Final = "a text that begins with one of * & ! % @ ` [ { must stand in quotes"
#: What usually lies behind PyYAML's words; the first that fits is the hint.
_SYNTAX_HINTS: Final = (
    (r"'\t'", "YAML is indented with spaces, not tabs"),
    ("mapping values are not allowed", "a text that holds ': ' must stand in quotes"),
    ("alias", _QUOTE_HINT),
    ("cannot start any token", _QUOTE_HINT),
    ("but got '{'", "inside [ ] and { } a ${...} must stand in quotes"),
    ("parsing a flow", _QUOTE_HINT),
    ("expected <block end>", f"look at the indentation; {_QUOTE_HINT}"),
)


class Bare(str):
    """A scalar written without quotes, or one that is nothing but a ``${...}``.

    It is text where text is wanted, and a number or a truth value where that is wanted.
    """

    __slots__ = ()


class Unread(Enum):
    """Stands for a value that had a problem: it fits nowhere, not even as an absent one."""

    UNREAD = "unread"


def bare_value(text: Bare) -> bool | int | float | str | None:
    """Read an unquoted scalar as YAML 1.2 would, for a place that takes any type.

    Only decimal numbers are numbers; ``010`` stays text, because YAML's versions disagree about it.

    Args:
        text: The scalar.

    Returns:
        What it means; the text itself if it means nothing more.

    Raises:
        ValueError: It is ``yes``, ``no``, ``on`` or ``off``, which YAML's versions read differently.
    """
    if text in _NULLS:
        return None
    if text.lower() in _AMBIGUOUS:
        raise ValueError(f"'{text}' may be text or a truth value: write '{text}' in quotes, or true or false")
    if text in _TRUTHS:
        return _TRUTHS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return str(text)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands.

    Attributes:
        file: The file's name as the operator wrote it.
        line: The line in it, from 1.
        key: The key path within that file; differs from the merged one for items of joined lists.
    """

    file: str
    line: int
    key: Location


@dataclass(frozen=True)
class SourceMap:
    """Finds the file and line of a key path.

    Attributes:
        name: The main file's name, for what has no better place.
        places: The place of each value that was written; ``()`` is the whole mapping.
    """

    name: str
    places: Mapping[Location, Place] = field(repr=False)

    def problem(self, location: Location, message: str, hint: str = "") -> Problem:
        """Say what is wrong with the value at a location.

        Args:
            location: Its key path in the merged configuration. If nothing stands there, the nearest
                parent that exists gives the file and the line.
            message: What is wrong.
            hint: What to do about it; may be empty.
        """
        known = next((n for n in range(len(location), -1, -1) if location[:n] in self.places), None)
        if known is None:
            return Problem(self.name, 0, key_text(location), message, hint)
        place = self.places[location[:known]]
        # An item number that was never written comes from a single value standing in for a list.
        absent = tuple(step for step in location[known:] if isinstance(step, str))
        return Problem(place.file, place.line, key_text(place.key + absent), message, hint)


@dataclass(frozen=True)
class Document:
    """A main file joined with the files that it includes.

    Attributes:
        values: The merged mapping, of dict, list, str, :class:`Bare`, None and :class:`Unread`.
        source_map: Where each value stands.
        files: The main file, then the included ones in the order they were joined.
        problems: What was wrong, in the order it was found.
        broken: The locations of all :class:`Unread` values.
        complete: False if a file could not be read at all, so that ``values`` says little.
    """

    values: Mapping[str, object] = field(repr=False)
    source_map: SourceMap
    files: tuple[Path, ...]
    problems: tuple[Problem, ...]
    broken: frozenset[Location]
    complete: bool


@dataclass(frozen=True)
class Layout:
    """What reading has to know about the meaning of the keys.

    Attributes:
        joined: Top-level lists to which each included file may add.
        folders: Top-level lists of paths that are relative to the file that names them.
    """

    joined: frozenset[str]
    folders: frozenset[str]


def key_text(location: Location) -> str:
    """Write a key path as people do: ``routes[2].handler``."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w-]+", step):
            text += f".{step}" if text else step
        else:
            text += f"[{step!r}]"
    return text


def read_file(path: Path, environment: Mapping[str, str], layout: Layout) -> Document:
    """Read a main file and all that it includes.

    Args:
        path: The main file.
        environment: The variables for ``${NAME}``.
        layout: How the keys of several files come together.

    Returns:
        The document; look at its ``problems`` before its ``values``.
    """
    reader = _Reader(environment, layout, str(path))
    try:
        text = _regular_text(path, MAX_FILE_BYTES)
    except _UnreadableError as error:
        reader.problems.append(Problem(str(path), 0, "", str(error)))
        return reader.document(complete=False)
    return reader.read_main(text, path.parent, path)


def read_text(text: str, name: str, base: Path, environment: Mapping[str, str], layout: Layout) -> Document:
    """Read a main "file" that is a string.

    Args:
        text: The YAML.
        name: What to call it in problems.
        base: The folder that relative paths start from.
        environment: The variables for ``${NAME}``.
        layout: How the keys of several files come together.

    Returns:
        The document; its ``files`` are the included ones.
    """
    return _Reader(environment, layout, name).read_main(text, base, None)


class _UnreadableError(Exception):
    """A file's content cannot be had; the message says why."""


class _FatalError(Exception):
    """A file's YAML cannot be followed to its end."""

    def __init__(self, line: int, message: str, hint: str = "") -> None:
        self.line = line
        self.message = message
        self.hint = hint
        super().__init__(message)


@dataclass
class _Part:
    """One file's mapping, or what is joined so far."""

    values: dict[str, object] = field(default_factory=dict)
    places: dict[Location, Place] = field(default_factory=dict)
    broken: set[Location] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


class _Reader:
    """Reads the main file, then joins the included ones to it."""

    def __init__(self, environment: Mapping[str, str], layout: Layout, name: str) -> None:
        self._environment = environment
        self._layout = layout
        self._name = name
        self._whole = _Part()
        self._files: list[Path] = []
        self.problems = self._whole.problems

    def document(self, *, complete: bool) -> Document:
        """Freeze what was read."""
        whole = self._whole
        return Document(
            values=whole.values,
            source_map=SourceMap(self._name, whole.places),
            files=tuple(self._files),
            problems=tuple(self.problems),
            broken=frozenset(whole.broken),
            complete=complete,
        )

    def read_main(self, text: str, base: Path, path: Path | None) -> Document:
        """Read the main text and everything it includes; ``path`` is None for an embedded text."""
        if path is not None:
            self._files.append(path.absolute())
        part = self._parse(text, self._name, base)
        if part is None:
            return self.document(complete=False)
        if not part.values and not part.problems:
            self.problems.append(Problem(self._name, 0, "", "is empty; it must hold a mapping of keys"))
            return self.document(complete=False)
        include = part.values.pop("include", None)
        _join(self._whole, part, self._layout)
        complete = True
        for included in self._included(include, base):
            complete = self._read_included(included) and complete
        return self.document(complete=complete)

    def _read_included(self, path: Path) -> bool:
        if path.absolute() in self._files:
            return True
        self._files.append(path.absolute())
        try:
            part = self._parse(_regular_text(path, MAX_FILE_BYTES), str(path), path.parent)
        except _UnreadableError as error:
            self.problems.append(Problem(str(path), 0, "", str(error)))
            return False
        if part is None:
            return False
        if "include" in part.values:
            del part.values["include"]
            where = SourceMap(str(path), part.places)
            message = "only the main file may include others"
            part.problems.append(where.problem(("include",), message))
        _join(self._whole, part, self._layout)
        return True

    def _parse(self, text: str, name: str, base: Path) -> _Part | None:
        """Turn one file's text into a mapping; None if that cannot be done at all."""
        builder = _Builder(name, base, self._environment)
        try:
            part = builder.build(text)
        except _FatalError as error:
            self.problems.append(Problem(name, error.line, "", error.message, error.hint))
            return None
        for key in self._layout.folders:
            items = part.values.get(key)
            if isinstance(items, list):
                part.values[key] = [str(base.absolute() / i) if isinstance(i, str) else i for i in items]
        return part

    def _included(self, include: object, base: Path) -> Iterator[Path]:
        """Find the files that the value of ``include`` names, in the order to join them."""
        patterns = include if isinstance(include, list) else [include]
        for number, pattern in enumerate(patterns):
            if isinstance(pattern, str) and pattern and "\0" not in pattern:
                yield from self._matches(pattern, base, number)
            elif include is not None and pattern is not Unread.UNREAD:
                self._refuse_include(number, "must be the name of a file, a glob, or a list of them")

    def _matches(self, pattern: str, base: Path, number: int) -> Iterator[Path]:
        if not glob.has_magic(pattern):
            if (base / pattern).exists():
                yield base / pattern
            else:
                self._refuse_include(number, f"there is no file {base / pattern}")
            return
        # Path.glob() would refuse an absolute pattern.
        for match in sorted(glob.glob(pattern, root_dir=base, recursive=True)):  # noqa: PTH207
            yield base / match

    def _refuse_include(self, number: int, message: str) -> None:
        where = SourceMap(self._name, self._whole.places)
        self.problems.append(where.problem(("include", number), message))


def _join(whole: _Part, part: _Part, layout: Layout) -> None:
    """Add one file's mapping to what was read before it."""
    merge = _Merge(whole, part, layout)
    for key, value in part.values.items():
        merge.top_level(key, value)
    for location, place in part.places.items():
        whole.places.setdefault(merge.moved(location), place)
    whole.broken.update(merge.moved(location) for location in part.broken)
    whole.problems.extend(part.problems)


class _Merge:
    """The rules for a key that two files give: lists are joined, mappings are united, nothing is replaced."""

    def __init__(self, whole: _Part, part: _Part, layout: Layout) -> None:
        self._whole = whole
        self._part = part
        self._joined = layout.joined
        self._offsets: dict[str, int] = {}

    def moved(self, location: Location) -> Location:
        """Say where a value of the new file ends up in the whole."""
        match location:
            case (str(key), int(item), *rest) if key in self._offsets:
                return (key, item + self._offsets[key], *rest)
        return location

    def top_level(self, key: str, value: object) -> None:
        """Bring one key of the new file into the whole."""
        old = self._whole.values.get(key)
        if old is None:
            self._adopt(self._whole.values, (key,), value)
        elif isinstance(old, list) and isinstance(value, list) and key in self._joined:
            self._offsets[key] = len(old)
            old.extend(value)
        elif isinstance(old, dict) and isinstance(value, dict):
            self._unite(key, old, value)
        elif value is not None:
            self._set_twice((key,))

    def _unite(self, key: str, old: dict[str, object], new: dict[str, object]) -> None:
        for name, value in new.items():
            if old.get(name) is None:
                self._adopt(old, (key, name), value)
            elif value is not None:
                self._set_twice((key, name))

    def _adopt(self, mapping: dict[str, object], location: tuple[str, ...], value: object) -> None:
        """Take a value over; the place of the empty key that stood there before must not stay."""
        mapping[location[-1]] = value
        self._whole.places.pop(location, None)

    def _set_twice(self, location: Location) -> None:
        first = self._whole.places[location]
        where = SourceMap("", self._part.places)
        message = f"is set twice; the other place is {first.file}:{first.line}"
        self._part.problems.append(where.problem(location, message))


class _Loader(yaml.BaseLoader):
    """PyYAML's reader without its types, and with bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node, as PyYAML does by calling itself: so the depth is ours to watch."""
        self._depth += 1
        self._nodes += 1
        if self._depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise _too_big(self.line + 1, self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: str, implicit: object) -> str:
        """Give an unquoted scalar a tag of its own, and everything else the plain one."""
        if kind is yaml.ScalarNode and isinstance(implicit, tuple) and implicit[0]:
            return _BARE_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call, no-any-return]


def _too_big(line: int, depth: int) -> _FatalError:
    if depth > MAX_DEPTH:
        return _FatalError(line, f"is nested deeper than {MAX_DEPTH} levels")
    return _FatalError(line, f"holds more than {MAX_NODES} values, aliases followed")


def _compose(text: str) -> yaml.Node | None:
    """Parse one file's YAML; None if it holds nothing."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _FatalError(line, f"holds a character that YAML forbids: {text[error.position]!r}") from None
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(filter(None, (error.context, error.problem)))
        hint = next((hint for words, hint in _SYNTAX_HINTS if words in message), "")
        raise _FatalError(mark.line + 1 if mark else 0, f"is not YAML: {message}", hint) from None
    except (ValueError, OverflowError) as error:
        # PyYAML passes on what chr() and int() say about an absurd escape or version.
        raise _FatalError(loader.line + 1, f"is not YAML: {error}") from None
    finally:
        loader.dispose()


class _Builder:
    """Turns the nodes of one file into values, replacing ``${...}`` and noting the places."""

    def __init__(self, name: str, base: Path, environment: Mapping[str, str]) -> None:
        self._name = name
        self._base = base
        self._environment = environment
        self._part = _Part()
        self._open: list[yaml.Node] = []
        self._nodes = 0

    def build(self, text: str) -> _Part:
        """Read the file's mapping.

        Raises:
            _FatalError: It is not YAML, not a mapping, or too big.
        """
        root = _compose(text)
        if root is None or (isinstance(root, yaml.ScalarNode) and root.value in _NULLS):
            return self._part
        if not isinstance(root, yaml.MappingNode):
            raise _FatalError(root.start_mark.line + 1, "must hold a mapping of keys, as 'listen: ...'")
        values = self._value(root, ())
        if isinstance(values, dict):
            self._part.values.update(values)
        return self._part

    def _value(self, node: yaml.Node, location: Location) -> object:
        self._nodes += 1
        if any(node is outer for outer in self._open):
            raise _FatalError(node.start_mark.line + 1, "holds an alias to a value that it is itself part of")
        if len(self._open) >= MAX_DEPTH or self._nodes > MAX_NODES:
            raise _too_big(node.start_mark.line + 1, len(self._open) + 1)
        self._part.places.setdefault(location, Place(self._name, node.start_mark.line + 1, location))
        if isinstance(node, yaml.ScalarNode) and node.tag in _TEXT_TAGS:
            return self._scalar(node, location)
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE_TAG:
                return [self._value(item, (*location, number)) for number, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == _MAPPING_TAG:
                return self._mapping(node, location)
        finally:
            self._open.pop()
        return self._unread(location, f"has the YAML tag {node.tag!r}, which is not supported")

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, object]:
        values: dict[str, object] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _BARE_TAG and key_node.value == "<<":
                merged.append(value_node)
            elif key_node.tag not in _TEXT_TAGS or not _is_unicode(key_node.value):
                self._report(Place(self._name, line, location), "has a key that is not text")
            elif key_node.value in values:
                first = self._part.places[(*location, key_node.value)].line
                place = Place(self._name, line, (*location, key_node.value))
                self._report(place, f"is set twice; the first time on line {first}")
            else:
                here = (*location, key_node.value)
                self._part.places.setdefault(here, Place(self._name, line, here))
                values[key_node.value] = self._value(value_node, here)
        for source in merged:
            self._merge_key(source, location, values)
        return values

    def _merge_key(self, source: yaml.Node, location: Location, values: dict[str, object]) -> None:
        """Carry out ``<<``: take over what the mapping does not say itself."""
        nodes = source.value if isinstance(source, yaml.SequenceNode) else [source]
        for node in nodes:
            if not isinstance(node, yaml.MappingNode):
                place = Place(self._name, node.start_mark.line + 1, location)
                self._report(place, "has a '<<' that is neither a mapping nor a list of mappings")
                continue
            taken = self._value(node, location)
            if isinstance(taken, dict):
                values.update({key: value for key, value in taken.items() if key not in values})

    def _scalar(self, node: yaml.ScalarNode, location: Location) -> str | Unread | None:
        bare = node.tag == _BARE_TAG
        if bare and node.value in _NULLS:
            return None
        try:
            text = _DOLLAR.sub(self._replacement, node.value)
        except ValueError as error:
            return self._unread(location, str(error))
        if not _is_unicode(text):
            return self._unread(location, "holds bytes that are not UTF-8, or half a character")
        return Bare(text) if bare or _LONE.fullmatch(node.value) else text

    def _replacement(self, match: re.Match[str]) -> str:
        """Give the text for one ``$$`` or ``${...}``; raise ValueError if there is none."""
        if match["broken"]:
            raise ValueError("has a '${' without its own '}'; for a literal '${' write '$${'")
        inside = match["inside"]
        if inside is None:
            return "$"
        if inside.startswith("file:"):
            return self._secret(self._base / inside.removeprefix("file:"))
        parts = _VARIABLE.fullmatch(inside)
        if parts is None:
            raise ValueError("has a '${...}' that is neither ${NAME}, ${NAME:-default} nor ${file:/path}")
        name, default = parts["name"], parts["default"]
        if default is not None:
            return self._environment.get(name) or default.removeprefix(":-")
        if name not in self._environment:
            raise ValueError(f"needs the environment variable {name}, which is not set")
        return self._environment[name]

    def _secret(self, path: Path) -> str:
        try:
            text = _regular_text(path, MAX_SECRET_BYTES)
        except _UnreadableError as error:
            raise ValueError(f"needs the file {path}, which {error}") from None
        return text.removesuffix("\n").removesuffix("\r")

    def _unread(self, location: Location, message: str) -> Unread:
        """Report a value that cannot be had."""
        self._part.broken.add(location)
        self._report(self._part.places[location], message)
        return Unread.UNREAD

    def _report(self, place: Place, message: str) -> None:
        self._part.problems.append(Problem(place.file, place.line, key_text(place.key), message))


def _is_unicode(text: str) -> bool:
    """Say whether a text can be written as UTF-8; an undecodable environment variable cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _regular_text(path: Path, limit_bytes: int) -> str:
    """Read a regular file; pipes and devices are refused, because they may never end.

    Raises:
        _UnreadableError: It is not there, no regular file, too long, not to be read, or not UTF-8.
    """
    try:
        if not path.exists():
            raise _UnreadableError("does not exist")
        if not path.is_file():
            raise _UnreadableError("is a folder" if path.is_dir() else "is not a regular file")
        with path.open("rb") as stream:
            content = stream.read(limit_bytes + 1)
    except OSError as error:
        raise _UnreadableError(f"cannot be read: {error.strerror}") from None
    if len(content) > limit_bytes:
        raise _UnreadableError(f"is longer than {limit_bytes} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _UnreadableError(f"is not UTF-8: see line {line}") from None
