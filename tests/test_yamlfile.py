"""The YAML reader: values and places, variables, includes, and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastagi_pool.yamlfile import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_NODES,
    MAX_SECRET_BYTES,
    Bare,
    Document,
    Layout,
    bare_value,
    key_text,
    read_file,
    read_text,
)

LAYOUT = Layout(joined=frozenset({"routes"}), folders=frozenset({"python_path"}))


def read(text: str, base: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Document:
    """Read an embedded text under the name ``x.yaml``."""
    return read_text(dedent(text), "x.yaml", base, environment or {}, LAYOUT)


def problems(document: Document) -> list[str]:
    """Give the problems as the operator reads them."""
    return [str(problem) for problem in document.problems]


# -- Scalars ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["off", "no", "0123", "4:30", "1_000", "0x1F", "2020-01-01", "1e3", "true"])
def test_scalar_stays_text(word: str) -> None:
    """An unquoted scalar keeps its letters, whatever YAML 1.1 would make of it."""
    assert read(f"a: {word}").values == {"a": word}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("010", "010"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1e999", "1e999"),
        ("9" * 19, "9" * 19),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("word", "word"),
    ],
)
def test_bare_value_reads_yaml_1_2(text: str, value: object) -> None:
    """Where any type goes, an unquoted scalar has the type that YAML 1.2 gives it."""
    found = bare_value(Bare(text))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off"])
def test_bare_value_refuses_what_yaml_versions_disagree_on(word: str) -> None:
    """A word that is a truth value for some and a text for others is never guessed."""
    with pytest.raises(ValueError, match="in quotes"):
        bare_value(Bare(word))


def test_only_unquoted_scalars_are_bare() -> None:
    """Quotes say that a number is meant as text; a lone variable counts as unquoted."""
    values = read(
        """
        plain: 5
        quoted: "5"
        variable: "${N}"
        within: "${N}0"
        tagged: !!str 5
        block: |
          5
        """,
        environment={"N": "5"},
    ).values
    assert {key for key, value in values.items() if isinstance(value, Bare)} == {"plain", "variable"}


@pytest.mark.parametrize("text", ["a:", "a: ~", "a: null"])
def test_nothing_is_none(text: str) -> None:
    """A key without a value has the value None."""
    assert read(text).values == {"a": None}


# -- Variables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${NAME}", "value"),
        ("x${NAME}y${NAME}", "xvaluey" + "value"),
        ("${NAME:-other}", "value"),
        ("${EMPTY}", ""),
        ("${EMPTY:-other}", "other"),
        ("${UNSET:-}", ""),
        ("${UNSET:-a:-b $x}", "a:-b $x"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$value"),
        ("$NAME $ a$", "$NAME $ a$"),
        ("${NESTED}", "${NAME}"),
    ],
)
def test_variable(written: str, value: str) -> None:
    """A variable is replaced once, inside longer texts too, and a lone dollar sign is only itself."""
    environment = {"NAME": "value", "EMPTY": "", "NESTED": "${NAME}"}
    assert read(f"a: '{written}'", environment=environment).values == {"a": value}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${UNSET}", "needs the environment variable UNSET, which is not set"),
        ("${NAME", "without its own '}'"),
        ("${A:-${NAME}}", "without its own '}'"),
        ("${1x}", "neither"),
        ("${}", "neither"),
        ("${BYTES}", "not UTF-8"),
    ],
)
def test_variable_problem(written: str, message: str) -> None:
    """A variable that cannot be replaced is a problem with its line, and its value is marked as broken."""
    document = read(f"x: 1\na: '{written}'", environment={"NAME": "value", "BYTES": "\udcff"})
    assert len(document.problems) == 1
    assert (document.problems[0].line, document.problems[0].key) == (2, "a")
    assert message in document.problems[0].message
    assert document.broken == {("a",)}


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"a\nb\n\n", "a\nb\n"),
        (b"${X}", "${X}"),
        (b"", ""),
    ],
)
def test_secret_file(tmp_path: Path, content: bytes, value: str) -> None:
    """A secret file gives its content without the one line end that editors add."""
    (tmp_path / "secret").write_bytes(content)
    assert read("a: ${file:secret}", base=tmp_path).values == {"a": value}
    assert read(f"a: ${{file:{tmp_path}/secret}}").values == {"a": value}


def test_secret_file_problems(tmp_path: Path) -> None:
    """A secret file that cannot be read is a problem that names the file and the reason."""
    (tmp_path / "long").write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\n\xff")
    text = "\n".join(f"{name}: ${{file:{name}}}" for name in ("missing", "long", "binary", "/dev/zero"))
    assert problems(read(text, base=tmp_path)) == [
        f"x.yaml:1: missing: needs the file {tmp_path}/missing, which does not exist",
        f"x.yaml:2: long: needs the file {tmp_path}/long, which is longer than 65536 bytes",
        f"x.yaml:3: binary: needs the file {tmp_path}/binary, which is not UTF-8: see line 2",
        "x.yaml:4: ['/dev/zero']: needs the file /dev/zero, which is not a regular file",
    ]


# -- Structure --------------------------------------------------------------------------------------------


def test_places_and_nearest_parent() -> None:
    """A problem points at the key's line, or at the nearest parent that was written."""
    where = read(
        """\
        routes:
          - script: a
            options:
              deep: [1,
                     2]
        """
    ).source_map
    assert str(where.problem(("routes", 0, "options", "deep", 1), "m")) == (
        "x.yaml:5: routes[0].options.deep[1]: m"
    )
    assert str(where.problem(("routes", 0, "handler"), "m")) == "x.yaml:2: routes[0].handler: m"
    assert str(where.problem(("routes", 0, "script", 0), "m")) == "x.yaml:2: routes[0].script: m"
    assert str(where.problem((), "m", "h")) == "x.yaml:1: m (h)"


def test_key_text_quotes_odd_keys() -> None:
    """A key path stays readable when a key is no plain word."""
    assert key_text(("routes", 2, "query", "a b")) == "routes[2].query['a b']"


def test_duplicate_key_names_both_lines() -> None:
    """A key that stands twice is a problem with both lines, and the first value is kept."""
    document = read("a: 1\nb: {c: 1,\n c: 2}\na: 3\n")
    assert problems(document) == [
        "x.yaml:3: b.c: is set twice; the first time on line 2",
        "x.yaml:4: a: is set twice; the first time on line 1",
    ]
    assert document.values == {"a": "1", "b": {"c": "1"}}


def test_alias_and_merge_key() -> None:
    """Anchors, aliases and ``<<`` work, and what a mapping says itself wins."""
    document = read(
        """
        base: &base {a: 1, b: 2}
        more: &more {c: 3}
        alias: *base
        one: {<<: *base, b: own}
        two: {<<: [*base, *more]}
        quoted: {"<<": text}
        """
    )
    assert not document.problems
    assert document.values["alias"] == {"a": "1", "b": "2"}
    assert document.values["one"] == {"b": "own", "a": "1"}
    assert document.values["two"] == {"a": "1", "b": "2", "c": "3"}
    assert document.values["quoted"] == {"<<": "text"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("? [a]\n: b", "x.yaml:1: has a key that is not text"),
        ('"\\ud800": b', "x.yaml:1: has a key that is not text"),
        ("<<: 5", "x.yaml:1: has a '<<' that is neither a mapping nor a list of mappings"),
        ("a: !!int 5", "x.yaml:1: a: has the YAML tag 'tag:yaml.org,2002:int', which is not supported"),
        ("a: !x [1]", "x.yaml:1: a: has the YAML tag '!x', which is not supported"),
        ("a: !!python/object:os.system {}", "x.yaml:1: a: has the YAML tag 'tag:yaml.org,2002:python/"),
    ],
)
def test_unsupported_structure(text: str, expected: str) -> None:
    """What plain values cannot express is a problem, not a guess, and reading goes on."""
    document = read(text)
    assert len(document.problems) == 1
    assert problems(document)[0].startswith(expected)
    assert document.complete


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\n  b: c: d", 2, ["not YAML", "': ' must stand in quotes"]),
        ("a:\n\tb: 1", 2, ["not YAML", "spaces, not tabs"]),
        ("listen:\n  - *:4577", 2, ["not YAML", "must stand in quotes"]),
        ("listen:\n  - [::1]:4577", 2, ["not YAML", "must stand in quotes"]),
        ("a: *nowhere", 1, ["undefined alias 'nowhere'"]),
        ("a: {b: ${C}}", 1, ["${...} must stand in quotes"]),
        ("a: 1\n---\nb: 2", 2, ["single document"]),
        ('a: "\\UFFFFFFFF"', 1, ["not YAML"]),
        ("a: 1\nb: \x07", 2, ["character that YAML forbids"]),
        ("- a", 1, ["must hold a mapping"]),
        ("text", 1, ["must hold a mapping"]),
        ("a: &a [*a]", 1, ["itself part of"]),
        ("a: &a {<<: *a}", 1, ["itself part of"]),
        ("", 0, ["is empty"]),
        ("# nothing", 0, ["is empty"]),
        ("~", 0, ["is empty"]),
    ],
)
def test_unreadable_yaml(text: str, line: int, words: list[str]) -> None:
    """What is not YAML, or not a mapping, is one problem with its line and a usable hint."""
    document = read(text)
    assert not document.complete
    assert [problem.line for problem in document.problems] == [line]
    for word in words:
        assert word in problems(document)[0]


# -- Bounds -----------------------------------------------------------------------------------------------


def test_alias_bomb_is_refused() -> None:
    """Aliases that multiply into billions of values are refused after a bounded amount of work."""
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    document = read("\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels]))
    assert f"more than {MAX_NODES} values" in problems(document)[0]


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 20_000,
        "a: " + "{b: " * 20_000,
        "a0: &a0 {x: y}\n" + "\n".join(f"a{n}: &a{n} {{<<: *a{n - 1}}}" for n in range(1, 2000)),
        "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2000)),
    ],
    ids=["lists", "mappings", "merges", "aliases"],
)
def test_depth_is_bounded(text: str) -> None:
    """Nesting too deep for Python's stack is a problem, however it is written."""
    assert f"deeper than {MAX_DEPTH} levels" in problems(read(text))[0]


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet="ab01 \n\t:-,[]{}&*!|>'\"%@`#?<$~\\U\0é\udcff", max_size=60))
def test_nothing_raises(text: str) -> None:
    """No text whatever makes the reader raise."""
    document = read(text)
    assert document.complete or document.problems


# -- Files and includes -----------------------------------------------------------------------------------


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Each way in which a file cannot be read has its own clear problem."""
    (tmp_path / "latin1").write_bytes(b"a: 1\nb: \xe4\n")
    (tmp_path / "huge").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    expected = {
        "missing": "does not exist",
        "": "is a folder",
        "latin1": "is not UTF-8: see line 2",
        "huge": f"is longer than {MAX_FILE_BYTES} bytes",
        "latin1/x": "does not exist",
        "n" * 300: "cannot be read: File name too long",
        "nul\0": "does not exist",
    }
    for name, message in expected.items():
        path = tmp_path / name
        document = read_file(path, {}, LAYOUT)
        assert problems(document) == [f"{path}: {message}"]
        assert not document.complete


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """A file saved with a byte order mark reads like any other."""
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(tmp_path / "x.yaml", {}, LAYOUT).values == {"a": "1"}


def write(folder: Path, files: Mapping[str, str]) -> Document:
    """Write files, and read the one that is called ``main.yaml``."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(dedent(text))
    return read_file(folder / "main.yaml", {}, LAYOUT)


def test_include_joins_in_order(tmp_path: Path) -> None:
    """Globs are sorted, lists joined and mappings united, and each value keeps its own place."""
    document = write(
        tmp_path,
        {
            "main.yaml": "include: ['conf.d/*.yaml', other.yaml]\nroutes: [m]\nlog: {level: info}\n",
            "conf.d/b.yaml": "\nroutes: [b0, b1]\nlog: {file: x}\n",
            "conf.d/a.yaml": "routes:\n- a\nworkers: 1\n",
            "other.yaml": "# only a remark\n",
        },
    )
    assert not document.problems
    assert document.values == {
        "routes": ["m", "a", "b0", "b1"],
        "log": {"level": "info", "file": "x"},
        "workers": "1",
    }
    names = ["main.yaml", "conf.d/a.yaml", "conf.d/b.yaml", "other.yaml"]
    assert document.files == tuple(tmp_path / name for name in names)
    assert str(document.source_map.problem(("routes", 3), "m")) == f"{tmp_path}/conf.d/b.yaml:2: routes[1]: m"
    assert document.source_map.problem(("log", "file"), "m").line == 3


def test_include_set_twice_names_both_places(tmp_path: Path) -> None:
    """What two files set is a problem that names both places, at the top and one level below."""
    document = write(
        tmp_path,
        {
            "main.yaml": "include: more.yaml\nworkers: 1\ndatabases:\n  a: {url: x}\nlog: {file: x}\n",
            "more.yaml": "workers: 2\ndatabases:\n  b: {}\n  a: {url: y}\nlog: {file: y}\nroutes: [r]\n",
        },
    )
    assert problems(document) == [
        f"{tmp_path}/more.yaml:1: workers: is set twice; the other place is {tmp_path}/main.yaml:2",
        f"{tmp_path}/more.yaml:4: databases.a: is set twice; the other place is {tmp_path}/main.yaml:4",
        f"{tmp_path}/more.yaml:5: log.file: is set twice; the other place is {tmp_path}/main.yaml:5",
    ]
    assert document.values["workers"] == "1"


def test_include_fills_an_empty_key(tmp_path: Path) -> None:
    """A key left empty in one file may be set in another, and the place is that of the value."""
    files = {"main.yaml": "include: more.yaml\nworkers:\n", "more.yaml": "\n\nworkers: 2\n"}
    document = write(tmp_path, files)
    assert not document.problems
    assert document.source_map.problem(("workers",), "m").line == 3


def test_include_problems(tmp_path: Path) -> None:
    """A missing name, a value that is no name, and an include in an included file are problems."""
    document = write(
        tmp_path,
        {
            "main.yaml": "routes: [m]\ninclude:\n- none*.yaml\n- gone.yaml\n- {a: b}\n- more.yaml\n- ${X}\n",
            "more.yaml": "include: main.yaml\n",
        },
    )
    assert sorted(problems(document)) == [
        f"{tmp_path}/main.yaml:4: include[1]: there is no file {tmp_path}/gone.yaml",
        f"{tmp_path}/main.yaml:5: include[2]: must be the name of a file, a glob, or a list of them",
        f"{tmp_path}/main.yaml:7: include[4]: needs the environment variable X, which is not set",
        f"{tmp_path}/more.yaml:1: include: only the main file may include others",
    ]


def test_include_of_unreadable_file_is_incomplete(tmp_path: Path) -> None:
    """An included file that is no YAML or a folder makes the document say that it is not whole."""
    (tmp_path / "folder").mkdir()
    document = write(tmp_path, {"main.yaml": "include: [bad.yaml, folder]\na: 1", "bad.yaml": "x: [\n"})
    assert not document.complete
    assert [problem.file for problem in document.problems] == [
        f"{tmp_path}/bad.yaml",
        f"{tmp_path}/folder",
    ]


def test_each_file_is_read_once(tmp_path: Path) -> None:
    """A glob that also matches the main file, or a file already read, does no harm."""
    files = {"main.yaml": "include: ['*.yaml', b.yaml]\nroutes: [m]\n", "b.yaml": "routes: [b]\n"}
    assert write(tmp_path, files).values == {"routes": ["m", "b"]}


def test_folders_are_relative_to_their_file(tmp_path: Path) -> None:
    """A relative folder starts from the file that names it; an absolute one stays."""
    files = {"main.yaml": "include: sub/a.yaml\n", "sub/a.yaml": "python_path: [lib, /opt/lib]\n"}
    assert write(tmp_path, files).values == {"python_path": [f"{tmp_path}/sub/lib", "/opt/lib"]}


def test_absolute_include(tmp_path: Path) -> None:
    """An absolute glob is taken as it is, also from an embedded text."""
    (tmp_path / "a.yaml").write_text("x: 1\n")
    document = read(f"include: '{tmp_path}/*.yaml'")
    assert document.values == {"x": "1"}
    assert document.files == (tmp_path / "a.yaml",)
