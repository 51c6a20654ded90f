"""fastagi_pool.source: which configuration a command takes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from children import in_child
from click.testing import CliRunner

from fastagi_pool.errors import OperatorError
from fastagi_pool.source import DEFAULT_CONFIG, Source, SourceKind, with_source

YAML = """
runtime_dir: {folder}
routes: [{{script: hello, handler: "fastagi_pool.handlers.demo:hello"}}]
"""


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ((None, False, None), Source(DEFAULT_CONFIG, SourceKind.YAML)),
        (("a.yaml", False, None), Source("a.yaml", SourceKind.YAML)),
        ((None, True, None), Source(DEFAULT_CONFIG, SourceKind.DEMO)),
        ((None, False, "/etc/a.conf"), Source("/etc/a.conf", SourceKind.ASTGUICLIENT)),
    ],
)
def test_choice(options: tuple[str | None, bool, str | None], chosen: Source) -> None:
    """The options of the command line name one configuration; without any it is the usual file."""
    assert Source.choose(*options) == chosen


@pytest.mark.parametrize(
    ("options", "named"), [(("a.yaml", False, "b.conf"), "--config"), ((None, True, "b.conf"), "--demo")]
)
def test_contradiction(options: tuple[str | None, bool, str | None], named: str) -> None:
    """Two configurations at once are an error that names both options."""
    with pytest.raises(click.UsageError, match=f"--astguiclient .*{named}"):
        Source.choose(*options)


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is found again wherever the server works later; the demonstration has none."""
    monkeypatch.chdir(tmp_path)
    assert Source("a.yaml", SourceKind.YAML).absolute() == Source(f"{tmp_path}/a.yaml", SourceKind.YAML)
    conf = Source("/etc/a.conf", SourceKind.ASTGUICLIENT)
    assert conf.absolute() == conf
    demo = Source("a.yaml", SourceKind.DEMO)
    assert demo.absolute() == demo


def test_names() -> None:
    """Messages call a configuration by its file, and the demonstration by its name."""
    assert str(Source("/etc/a.yaml", SourceKind.YAML)) == "/etc/a.yaml"
    assert str(Source("/etc/a.yaml", SourceKind.DEMO)) == "the demonstration"


def test_each_load_is_fresh(tmp_path: Path) -> None:
    """A reload sees what has changed since."""
    path = tmp_path / "a.yaml"
    source = Source(str(path), SourceKind.YAML)
    for workers in (2, 3):
        path.write_text(YAML.format(folder=tmp_path) + f"workers: {workers}\n")
        assert source.load().config.workers == workers


def test_demonstration_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration writes where this user alone may, and into no folder that somebody else has made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = Source("", SourceKind.DEMO).load().config
    (folder,) = tmp_path.iterdir()
    assert Path(config.runtime_dir) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="belongs to somebody else"):
        Source("", SourceKind.DEMO).load()


def test_assembled_with_its_handlers(tmp_path: Path) -> None:
    """A source can be made an application, with its routes and handlers, in a process of its own."""
    path = tmp_path / "a.yaml"
    path.write_text(YAML.format(folder=tmp_path))
    source = Source(str(path), SourceKind.YAML)
    assert in_child(lambda: len(source.assemble().table.routes)) == 1


def test_options_of_a_command() -> None:
    """A command gets its source beside its own arguments, and help for the options."""

    @click.command()
    @with_source
    @click.argument("word")
    def command(source: Source, word: str) -> None:
        """Do it."""
        click.echo(f"{source.kind.name} {source} {word}")

    runner = CliRunner()
    assert runner.invoke(command, ["-c", "/a.yaml", "x"]).output == "YAML /a.yaml x\n"
    assert runner.invoke(command, ["--demo", "x"]).output == "DEMO the demonstration x\n"
    assert DEFAULT_CONFIG in "".join(runner.invoke(command, ["--help"]).output.split())
    assert runner.invoke(command, ["--demo", "--astguiclient", "y", "x"]).exit_code == 2
