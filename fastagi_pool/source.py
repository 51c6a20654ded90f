"""Source: where a command finds its configuration, and what commands end with.

Laws:
    * Only the command line (``cli``, this module and ``commands/``) reads the environment.
    * Reading a configuration needs modules that the process which becomes the master must not load: they are
      imported inside the function that does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import click

from fastagi_pool.errors import OperatorError

if TYPE_CHECKING:
    from fastagi_pool.application import Application
    from fastagi_pool.config import LoadedConfig

DEFAULT_CONFIG: Final = "/etc/fastagi-pool/fastagi-pool.yaml"
#: What a command ends with when the operator's input cannot be used; 1 is for what went wrong later.
EXIT_INPUT: Final = 2
#: Nobody is there. As in the LSB's table for init scripts.
EXIT_NOT_RUNNING: Final = 3

_Command = TypeVar("_Command", bound=Callable[..., object])


class SourceKind(Enum):
    """What a configuration is written in."""

    YAML = "our own YAML"
    DEMO = "the embedded demonstration"
    ASTGUICLIENT = "VICIdial's own"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the configuration comes from.

    Attributes:
        path: The file; not used for the demonstration.
        kind: What it is written in.
    """

    path: str
    kind: SourceKind

    def __str__(self) -> str:
        return "the demonstration" if self.kind is SourceKind.DEMO else self.path

    @classmethod
    def choose(cls, path: str | None, demo: bool, astguiclient: str | None) -> Source:
        """Take what the options of the command line say.

        Raises:
            click.UsageError: Two of them contradict each other.
        """
        if astguiclient is None:
            return cls(path or DEFAULT_CONFIG, SourceKind.DEMO if demo else SourceKind.YAML)
        if demo or path is not None:
            other = "--demo" if demo else "--config"
            raise click.UsageError(f"--astguiclient is a configuration of its own: give it or {other}")
        return cls(astguiclient, SourceKind.ASTGUICLIENT)

    def load(self) -> LoadedConfig:
        """Read it; anew each time, so that a reload sees what has changed.

        Raises:
            OperatorError: It cannot be run.
        """
        from fastagi_pool.config import load

        match self.kind:
            case SourceKind.YAML:
                return load(Path(self.path), os.environ)
            case SourceKind.DEMO:
                return _load_demo()
            case SourceKind.ASTGUICLIENT:
                return _load_astguiclient(Path(self.path))

    def absolute(self) -> Source:
        """Give the same with a path that does not depend on the working directory."""
        return self if self.kind is SourceKind.DEMO else Source(str(Path(self.path).absolute()), self.kind)

    def assemble(self) -> Application:
        """Load it, with its routes and handlers.

        Raises:
            OperatorError: It cannot be run.
        """
        from gevent import monkey

        monkey.patch_all(os=False, signal=False)
        from fastagi_pool.application import assemble

        return assemble(self.load())


def _load_demo() -> LoadedConfig:
    from fastagi_pool.config import load_text

    package = Path(__file__).parent
    environment: Mapping[str, str] = {**os.environ, "DEMO_FOLDER": str(_demo_folder())}
    return load_text((package / "demo.yaml").read_text(), "demo.yaml", package, environment)


def _load_astguiclient(path: Path) -> LoadedConfig:
    from fastagi_pool.config import load_text
    from fastagi_pool.handlers.vicidial.astguiclient import find_socket, read, to_yaml

    settings = read(path)
    text = to_yaml(settings, find_socket(settings.db_server))
    return load_text(text, f"{path} (as YAML)", path.parent, {})


def _demo_folder() -> Path:
    """Return this user's folder for what the demonstration writes; made if missing."""
    folder = Path(tempfile.gettempdir()) / f"fastagi-pool-demo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise OperatorError(f"{folder} belongs to somebody else")
    return folder


def with_source(command: _Command) -> _Command:
    """Give a command the options that say where the configuration comes from, as its ``source``."""

    @click.option(
        "-c", "--config", "path", metavar="FILE", help=f"The YAML file.  [default: {DEFAULT_CONFIG}]"
    )
    @click.option("--demo", is_flag=True, help="Use the embedded demonstration instead of a file.")
    @click.option(
        "--astguiclient",
        metavar="FILE",
        help="Serve VICIdial, as its astguiclient.conf says.",
    )
    @wraps(command)
    def with_source(path: str | None, demo: bool, astguiclient: str | None, **others: object) -> object:
        return command(source=Source.choose(path, demo, astguiclient), **others)

    return cast(_Command, with_source)
