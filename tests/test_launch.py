"""Launching: what is run, how it ends, and the sentence that says why nothing was seen."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gradiometer
from gradiometer import launch as launching
from gradiometer.errors import GradiometerError
from gradiometer.launch import Outcome, explain_silence, launch, resolve
from gradiometer.record.folder import create_folder
from gradiometer.record.run import Run

SCRIPTS = Path(__file__).parent / "scripts"
PYTHON = sys.executable


# ---- what is run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print('hi')\n")
    (tmp_path / "train").write_text("print('hi')\n")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    (tmp_path / "program").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "headless").write_text("exit 9\n")
    (tmp_path / "headless").chmod(0o755)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.py").write_bytes(b"PK\0\1\2\xff")
    (tmp_path / "word.py").write_bytes(b"# \xe9t\xe9\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "front"),
    [
        (["train.py", "--lr", "1"], [PYTHON]),
        (["./train.py"], [PYTHON]),
        (["train"], [PYTHON]),
        (["package"], [PYTHON]),
        (["latin.py"], [PYTHON]),
        (["broken.py"], [PYTHON]),  # Python's own message is better than ours
        (["./program", "train.py"], []),
        (["bash", "-c", "true"], []),
        ([PYTHON, "train.py"], []),
        ([PYTHON, "-m", "package"], []),
        ([PYTHON, "-"], []),
        ([PYTHON, "-Xdev", "-um", "missing.py"], []),
        ([PYTHON, "-W", "missing.py", "-c", "missing.py"], []),
        ([PYTHON], []),
    ],
    ids=" ".join,
)
def test_resolve(words: list[str], front: list[str], here: Path) -> None:
    assert resolve(words) == [*front, *words]


@pytest.mark.usefixtures("here")
def test_python_that_is_not_on_the_path_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert resolve(["python", "train.py"]) == [PYTHON, "train.py"]
    with pytest.raises(GradiometerError, match="no command python3"):
        resolve(["python3", "train.py"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "There is no command to run"),
        (["missing.py"], "There is no script missing.py"),
        ([PYTHON, "missing.py"], "There is no script missing.py"),
        (["empty"], "empty is a folder"),
        (["weights.py"], "weights.py is not Python"),
        (["word.py"], "word.py is not Python"),
        ([PYTHON, "weights.py"], "weights.py is not Python"),
        ([PYTHON, "-uW", "error", "-X", "dev", "missing.py"], "There is no script missing.py"),
        (["no-such-command"], "There is no command no-such-command"),
        (["LR=1", "python", "train.py"], "LR=1 is not a command. Set variables before gradiometer"),
        (["./missing"], "There is no command ./missing"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_run_is_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(GradiometerError, match=re.escape(sentence)) as caught:
        resolve(words)
    assert caught.value.hint


def test_a_program_without_an_interpreter_line(here: Path) -> None:
    folder = create_folder(here / "run", ["x"], "0")
    with pytest.raises(GradiometerError, match="cannot be started") as caught:
        launch([str(here / "headless")], folder, overhead=0.01, every=None)
    assert "interpreter" in caught.value.hint


# ---- how it ends -------------------------------------------------------------------------------------------------------


def run(folder: Path, *words: str, **options: Any) -> tuple[Outcome, Run]:
    command = resolve(words)
    made = create_folder(folder / "run", command, "0")
    outcome = launch(command, made, overhead=0.01, every=None, **options)
    return outcome, gradiometer.load(made)


@pytest.mark.parametrize(
    ("code", "status", "killer"),
    [("exit 0", 0, None), ("exit 3", 3, None), ("kill -TERM $$", 143, 15), ("kill -KILL $$", 137, 9), ("exit 143", 143, None)],
)
def test_status_as_a_shell_reports_it(code: str, status: int, killer: int | None, tmp_path: Path) -> None:
    outcome, made = run(tmp_path, "bash", "-c", code)
    assert (outcome.status, outcome.signal, outcome.interrupted) == (status, killer, False)
    assert (made.info["status"], made.info["signal"]) == (status, killer)
    assert 0.0 < outcome.seconds < 30.0
    assert made.info["ended"] >= made.info["started"]


def test_the_environment_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", str(launching.BOOT), ""]))
    monkeypatch.setenv("GRADIOMETER_EVERY", "7")
    environment = launching._environment(tmp_path, 0.02, None)  # pyright: ignore[reportPrivateUsage]
    assert environment["PYTHONPATH"] == os.pathsep.join([str(launching.BOOT), "mine", ""])
    assert (environment["GRADIOMETER_RUN"], environment["GRADIOMETER_OVERHEAD"]) == (str(tmp_path), "0.02")
    assert "GRADIOMETER_EVERY" not in environment
    monkeypatch.setattr(launching, "BOOT", Path("/a:b"))
    with pytest.raises(GradiometerError, match="cannot search"):
        launching._environment(tmp_path, 0.02, 3)  # pyright: ignore[reportPrivateUsage]


def test_a_run_folder_that_is_gone_is_told_and_the_status_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = create_folder(tmp_path / "run", ["x"], "0")
    outcome = launch(["bash", "-c", f"rm -r {folder}; exit 5"], folder, overhead=0.01, every=None)
    assert outcome.status == 5
    err = capfd.readouterr().err
    assert err.count("gradiometer:") == 1
    assert "cannot be written any more" in err


def test_a_progress_display_that_fails_does_not_leave_the_command_alone(tmp_path: Path) -> None:
    def tick() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "bash", "-c", f"sleep 1; touch {tmp_path}/done", tick=tick)
    assert (tmp_path / "done").exists()


TRAPS = """
trap 'echo INT; exit 11' INT
trap 'echo TERM; exit 12' TERM
trap 'echo HUP; exit 13' HUP
trap 'echo QUIT; exit 14' QUIT
trap 'echo USR1' USR1
trap 'echo USR2; exit 15' USR2
echo ready
for i in {1..200}; do sleep 0.05; done
"""


def start(folder: Path, *words: str, ignoring: signal.Signals | None = None) -> subprocess.Popen[bytes]:
    command = [PYTHON, str(SCRIPTS / "launch.py"), str(folder / "run"), *words]
    if ignoring is not None:
        command = ["bash", "-c", f"trap '' {ignoring.name}; exec \"$@\"", "bash", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


@pytest.mark.processes
@pytest.mark.parametrize(("name", "status"), [("INT", 11), ("TERM", 12), ("HUP", 13), ("QUIT", 14), ("USR2", 15)])
def test_signals_reach_the_command(name: str, status: int, tmp_path: Path) -> None:
    child = start(tmp_path, "bash", "-c", TRAPS)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    if name == "USR2":  # more than one
        child.send_signal(signal.SIGUSR1)
        assert child.stdout.readline() == b"USR1\n"
    child.send_signal(getattr(signal, f"SIG{name}"))
    out, _ = child.communicate(timeout=20)
    assert out.decode() == f"{name}\n"
    assert child.returncode == status
    info = gradiometer.load(tmp_path / "run").info
    assert info["status"] == status
    assert info["interrupted"] == (name == "INT")


@pytest.mark.processes
def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup, or in the background of a script."""
    code = "echo ready; sleep 0.5; echo alive"
    child = start(tmp_path, "bash", "-c", code, ignoring=signal.SIGHUP)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    os.killpg(child.pid, signal.SIGHUP)
    assert child.communicate(timeout=20)[0] == b"alive\n"
    assert child.returncode == 0


@pytest.mark.processes
def test_ctrl_c_arrives_once(tmp_path: Path) -> None:
    """Typed at a terminal it reaches the whole process group: the command has it without us."""
    pty = pytest.importorskip("pty")
    code = (
        "import signal, time\n"
        "count = 0\n"
        "def on(*_):\n    global count; count += 1\n"
        "signal.signal(signal.SIGINT, on)\n"
        "print('ready', flush=True)\n"
        "end = time.monotonic() + 1.0\n"
        "while time.monotonic() < end: time.sleep(0.05)\n"
        "print('interrupts:', count, flush=True)\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        words = [PYTHON, str(SCRIPTS / "launch.py"), str(tmp_path / "run"), PYTHON, "-c", code]
        os.execv(PYTHON, words)
    seen = b""
    sent = False
    while True:
        try:
            seen += os.read(terminal, 1000)
        except OSError:  # the other end is closed
            break
        if b"ready" in seen and not sent:
            os.write(terminal, b"\x03")
            sent = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"interrupts: 1" in seen
    assert os.waitstatus_to_exitcode(status) == 0
    assert gradiometer.load(tmp_path / "run").info["interrupted"]


def test_handlers_are_put_back_and_threads_may_launch(tmp_path: Path) -> None:
    before = [signal.getsignal(getattr(signal, name)) for name in launching.FORWARDED]
    found: list[int] = []

    def in_thread() -> None:
        found.append(run(tmp_path, "bash", "-c", "exit 4")[0].status)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert found == [4]
    assert [signal.getsignal(getattr(signal, name)) for name in launching.FORWARDED] == before


# ---- Python in all its ways --------------------------------------------------------------------------------------------


def bare_environment(folder: Path) -> str:
    """The interpreter of an empty virtual environment, made by hand so as not to wait for pip."""
    (folder / "bare" / "bin").mkdir(parents=True)
    python = folder / "bare" / "bin" / "python"
    python.symlink_to(Path(PYTHON).resolve())
    (folder / "bare" / "pyvenv.cfg").write_text(f"home = {Path(PYTHON).resolve().parent}\n")
    return str(python)


@pytest.mark.processes
@pytest.mark.parametrize("way", ["script", "-c", "-m", "-", "shell", "another environment"])
def test_however_python_is_started(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = SCRIPTS / "quick.py"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(quick.read_text())
    if way == "another environment":
        # one that has torch and not gradiometer
        monkeypatch.setenv("PYTHONPATH", str(Path(torch.__file__).parents[1]))
        python = bare_environment(tmp_path)
        assert subprocess.run([python, "-c", "import gradiometer"], capture_output=True, check=False).returncode == 1
        words = [python, str(quick)]
    else:
        words = {
            "script": [str(quick)],
            "-c": [PYTHON, "-c", quick.read_text()],
            "-m": [PYTHON, "-m", "package"],
            "-": ["bash", "-c", f"{PYTHON} - < {quick}"],
            "shell": ["bash", "-c", f"cd /; {PYTHON} {quick}; exit 6"],
        }[way]
    outcome, made = run(tmp_path, *words)
    assert outcome.status == (6 if way == "shell" else 0)
    assert made.trace.steps_seen == 3
    assert not any(e["event"] == "probe-failed" for e in made.trace.events)


# ---- silence -----------------------------------------------------------------------------------------------------------

TRAIN = """
import os, sys, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
def step():
    optimizer.zero_grad()
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("print('hello')", "The command never imported torch"),
        ("raise SystemExit(3)", "The command failed with status 3 before it imported torch."),
        ("def f(:", "The command failed with status 1 before it imported torch."),
        ("import os; os.kill(os.getpid(), 9)", "The command was killed by SIGKILL before it imported torch."),
    ],
    ids=["no torch", "exit", "syntax", "killed"],
)
def test_silence_before_torch(code: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(code)
    _, made = run(tmp_path, str(tmp_path / "train.py"))
    assert explain_silence(made).startswith(sentence)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("rest", "sentence"),
    [
        ("", "The command imported torch but never called backward(): nothing was trained."),
        ("sys.exit(2)", "The command failed with status 2 before its first backward pass."),
        ("step(); raise KeyError('x')", "The command failed with status 1 after 1 training step."),
        ("step(); step(); os.kill(os.getpid(), 15)", "The command was killed by SIGTERM after 2 training steps."),
        ("model(torch.ones(4, 2)).sum().backward()", "backward() was called, but no step was ever taken"),
        ("model(torch.ones(4, 2)).sum().backward(); os._exit(1)", "The command failed with status 1 during its first training"),
    ],
    ids=["no backward", "exit", "one step", "killed", "no step", "in the first step"],
)
def test_silence_after_torch(rest: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN + rest)
    _, made = run(tmp_path, str(tmp_path / "train.py"))
    assert explain_silence(made).startswith(sentence)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["true"], "The command started no Python that Gradiometer could watch"),
        (["false"], "The command failed with status 1 before it started Python."),
        ([PYTHON, "-I", "-c", ""], "Python ran with -I, which keeps Gradiometer out"),
        ([PYTHON, "-sE", "-c", ""], "Python ran with -E, which keeps Gradiometer out"),
        ([PYTHON, "-W", "ignore", "-S", "-c", ""], "Python ran with -S, which keeps Gradiometer out"),
        (["env", "-i", PYTHON, "-c", ""], "The command started no Python that Gradiometer could watch"),
    ],
    ids=["true", "false", "-I", "-sE", "-W ignore -S", "env -i"],
)
def test_silence_of_what_was_never_reached(words: list[str], sentence: str, tmp_path: Path) -> None:
    _, made = run(tmp_path, *words)
    assert explain_silence(made).startswith(sentence)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fake", "sentence"),
    [
        ("__version__ = '2.1.0'", "The command uses torch 2.1.0; Gradiometer needs torch 2.6 or newer."),
        ("raise ImportError('libcudart.so')", "The command could not import torch (ImportError: libcudart.so)."),
        ("__version__ = '2.9.0'", "Gradiometer itself stopped watching"),
        ("__version__ = 'dev'", "Gradiometer itself stopped watching"),
    ],
)
def test_silence_of_another_torch(fake: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torch.py").write_text(fake + "\n")
    (tmp_path / "train.py").write_text("import contextlib\nwith contextlib.suppress(ImportError):\n    import torch\n")
    outcome, made = run(tmp_path, str(tmp_path / "train.py"))
    assert outcome.status == 0
    assert explain_silence(made).startswith(sentence)
    err = capfd.readouterr().err
    assert err.count("\n") == ("itself" in sentence)
    assert err.startswith("gradiometer: could not attach") == ("itself" in sentence)


@pytest.mark.processes
def test_silence_of_a_python_without_torch(tmp_path: Path) -> None:
    python = bare_environment(tmp_path)
    (tmp_path / "train.py").write_text("import torch\n")
    _, made = run(tmp_path, python, str(tmp_path / "train.py"))
    assert explain_silence(made) == f"The command asked for torch, and {python} has none installed."


def test_silence_told_from_the_record(tmp_path: Path) -> None:
    folder = create_folder(tmp_path / "run", ["python", "train.py"], "0")
    say = folder / "events.jsonl"
    say.write_text('{"event": "python", "version": "3.9.1"}\n{"event": "torch", "version": "2.7.0"}\n')
    ended = Run(folder, {"command": ["python", "train.py"], "status": 0})
    assert explain_silence(ended) == "The command runs Python 3.9.1; Gradiometer needs Python 3.11 or newer."
    say.write_text('{"event": "python"}\n{"event": "probe-failed", "error": "No space left on device"}\n')
    assert "(No space left on device)" in explain_silence(gradiometer.load(folder))
    say.write_text('{"event": "python"}\n')
    assert "still running" in explain_silence(gradiometer.load(folder))
    (folder / "rank0-1.frames").write_bytes(b"nonsense, of some length")
    assert "is not a Gradiometer record" in explain_silence(gradiometer.load(folder))
    watched = create_folder(tmp_path / "watched", ["gradiometer.watch()"], "0")
    seen = "Between gradiometer.watch() and its end no training steps were seen."
    assert explain_silence(gradiometer.load(watched)) == seen


# ---- what a Python start costs -----------------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_python_start_imports_nothing_more(tmp_path: Path) -> None:
    """Two milliseconds, measured; what keeps them so is that no module is imported."""
    code = "import sys; print(*sorted(sys.modules))"
    plain = subprocess.run([PYTHON, "-c", code], capture_output=True, check=True, text=True).stdout
    (tmp_path / "train.py").write_text(
        f"open({str(tmp_path / 'modules')!r}, 'w').write(' '.join(sorted(__import__('sys').modules)))"
    )
    run(tmp_path, str(tmp_path / "train.py"))
    assert (tmp_path / "modules").read_text() == plain.strip()


def test_launching_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, gradiometer.launch; print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "set()\n"


def test_the_wait_is_not_longer_than_the_command(tmp_path: Path) -> None:
    began = time.monotonic()
    run(tmp_path, "true")
    assert time.monotonic() - began < 5.0
