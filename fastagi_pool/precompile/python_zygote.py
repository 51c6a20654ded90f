"""The Python zygote: an interpreter in which an AGI script is compiled and its imports are loaded once, and
which forks for each call.

    python3 [the options of the script's #! line] python_zygote.py SCRIPT

Laws:
    * A call sees what a fresh run of the script sees. What it cannot see the same is listed below.
    * Any Python from 3.7 on can run this file, and it need not have fastagi_pool: the standard library only.
      Besides what every interpreter loads at its start it imports ``gc`` and ``_socket``, and nothing else:
      whatever is imported here is in the script's ``sys.modules``.
    * Only imports are done in advance, and only those before the script's first statement that could
      change what a later import finds: a script that prepares ``sys.path`` first has the imports behind that
      loaded in each call, as always.
    * It never runs the script itself, nor what the script's modules want done at exit: it ends by ``_exit``.
    * Nothing is written but answers, and nothing kept of a call.

How it works: after the imports it says which files are loaded, and waits for calls on the socket whose
descriptor is in the environment variable FASTAGI_POOL_ZYGOTE. In each forked child running the script's
code, in a ``__main__`` of its own, is the last thing done here; so the interpreter ends as always: with the
exit code, the traceback, the threads and the ``atexit`` functions of a fresh run.

Conversation (datagrams of NUL-separated byte strings):
    * we say ``ready FILE...`` once: every file whose change needs a new zygote;
    * we hear ``run ARGC ARG... NAME=VALUE...``, beside it standard input, output and error of the call;
    * we say ``pid NUMBER`` or ``error REASON``;
    * we hear ``reap NUMBER``: this child has ended;
    * we say ``status NUMBER WAITSTATUS``: -1 if nobody knows.

What differs from a fresh run:
    * What modules do when they are imported happens once, with the zygote's environment. What they print is
      repeated in each call; warnings, of the compiler too, are not. A connection that they open is shared
      by all calls; a file that they open for reading is not. They read an empty standard input.
    * A module that starts a thread cannot be loaded in advance: a fork loses it. That is a failure, and said.
    * ``random`` has a seed of its own in each call; generators of other packages (numpy's) have the same.
    * Strings have the same hash, and so sets the same order, in all calls of one zygote.
    * ``sys.modules`` holds ``gc`` and ``_socket``. Below the script's module there are frames of this
      file: ``inspect.stack()`` shows them, tracebacks of uncaught exceptions do not.
    * The command line that ps shows is the zygote's.
"""

# Not pathlib, which would have to be imported.
# ruff: noqa: PTH100, PTH109, PTH118, PTH120, PTH123, PTH208

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What the interpreter puts into a ``__main__``; taken before there is anything else.
_FRESH_MAIN = {name: value for name, value in globals().items() if name.startswith("__")}

_VARIABLE = "FASTAGI_POOL_ZYGOTE"
#: The longest datagram; the same bound as in channel.py.
_MAX_MESSAGE_BYTES = 200_000
#: The most that may be printed while modules are imported: what a pipe holds. Source: pipe(7).
_PIPE_BYTES = 65_536
#: Makes ``compile`` stop at the tree, without importing ``ast``. Source: ast.PyCF_ONLY_AST.
_ONLY_TREE = 0x400
_O_ACCMODE = 3
_S_IFMT = 0o170000
_S_IFREG = 0o100000
_INT_BYTES = 4
#: To the script's ``__main__``: the attribute, sys.modules, and the question itself.
_OWN_REFERENCES = 3
#: Kinds of statements and expressions, by the names of their trees. Source: the library reference on ast.
_IMPORTS = ("Import", "ImportFrom")
#: Before Python 3.8 each kind of constant had a name of its own.
_LITERALS = ("Constant", "Str", "Bytes", "Num", "NameConstant")


class _Descriptors:
    """The open descriptors that each call needs anew.

    Must be made before anything is imported. It puts pipes of its own on standard input and output, so that
    each copy of them that a module makes can be told from any other file, such as a /dev/null that it opened
    itself; and it makes the streams anew, since they remember what kind of file they are on.

    Raises:
        OSError: Standard input or output is closed, or there are no descriptors left.
    """

    def __init__(self) -> None:
        nothing, nobody = os.pipe()
        self._printed, printer = os.pipe()
        os.dup2(nothing, 0)
        os.dup2(printer, 1)
        for descriptor in (nothing, nobody, printer):
            os.close(descriptor)
        for name in ("stdin", "stdout"):
            stream = _as_at_start(getattr(sys, name))
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        self._originals = [_identity(descriptor) for descriptor in range(3)]
        self._copies: list[tuple[int, int, bool]] = []
        self._files: list[tuple[int, bool]] = []
        self._beginning = b""

    def survey(self) -> None:
        """Find out, when everything is imported, what was printed and what is open."""
        for stream in (sys.stdout, sys.__stdout__):
            try:
                stream.flush()  # type: ignore[union-attr]
            except (AttributeError, ValueError):
                pass  # replaced, detached or closed by a module
        os.set_blocking(self._printed, False)
        try:
            self._beginning = os.read(self._printed, _PIPE_BYTES)
        except BlockingIOError:
            pass  # nothing was printed
        os.close(self._printed)
        for name in os.listdir("/proc/self/fd"):
            self._classify(int(name))

    def _classify(self, descriptor: int) -> None:
        identity = _identity(descriptor)
        if identity is None:
            return  # the listing's own
        inheritable = os.get_inheritable(descriptor)
        if identity in self._originals:
            self._copies.append((descriptor, self._originals.index(identity), inheritable))
        elif os.fstat(descriptor).st_mode & _S_IFMT == _S_IFREG and _is_read_only(descriptor):
            self._files.append((descriptor, inheritable))

    def take(self, received: list[int]) -> None:
        """In a child: put the call's descriptors where ours are, and repeat what was printed.

        Files that are open for reading are opened again: all calls would share one position in them.
        """
        for descriptor, which, inheritable in self._copies:
            os.dup2(received[which], descriptor, inheritable)
        for descriptor, inheritable in self._files:
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            os.lseek(own, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(own, descriptor, inheritable)
            os.close(own)
        for descriptor in received:
            os.close(descriptor)
        rest = self._beginning
        while rest:
            rest = rest[os.write(1, rest) :]


def _identity(descriptor: int) -> tuple[int, int] | None:
    """Tell one open file from another; None if it is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_read_only(descriptor: int) -> bool:
    # Not by the module fcntl, which would have to be imported. Source: proc(5), /proc/pid/fdinfo.
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        lines = dict(line.split(b":", 1) for line in file if b":" in line)
    return int(lines[b"flags"], 8) & _O_ACCMODE == os.O_RDONLY


def _as_at_start(old: Any) -> Any:
    """Make a standard stream as the interpreter does. Source: create_stdio() in Python/pylifecycle.c."""
    unbuffered = not hasattr(old.buffer, "raw")
    buffer: Any = open(old.fileno(), old.mode + "b", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    raw = buffer if unbuffered else buffer.raw
    raw.name = old.name
    settings = (old.encoding, old.errors, "\n", old.line_buffering, old.write_through)
    stream: Any = io.TextIOWrapper(buffer, *settings)
    stream.mode = old.mode
    return stream


class _Script:
    """One script.

    Attributes:
        path: As it was given.
        file: As the interpreter names it in ``__file__`` and in tracebacks.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        whole = os.path.join(os.getcwd(), path)
        # Source: the library reference on __main__'s __file__, "Changed in version 3.9".
        self.file = whole if sys.version_info >= (3, 9) else path
        self._whole = whole
        # As in a fresh interpreter, with the attributes that this version of Python has there.
        self._beginning = dict(_FRESH_MAIN, __doc__=None, __file__=self.file)
        self._beginning["__loader__"] = type(__loader__)("__main__", self.file)  # type: ignore[name-defined]
        self._main = type(sys)("__main__")
        self._begin()
        self._code: Any = None

    def _begin(self) -> None:
        namespace = self._main.__dict__
        namespace.clear()
        namespace.update(self._beginning)

    def prepare(self) -> bool:
        """Compile the script and load its imports, in the surroundings that a fresh run gives it.

        Returns:
            False if that failed; why is on standard error, in the interpreter's own words.
        """
        sys.modules["__main__"] = self._main
        sys.argv[:] = [self.path]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[-2:] = [self.path]
        if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
            sys.path[0] = os.path.dirname(os.path.realpath(self.path))
        try:
            with open(self.path, "rb") as source:
                tree: Any = compile(source.read(), self.file, "exec", _ONLY_TREE, dont_inherit=True)
            self._code = compile(tree, self.file, "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError) as error:
            sys.excepthook(type(error), error.with_traceback(None), None)
            return False
        loaded = self._load(tree)
        return loaded and _is_single_threaded(self.path)

    def _load(self, tree: Any) -> bool:
        """Load the imports before the first statement that could change what an import finds."""
        for statement in tree.body:
            kind = type(statement).__name__
            if kind in _IMPORTS:
                error = self._failure_of([statement])
                if error is not None:
                    # The call, too, would fail here, and in the same words.
                    sys.excepthook(type(error), error, error.__traceback__)
                    return False
            elif kind == "Try" and _are_harmless(statement.body):
                handlers = [line for handler in statement.handlers for line in handler.body]
                foreseen = _are_harmless(handlers + statement.orelse + statement.finalbody)
                self._failure_of([statement] if foreseen else statement.body)
                if not foreseen:
                    break
            elif not _are_harmless([statement]):
                break
        return True

    def _failure_of(self, statements: list[Any]) -> Exception | None:
        """Execute some of the script's statements; return what they raise, without frames of ours."""
        # A module's attributes besides its body are the same for all that is in it.
        part = compile(_module_of(statements), self.file, "exec", dont_inherit=True)
        try:
            exec(part, self._main.__dict__)
        except Exception as error:
            traceback = error.__traceback__
            return error.with_traceback(traceback and traceback.tb_next)
        return None

    def freeze(self) -> None:
        """Keep the collector from touching, and so copying, what is loaded now and shared by all calls.

        But at the interpreter's end it looks for finalizers, and would pass over those in a frozen
        ``__main__``: there must be a new one, unless a module has kept the one that it saw.
        """
        self._begin()
        gc.collect()
        gc.freeze()
        if sys.getrefcount(self._main) <= _OWN_REFERENCES:
            self._main = sys.modules["__main__"] = type(sys)("__main__")
            self._begin()

    def files(self) -> list[bytes]:
        """Name every file whose change needs a new zygote, by its whole path."""
        # Not by the attribute itself: some modules make their attributes by importing more.
        modules = [getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values())]
        names = [self._whole, *(os.path.abspath(name) for name in modules if isinstance(name, str))]
        return [os.fsencode(name) for name in dict.fromkeys(names)]

    def run(self) -> None:
        """Run it, as the last thing that this process does."""
        try:
            exec(self._code, self._main.__dict__)
        except SystemExit:
            raise
        except BaseException as error:
            _hide_our_frames(error)
            raise


def _module_of(statements: list[Any]) -> Any:
    """Make a tree of some statements."""
    tree: Any = compile("", "", "exec", _ONLY_TREE, dont_inherit=True)
    tree.body = statements
    return tree


def _are_harmless(statements: list[Any]) -> bool:
    """Tell whether these are but imports, and what cannot change any import: literals and their names."""
    return all(
        type(statement).__name__ in _IMPORTS
        or type(statement).__name__ == "Pass"
        or (type(statement).__name__ == "Expr" and type(statement.value).__name__ in _LITERALS)
        or (
            type(statement).__name__ == "Assign"
            and type(statement.value).__name__ in _LITERALS
            and all(type(target).__name__ == "Name" for target in statement.targets)
        )
        for statement in statements
    )


def _is_single_threaded(path: str) -> bool:
    if len(sys._current_frames()) == 1:
        return True
    names = ", ".join(thread.name for thread in sys.modules["threading"].enumerate()[1:])
    sys.stderr.write(
        f"a module that {path} imports has started a thread ({names}), and threads are lost when a process"
        " forks for a call: import it later in the script, or do not precompile this script\n"
    )
    return False


def _hide_our_frames(error: BaseException) -> None:
    """Have the interpreter print, of this error's traceback, the script's part only."""
    traceback = error.__traceback__ and error.__traceback__.tb_next
    hook = sys.excepthook

    def print_it(kind: type[BaseException], value: BaseException, _: Any) -> None:
        sys.excepthook = hook
        sys.last_traceback = traceback
        hook(kind, value.with_traceback(traceback), traceback)

    sys.excepthook = print_it


class _Zygote:
    """The conversation about the script's calls."""

    def __init__(self, connection: _socket.socket, script: _Script, descriptors: _Descriptors) -> None:
        self._connection = connection
        self._script = script
        self._descriptors = descriptors
        # A module may ignore children, or await them all: we need to know how each of ours ended.
        self._on_child = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)

    def serve(self) -> None:
        """Be the zygote; return only in a child, which is ready to run the script."""
        self._say(b"ready", *self._script.files())
        while True:
            message, received = self._hear()
            kind, *fields = message.split(b"\0")
            if kind == b"reap":
                self._say(b"status", fields[0], b"%d" % _status_of(int(fields[0])))
            elif kind != b"run" or len(received) != 3:
                self._say(b"error", b"the zygote was not asked properly")
            elif self._fork() == 0:
                self._take(fields, received)
                return
            for descriptor in received:
                os.close(descriptor)

    def _fork(self) -> int:
        """Fork; return 0 in the child."""
        try:
            pid = os.fork()
        except OSError as error:
            self._say(b"error", b"cannot fork: " + os.fsencode(str(error.strerror)))
            return -1
        try:
            # In both: whoever comes first.
            os.setpgid(pid, pid)
        except OSError:
            pass  # the child has done it, and executed something, or has ended
        if pid:
            self._say(b"pid", b"%d" % pid)
        return pid

    def _take(self, fields: list[bytes], received: list[int]) -> None:
        """In a child: take all that is the call's own."""
        self._connection.close()
        if self._on_child is not None:
            _signal.signal(_signal.SIGCHLD, self._on_child)
        self._descriptors.take(received)
        count = int(fields[0])
        arguments = [os.fsdecode(argument) for argument in fields[1 : 1 + count]]
        # In place: a module may have its own name for the list.
        sys.argv.extend(arguments)
        if hasattr(sys, "orig_argv"):
            sys.orig_argv.extend(arguments)
        for variable in fields[1 + count :]:
            name, _, value = variable.partition(b"=")
            os.environb[name] = value

    def _hear(self) -> tuple[bytes, list[int]]:
        """Wait for a request. At the end of the conversation: leave, without any function for the exit."""
        room = _socket.CMSG_SPACE(3 * _INT_BYTES)
        try:
            message, ancillary, _, _ = self._connection.recvmsg(
                _MAX_MESSAGE_BYTES, room, _socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            message = b""
        if not message:
            os._exit(0)
        received = [
            int.from_bytes(content[at : at + _INT_BYTES], sys.byteorder)
            for level, kind, content in ancillary
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
            for at in range(0, len(content), _INT_BYTES)
        ]
        return message, received

    def _say(self, *fields: bytes) -> None:
        try:
            self._connection.send(b"\0".join(fields))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _status_of(pid: int) -> int:
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return -1


def _main() -> None:
    number = os.environ.pop(_VARIABLE, "")
    if not number.isdigit() or len(sys.argv) != 2:
        sys.exit(f"python_zygote.py: only fastagi_pool starts it: {_VARIABLE} is not a descriptor")
    connection = _socket.socket(fileno=int(number))
    os.set_inheritable(connection.fileno(), False)
    script = _Script(sys.argv[1])
    descriptors = _Descriptors()
    if not script.prepare():
        sys.exit(1)
    descriptors.survey()
    script.freeze()
    _Zygote(connection, script, descriptors).serve()
    script.run()


if __name__ == "__main__":
    _main()
