"""The Python zygote, in what is Python's own: real ones, whose calls are compared with fresh runs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from compiled import CALL, PYTHON, PYTHON_ZYGOTE, Zygote, run_fresh, run_often, write_script

#: Scripts whose every run must look the same, by what they are about.
SCRIPTS: Final = {
    "arguments": "import sys\nprint(ascii(sys.argv), ascii(sys.orig_argv[1:]))",
    "environment": "import os\nfor n in sorted(os.environ):\n"
    "    n in ('_', 'SHLVL') or print(n, ascii(os.environ[n]))",
    "path": "import sys, os\nprint(sys.path, __file__, os.getcwd(), sys.flags)",
    "main": "'''Doc.'''\nprint(list(globals()))\n"
    "print([__doc__, __spec__, __package__, __cached__, __loader__.path])",
    "main as a module": "import json\nimport __main__\nprint(list(vars(__main__)), __main__.__file__)",
    "if main": "if __name__ == '__main__':\n    print('main')",
    "future": "from __future__ import annotations\ndef f(x: No) -> Nothing: pass\nprint(f.__annotations__)",
    "local module": "import local\nprint(local.name, local.__file__, local.argv, local.main)",
    "exit code": "import sys\nsys.exit(3)",
    "exit none": "import sys\nsys.exit()",
    "exit text": "import sys\nsys.exit('no more')",
    "exit in a function": "def f():\n    raise SystemExit(300)\nf()",
    "hard exit": "import os\nprint('lost')\nos._exit(4)",
    "error": "import os\n\ndef f(x):\n    return 1 / x\n\nprint('a')\nf(0)\n",
    "error with a cause": "try:\n    {}[1]\nexcept KeyError as e:\n    raise ValueError('b') from e",
    "error of a module": "import json\njson.loads('{')",
    "error without a traceback": "raise SyntaxError('mine')",
    "interrupted": "raise KeyboardInterrupt",
    "own hook": "import sys\ndef hook(kind, error, where):\n    print(kind, where.tb_frame.f_code.co_name)\n"
    "sys.excepthook = hook\n1 / 0",
    "traceback of a thread": "import threading\nt = threading.Thread(target=lambda: print('t'))\nt.start()",
    "at exit": "import atexit\natexit.register(print, 'bye')\nprint('a')\n1 / 0",
    "thread outlives main": "import threading\nmain = threading.main_thread()\n"
    "def f():\n    main.join()\n    print('late')\n"
    "threading.Thread(target=f).start()\nprint('main ends')",
    "killed": "import os\nos.kill(os.getpid(), 15)",
    "signals": "import signal\nfor n in sorted(signal.valid_signals()): print(n, signal.getsignal(n))",
    "child handler of a module": "import reaper\nimport signal, os\nprint(signal.getsignal(17))\n"
    "if not os.fork(): os._exit(1)\nos.wait()",
    "dialogue": "import sys\nfor line in sys.stdin:\n    print('200 result=%r' % line, flush=True)",
    "streams": "import sys\nfor s in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__):\n"
    "    print(repr(s), s.name, s.mode, s.errors, s.newlines, s.line_buffering, s.write_through,\n"
    "          s.isatty(), s.seekable(), s.fileno(), type(s.buffer), s.buffer.name, s.closed)\n"
    "print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__)",
    "buffered output": "import os, sys\nprint('buffered')\n"
    "os.write(1, b'direct\\n')\nprint('error', file=sys.stderr)",
    "printed by a module": "import noisy\nprint('main')",
    "stream kept by a module": "import kept\nkept.out.write('a')\nprint('b')\nkept.handler.flush()",
    "file opened by a module": "import opened\nprint(opened.file.read()[-30:], opened.first)",
    "nowhere stays nowhere": "import nowhere\nnowhere.file.write('lost')\nprint('b')",
    "undecodable": "import sys\nsys.stderr.write('\\udcff')\nprint('\\udcff')",
    "source": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A, A.__module__)",
    "processes": "import subprocess, os\n"
    "print(subprocess.run(['false']).returncode, os.system('exit 3') >> 8)\n"
    "print(subprocess.check_output(['ls', '/proc/self/fd']))",
    "multiprocessing": "import multiprocessing\ndef f(x): return x * 2\nif __name__ == '__main__':\n"
    "    with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(f, [1, 2]))",
    "descriptors": "import os\nprint(sorted(os.listdir('/proc/self/fd')))",
    # No pause(): a signal that comes just before it would be missed, and it would wait for ever.
    "alarm": "import signal, time\nrung = []\nsignal.signal(14, lambda *_: rung.append('ring'))\n"
    "signal.setitimer(0, 0.01)\nwhile not rung: time.sleep(0.01)\nprint(*rung)",
    "path prepared first": "import sys\nsys.path.insert(0, sys.path[0] + '/other')\n"
    "import local\nprint(local.name)",
    "foreseen failure": "try:\n    import nosuch\nexcept ImportError:\n    nosuch = None\n"
    "import json\nprint(nosuch)",
    "foreseen, and said": "try:\n    import nosuch\nexcept ImportError as e:\n"
    "    print('no', e)\n    raise SystemExit(5)",
    "finally": "try:\n    import local\nfinally:\n    print('once')",
    "warning": "import warnings\ndef f():\n    warnings.warn('w')\nf()",
    "no garbage of ours": "import gc\nprint(gc.isenabled(), gc.get_threshold(), gc.garbage)",
    "finalizer": "class A:\n    def __del__(self): print('gone')\na = A()",
}

MODULES: Final = {
    "local.py": "import sys\nname = 'local'\nargv = sys.argv[0]\nmain = sys.modules['__main__'].__file__\n",
    "other/local.py": "name = 'other'\n",
    "noisy.py": "print('noisy ' * 1000)\n",
    "kept.py": "import sys, logging\nout = sys.stdout\nhandler = logging.StreamHandler()\n",
    "opened.py": "file = open(__file__, 'rb')\nfirst = file.readline()\n"
    + "# filling\n" * 3000
    + "# the end\n",
    "nowhere.py": "file = open('/dev/null', 'w')\n",
    "reaper.py": "import signal, os\ndef f(*_): pass\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGCHLD, signal.SIG_DFL)\n",
    "ignorant.py": "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n",
    "threaded.py": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n",
}


def _script(directory: Path, text: str) -> Path:
    return write_script(directory / "script.py", text, MODULES)


@pytest.mark.parametrize("about", SCRIPTS)
def test_a_call_looks_like_a_fresh_run(about: str, tmp_path: Path) -> None:
    """Output, errors and exit status of each call are those of a fresh run."""
    script = _script(tmp_path, SCRIPTS[about])
    assert run_often(PYTHON_ZYGOTE, script, CALL) == [run_fresh([PYTHON], script, CALL)] * 6


@pytest.mark.parametrize("switch", ["-u", "-E", "-I", "-P", "-O", "-Xutf8", "-Wdefault", "-Werror"])
@pytest.mark.parametrize("about", ["streams", "path", "buffered output", "warning", "arguments"])
def test_switches_of_the_command_line_hold(switch: str, about: str, tmp_path: Path) -> None:
    """Python's own switches do the same to a call as to a fresh run."""
    script = _script(tmp_path, SCRIPTS[about])
    expected = run_fresh([PYTHON, switch], script, CALL)
    assert run_often([PYTHON, switch, *PYTHON_ZYGOTE[1:]], script, CALL) == [expected] * 6


def test_threads_of_modules_are_refused(tmp_path: Path) -> None:
    """A module that starts a thread would have lost it in each call: the zygote does not get ready."""
    script = _script(tmp_path, "import threaded\n")
    with Zygote([*PYTHON_ZYGOTE, str(script)], tmp_path) as zygote:
        assert zygote.ready == []
        code, errors = zygote.hang_up()
    assert code == 1
    assert "has started a thread (Thread-1 (sleep))" in errors


def test_children_ignored_by_a_module_are_known(tmp_path: Path) -> None:
    """How a call ended is known even if a module had the system forget children; the script has it so."""
    script = _script(tmp_path, "import ignorant\nimport signal, sys\nsys.exit(signal.getsignal(17) + 5)")
    assert {run.code for run in run_often(PYTHON_ZYGOTE, script, CALL)} == {6}


def test_only_what_is_documented_is_loaded_besides(tmp_path: Path) -> None:
    """The script finds no module loaded that a fresh run has not, but the few that we name."""
    script = _script(tmp_path, "import sys\nprint(*sorted(sys.modules))")
    fresh = set(run_fresh([PYTHON], script, CALL).output.split())
    with Zygote([*PYTHON_ZYGOTE, str(script)], tmp_path) as zygote:
        assert set(zygote.run(CALL).output.split()) - fresh <= {"gc", "_socket", "__future__"}
