"""fastagi_pool.takeover: what travels, and how a program is tried; small programs play the new one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from select import POLLIN, poll
from typing import Final

import pytest
from children import in_child

from fastagi_pool import handover
from fastagi_pool.scoreboard import Scoreboard
from fastagi_pool.takeover import (
    TRIAL_S,
    VARIABLE,
    LoaderState,
    MasterState,
    Program,
    TakeoverRefused,
    Upgrade,
    adopt_descriptors,
    hear_signals,
    inherited_state,
    is_only_asked,
    own_program,
    take_over,
    wait_for_signals,
)

#: Reads the state as the new program does, and says what it found.
_READING: Final = """
import os
from fastagi_pool.takeover import inherited_state, is_only_asked
state = inherited_state(os.environ)
opened = [os.path.exists(f"/proc/self/fd/{each}") for each in state.descriptors()]
print(state.version, is_only_asked(os.environ), os.getcwd(), opened)
raise SystemExit(0 if state.version == "0.1" else 7)
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[MasterState]:
    """A state whose descriptors are open."""
    board = Scoreboard.create(tmp_path / "scoreboard", os.getpid(), 1.0)
    bell, lifeline, pair = os.pipe(), os.pipe(), handover.make()
    yield MasterState(
        version="0.1",
        board_fd=board.descriptor,
        listeners={"127.0.0.1:0": [bell[0]]},
        pid_files={"/run/x/master.pid": bell[1]},
        bell=bell,
        lifeline=lifeline,
        loaders=(
            LoaderState(2, 42, lifeline[0], 3.5, {"umask": ""}, ("127.0.0.1:0",)),
            LoaderState(3, 43, -1, 4.5, None, ()),
        ),
        loaded={"umask": "027"},
        kept=("127.0.0.1:0",),
        generations=3,
        observer_pid=44,
        pool={"generation": 2},
        supervision={"reloads": 1},
        handover=pair,
    )
    for descriptor in (board.descriptor, *bell, *lifeline, *pair):
        os.close(descriptor)


def program(code: str, folder: Path) -> Program:
    """A program of these lines of Python."""
    words = (sys.executable, "-c", code)
    return Program(words, str(folder), {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd())})


def open_descriptors() -> list[str]:
    """The numbers of our descriptors."""
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


def try_out(upgrade: Upgrade, state: MasterState) -> str:
    """Have a program tried to its end; return why it cannot take over."""
    upgrade.want()
    assert not upgrade.advance(state, 100.0)
    pid, status = os.waitpid(-1, 0)
    assert upgrade.is_trial(pid)
    return upgrade.tried(status == 0, f"status {status}")


# --- what travels


def test_state_comes_back(state: MasterState) -> None:
    """What is written as text is read as the same values."""
    assert MasterState.from_json(state.to_json()) == state


def test_a_program_that_knew_of_no_handover(state: MasterState) -> None:
    """What an older program says of itself is understood, and no descriptor is taken for what it has not."""
    fields = json.loads(state.to_json())
    del fields["handover"]
    former = MasterState.from_json(json.dumps(fields))
    assert former == replace(state, handover=(-1, -1))
    assert set(former.descriptors()) == set(state.descriptors()) - set(state.handover)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"kind": 0}', '{"kind": 1}', '{"kind": 1, "loaders": [{"addresses": []}]}'],
)
def test_other_texts_are_refused(text: str) -> None:
    """A text that this program does not know is refused, whatever is in it, with a reason in one line."""
    with pytest.raises(TakeoverRefused) as caught:
        MasterState.from_json(text)
    assert len(str(caught.value).splitlines()) == 1


def test_another_kind_is_refused(state: MasterState) -> None:
    """A program that says more than this one knows is refused, though the rest be familiar."""
    fields = json.loads(state.to_json())
    with pytest.raises(TakeoverRefused, match="another kind"):
        MasterState.from_json(json.dumps({**fields, "kind": fields["kind"] + 1}))
    with pytest.raises(TakeoverRefused, match="cannot be read"):
        MasterState.from_json(json.dumps({**fields, "further": 1}))


def test_descriptors_are_all_that_is_open(state: MasterState) -> None:
    """The list of descriptors names each that a number in the state stands for, and no other."""
    assert set(state.descriptors()) == {
        state.board_fd,
        *state.bell,
        *state.lifeline,
        *state.handover,
    }


def test_environment_without_a_state() -> None:
    """A program that is started by an operator takes over from nobody."""
    assert inherited_state({}) is None
    assert not is_only_asked({})


def test_own_program_does_not_hand_its_own_beginning_on() -> None:
    """What a program got from its predecessor is not passed to its successor."""
    ours = own_program({VARIABLE: "7", "NOTIFY_SOCKET": "/x"})
    assert ours.environment == {"NOTIFY_SOCKET": "/x"}
    assert ours.words[0] == sys.executable
    assert ours.folder == str(Path.cwd())


def test_program_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    """A server that was started in a folder that is removed now does not stumble over that."""

    def look() -> str:
        folder = tmp_path / "gone"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()
        return own_program({}).folder

    assert in_child(look) == "/"


def test_secrets_of_the_environment_are_not_shown() -> None:
    """A program that is printed into a log does not tell its environment."""
    assert "sesame" not in repr(Program(("python",), "/", {"PASSWORD": "sesame"}))


# --- the trial


def test_program_that_can_take_over(state: MasterState, tmp_path: Path) -> None:
    """A program that reads the state and ends well has passed; our descriptors stay ours."""
    upgrade = Upgrade(program(_READING, tmp_path))
    assert try_out(upgrade, state) == ""
    assert upgrade.wanted
    assert not any(os.get_inheritable(each) for each in state.descriptors())


def test_only_the_board_is_lent_for_a_trial(state: MasterState, tmp_path: Path) -> None:
    """What a handler's module starts during a trial holds neither the lifeline open nor the sockets."""
    opened = [True, *[False] * (len(state.descriptors()) - 1)]
    upgrade = Upgrade(program(f"{_READING.rpartition('raise')[0]}raise SystemExit(7)", tmp_path))
    assert f"True {tmp_path} {opened}" in try_out(upgrade, state)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('the configuration is wrong')", "the configuration is wrong (status 256)"),
        ("raise SystemExit(3)", "it said nothing (status 768)"),
        ("print('a word'); import os; os.abort()", "(status 6)"),
    ],
)
def test_program_that_cannot(code: str, said: str, state: MasterState, tmp_path: Path) -> None:
    """A program that ends badly is refused with what it said, and wanted no more."""
    upgrade = Upgrade(program(code, tmp_path))
    assert try_out(upgrade, state).endswith(said)
    assert not upgrade.wanted


def test_program_that_does_not_exist(state: MasterState, tmp_path: Path) -> None:
    """A program that was removed is refused, and named."""
    upgrade = Upgrade(Program(("/nonexistent/python",), str(tmp_path)))
    assert try_out(upgrade, state).startswith("/nonexistent/python: [Errno 2]")


def test_folder_that_does_not_exist(state: MasterState, tmp_path: Path) -> None:
    """A program whose folder was removed is refused: its words may be relative to it."""
    upgrade = Upgrade(program("", tmp_path / "gone"))
    assert "gone" in try_out(upgrade, state)


def test_only_the_end_of_what_is_said(state: MasterState, tmp_path: Path) -> None:
    """A program that says very much is quoted with its last words."""
    upgrade = Upgrade(program("print('x' * 100_000); raise SystemExit('the reason')", tmp_path))
    said = try_out(upgrade, state)
    assert "the reason" in said
    assert len(said) < 5_000


def test_scoreboard_of_another_kind(state: MasterState, tmp_path: Path) -> None:
    """A program that has another kind of shared memory refuses to take over."""
    other = tmp_path / "other"
    other.write_bytes(bytes((tmp_path / "scoreboard").stat().st_size))
    with other.open("r+b") as file:
        said = try_out(Upgrade(program(_READING, tmp_path)), replace(state, board_fd=file.fileno()))
    assert "the shared memory is of another kind" in said


def test_program_that_hangs_is_killed(state: MasterState, tmp_path: Path) -> None:
    """A program that does not answer in time is killed, which is its refusal."""
    upgrade = Upgrade(program("import signal; signal.pause()", tmp_path))
    upgrade.want()
    upgrade.advance(state, 100.0)
    upgrade.advance(state, 100.0 + TRIAL_S)
    assert os.waitpid(-1, os.WNOHANG) == (0, 0)
    upgrade.advance(state, 100.1 + TRIAL_S)
    pid, status = os.waitpid(-1, 0)
    assert upgrade.is_trial(pid)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert upgrade.tried(False, "killed by SIGKILL") == "it said nothing (killed by SIGKILL)"
    assert not upgrade.wanted


def test_trial_ends_with_its_master(state: MasterState, tmp_path: Path) -> None:
    """A program that hangs is not left behind by a master that ends."""
    hanging = program("import signal; signal.pause()", tmp_path)

    def begin() -> int:
        upgrade = Upgrade(hanging)
        upgrade.advance(state, 1.0)
        (pid,) = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
        return pid

    pid = in_child(begin)
    assert has_ended(pid)


def has_ended(pid: int) -> bool:
    """Wait until a process that is no child of ours has ended; False if it lives on."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poller = poll()
    poller.register(pidfd, POLLIN)
    ended = bool(poller.poll(20_000))
    os.close(pidfd)
    return ended


def _children() -> set[int]:
    """This process's children: those of other tests among them, as a database server."""
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


def test_one_trial_at_a_time(state: MasterState, tmp_path: Path) -> None:
    """However often the loop turns, one program is tried."""
    upgrade = Upgrade(program("", tmp_path))
    upgrade.want()
    others = _children()
    for _ in range(5):
        assert not upgrade.advance(state, 100.0)
    (trial,) = _children() - others
    os.waitpid(trial, 0)
    upgrade.tried(True, "")


def test_nothing_is_left_open_by_trials(state: MasterState, tmp_path: Path) -> None:
    """A trial, however it ended, leaves no descriptor open."""
    before = open_descriptors()
    for code in ("", "raise SystemExit(1)"):
        try_out(Upgrade(program(code, tmp_path)), state)
    assert open_descriptors() == before


# --- the change


def test_signals_wait_from_the_last_moment(state: MasterState, tmp_path: Path) -> None:
    """A program that has passed takes over with signals waiting; what arrives meanwhile is heard later."""

    def live() -> list[bool]:
        upgrade = Upgrade(program(_READING, tmp_path))
        try_out(upgrade, state)
        heard: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        passed = upgrade.advance(state, 200.0)
        os.kill(os.getpid(), signal.SIGTERM)
        waited = not heard
        hear_signals()
        return [passed, waited, heard == [signal.SIGTERM]]

    assert in_child(live) == [True, True, True]


def test_the_process_becomes_the_program(state: MasterState, tmp_path: Path) -> None:
    """The program takes over in the same process, in its folder, with the state and the descriptors."""
    output = tmp_path / "output"
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(output, os.O_CREAT | os.O_WRONLY), 1)
            wait_for_signals()
            take_over(program(_READING, tmp_path), state)
        finally:
            os._exit(99)
    assert os.waitpid(pid, 0) == (pid, 0), output.read_text()
    count = len(state.descriptors())
    assert output.read_text() == f"0.1 False {tmp_path} {[True] * count}\n"


def test_change_that_fails_changes_nothing(state: MasterState, tmp_path: Path) -> None:
    """If the program cannot be executed, descriptors are as they were."""

    def live() -> list[bool]:
        before = open_descriptors()
        with pytest.raises(FileNotFoundError):
            take_over(Program(("/nonexistent/python",), str(tmp_path)), state)
        inheritable = [os.get_inheritable(each) for each in state.descriptors()]
        return [open_descriptors() == before, not any(inheritable)]

    assert in_child(live) == [True, True]


def test_adopted_descriptors_are_kept_from_children(state: MasterState) -> None:
    """What was handed over is not handed on to whatever the new program starts."""
    for each in state.descriptors():
        os.set_inheritable(each, True)
    adopt_descriptors(state)
    assert not any(os.get_inheritable(each) for each in state.descriptors())
