"""What a training does, prints, saves and dies of is the same with and without the probe, and the record survives it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradiometer
import trainings
from gradiometer.probe import attach, signals
from gradiometer.probe.look import Look
from gradiometer.probe.observer import Observer
from gradiometer.probe.recorder import Recorder
from gradiometer.record.frames import FrameWriter
from gradiometer.record.run import Run

SCRIPTS = Path(__file__).parent / "scripts"
LAUNCH = [sys.executable, "-I", str(SCRIPTS / "launch.py")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The threads of small trainings only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Ended:
    status: int
    out: bytes
    err: bytes
    folder: Path  # where the script saved things
    record: Path

    @property
    def run(self) -> Run:
        return gradiometer.load(self.record)

    def saved(self, name: str = "saved") -> Any:
        return torch.load(self.folder / name)


class Runner:
    """Runs a script, each way in a folder of its own, under the same name for its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, words: list[str], *, watched: bool, env: dict[str, str] | None = None) -> Ended:
        folder = self.folder / ("watched" if watched else "plain")
        folder.mkdir()
        front = [*LAUNCH, str(folder / "run")] if watched else []
        if not watched and words[0].endswith(".py"):
            front = [sys.executable]
        child = subprocess.Popen(
            [*front, *words],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # with whatever it has started
            child.communicate()
            raise
        status = child.returncode if child.returncode >= 0 else 128 - child.returncode
        return Ended(status, out, err, folder, folder / "run")

    def both(self, words: list[str], **options: Any) -> tuple[Ended, Ended]:
        """With and without; what can be seen from outside is the same."""
        plain, watched = self(words, watched=False, **options), self(words, watched=True, **options)
        assert watched.status == plain.status, watched.err.decode()
        assert watched.out.decode() == plain.out.decode()
        assert watched.err.decode() == plain.err.decode()
        return plain, watched


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def same(a: Any, b: Any) -> bool:
    """Bitwise."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_healthy(run: Run, steps: int) -> None:
    assert not any(e["event"] == "probe-failed" for e in run.trace.events), run.trace.events
    assert run.trace.steps_seen == steps
    assert run.trace.sites


# ---- whole processes ---------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_an_everyday_training_cannot_tell(runner: Runner) -> None:
    """200 steps; pickling, copying, atexit, excepthook, tracebacks, warnings, TorchScript: see the script."""
    plain, watched = runner.both([str(SCRIPTS / "everyday.py"), "saved"])
    assert b"last words" in plain.out
    assert b"farewell" in plain.out
    assert same(plain.saved(), watched.saved())
    run = watched.run
    assert not any(e["event"] == "probe-failed" for e in run.trace.events)
    assert run.trace.steps_seen > 200
    assert run.info["status"] == 1


ENDINGS = {"raise": 1, "backward": 1, "exit": 3, "_exit": 7, "terminate": 143, "interrupt": 130, "kill": 137}


@pytest.mark.processes
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_way_to_die(ending: str, runner: Runner) -> None:
    plain, watched = runner.both([str(SCRIPTS / "endings.py"), "saved", ending])
    assert plain.status == ENDINGS[ending]
    assert same(plain.saved(), watched.saved())
    run = watched.run
    assert run.info["status"] == ENDINGS[ending]
    assert run.info["signal"] == {"terminate": 15, "interrupt": 2, "kill": 9}.get(ending)
    # what dies at once may lose the rows of the last half second, never what was looked at
    at_once = ending in ("_exit", "terminate", "kill")
    assert run.trace.steps_seen >= 20
    if not at_once:
        assert_healthy(run, 32)
        assert b"left in order" in watched.out


@pytest.mark.processes
def test_data_workers_leave_no_record(runner: Runner) -> None:
    """Spawned and forked ones, also when they run a module of their own."""
    plain, watched = runner.both([str(SCRIPTS / "loaders.py"), "saved"])
    assert same(plain.saved(), watched.saved())
    assert_healthy(watched.run, 32)
    assert len(list(watched.record.glob("*.frames"))) == 1


@pytest.mark.processes
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_that_trains(method: str, runner: Runner) -> None:
    plain, watched = runner.both([str(SCRIPTS / "children.py"), "saved", method])
    assert same(plain.saved(), watched.saved())
    run = watched.run
    assert_healthy(run, 30)
    assert run.trace.chains, "the forked child knows the way through its network too"
    assert len(list(watched.record.glob("*.frames"))) == (2 if method == "fork" else 1)


def _without_torchs_abort(runner: Runner, words: list[str], *, watched: bool) -> Ended:
    """Run it again when torch aborted while it ended, as it does about once in ten or twenty runs, with us and without."""
    for attempt in range(4):
        own = Runner(runner.folder / f"attempt-{attempt}-{watched}")
        own.folder.mkdir()
        ended = own(words, watched=watched)
        if b"terminate called without an active exception" not in ended.err:
            break
    return ended


@pytest.mark.processes
def test_torchrun_with_two_ranks(runner: Runner) -> None:
    torchrun = str(Path(sys.executable).parent / "torchrun")
    words = [torchrun, "--standalone", "--nproc_per_node", "2", str(SCRIPTS / "distributed.py"), "saved"]
    plain, watched = (_without_torchs_abort(runner, words, watched=w) for w in (False, True))
    assert (plain.status, watched.status) == (0, 0), (plain.err + watched.err).decode()
    assert plain.out == watched.out
    for rank in (0, 1):
        assert same(plain.saved(f"saved.{rank}"), watched.saved(f"saved.{rank}"))
    assert_healthy(watched.run, 25)
    assert watched.run.trace.ranks == 2
    assert len(list(watched.record.glob("*.frames"))) == 2, "the agent leaves none"


@pytest.mark.processes
def test_a_compiled_model(runner: Runner) -> None:
    plain, watched = runner.both([str(SCRIPTS / "compiled.py"), "saved"])
    assert same(plain.saved(), watched.saved())
    assert_healthy(watched.run, 20)


@pytest.mark.processes
@pytest.mark.parametrize("torch_too", [False, True], ids=["start", "torch"])
def test_the_interpreter_is_the_same(torch_too: bool, runner: Runner) -> None:
    """Modules, paths, hooks, signals, threads, files: byte for byte, and nothing imported before torch is."""
    plain, _ = runner.both([str(SCRIPTS / "environment.py"), *(["torch"] if torch_too else [])])
    assert plain.status == 0


@pytest.mark.processes
@pytest.mark.parametrize(
    "own",
    [
        "import sys; sys.own = 1",
        "raise ValueError('mine')",
        "import no_such_module",
        "import sys; sys.exit(4)",
        None,
    ],
)
def test_the_users_own_sitecustomize(own: str | None, runner: Runner) -> None:
    theirs = runner.folder / "theirs"
    theirs.mkdir()
    if own is not None:
        (theirs / "sitecustomize.py").write_text(own + "\n")
    look = "import sys; m = sys.modules.get('sitecustomize'); print(getattr(sys, 'own', 0), m, sys.path, len(sys.modules))"
    plain, _ = runner.both([sys.executable, "-c", look], env={"PYTHONPATH": str(theirs)})
    assert bool(plain.out) == (own is None or "exit" not in own)


@pytest.mark.processes
def test_a_torch_that_cannot_be_imported_says_so_as_ever(runner: Runner) -> None:
    (runner.folder / "fake").mkdir()
    (runner.folder / "fake" / "torch.py").write_text("def load():\n    raise OSError('libtorch.so: no such file')\nload()\n")
    code = "try:\n    import torch\nexcept OSError:\n    pass\nimport torch"
    _, watched = runner.both([sys.executable, "-c", code], env={"PYTHONPATH": str(runner.folder / "fake")})
    assert watched.status == 1
    assert b"libtorch" in watched.err


@pytest.mark.processes
def test_a_file_the_shell_opened_is_still_open(runner: Runner) -> None:
    words = ["bash", "-c", f"{' '.join(LAUNCH)} {runner.folder / 'run'} cat <(echo through)"]
    done = subprocess.run(words, capture_output=True, timeout=30, check=False)
    assert done.stdout == b"through\n", done.stderr


@pytest.mark.processes
def test_a_run_folder_that_vanishes(runner: Runner) -> None:
    code = (
        "import os, shutil, runpy, sys; shutil.rmtree(os.environ['GRADIOMETER_RUN']); "
        f"sys.argv = ['x']; runpy.run_path({str(SCRIPTS / 'quick.py')!r})"
    )
    ended = runner([sys.executable, "-c", code], watched=True)
    assert ended.status == 0
    assert ended.out == b"done\n"
    lines = ended.err.decode().splitlines()
    assert len(lines) == 2, lines  # one from the training, one from the launcher
    assert all(line.startswith("gradiometer: the run folder") for line in lines)


# ---- our own failures --------------------------------------------------------------------------------------------------

TRAININGS = {
    "forward_enter": trainings.sgd,
    "forward_leave": trainings.sgd,
    "backward_begin": trainings.sgd,
    "backward_end": trainings.sgd,
    "step_begin": trainings.sgd,
    "step_end": trainings.sgd,
    "optimizer_made": trainings.sgd,
    "check_process": trainings.sgd,
    "clip_begin": trainings.accumulate_and_clip,
    "clip_end": trainings.accumulate_and_clip,
    "scale": trainings.scaler,
    "scaler_stepped": trainings.scaler,
    "compiling": trainings.compiled,
    "other_gradient": trainings.gradient_penalty,
    "end": trainings.sgd,
}


def weights(training: Callable[[], nn.Module]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    torch._dynamo.reset()  # pyright: ignore[reportPrivateUsage]
    return [*[p.detach().clone() for p in training().parameters()], torch.get_rng_state()]


def test_every_entry_is_in_the_table() -> None:
    """A new method of Observer that the taps call needs a line above."""
    methods = {name for name, value in vars(Observer).items() if not name.startswith("_") and callable(value)}
    assert methods == set(TRAININGS)


def failing(error: Exception) -> Callable[..., Any]:
    def method(*_args: Any, **_kwargs: Any) -> Any:
        raise error

    return method


@pytest.mark.parametrize("entry", TRAININGS)
def test_a_failure_of_ours_is_never_the_users(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = weights(TRAININGS[entry])
    capsys.readouterr()
    watch = gradiometer.watch(out=tmp_path / "run", every=1)
    monkeypatch.setattr(Observer, entry, failing(ZeroDivisionError("a mistake")))
    watched = weights(TRAININGS[entry])
    watch.detach()
    assert same(plain, watched)
    assert not watch.attached
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["gradiometer: stopped watching (ZeroDivisionError: a mistake); your training goes on"]
    events = gradiometer.load(tmp_path / "run").trace.events
    assert [e["error"] for e in events if e["event"] == "probe-failed"] == ["ZeroDivisionError: a mistake"]


@pytest.mark.parametrize(
    ("home", "method"),
    [
        (signals, "gradient_statistics"),  # called by autograd, outside the guard of the taps
        (signals, "output_statistics"),
        (Look, "read_graph"),
        (Look, "write_outputs"),
        (Recorder, "flush"),
        (FrameWriter, "add_site"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_nor_is_one_deeper_down(home: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = weights(trainings.sgd)
    watch = gradiometer.watch(out=tmp_path / "run", every=1)
    monkeypatch.setattr(home, method, failing(MemoryError()))
    watched = weights(trainings.sgd)
    watch.detach()
    assert same(plain, watched)


def test_an_exception_that_cannot_be_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    plain = weights(trainings.sgd)
    with gradiometer.watch(out=tmp_path / "run", every=1):
        monkeypatch.setattr(Observer, "backward_begin", failing(RudeError()))
        assert same(plain, weights(trainings.sgd))


def test_a_signal_handler_that_raises_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout that happens to strike inside our code must reach the training."""

    def on_alarm(_number: int, _frame: Any) -> None:
        raise TimeoutError("too slow")

    def struck(*_args: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, on_alarm)
    try:
        with gradiometer.watch(out=tmp_path / "run", every=1) as watch:
            with monkeypatch.context() as patch:
                patch.setattr(Observer, "step_begin", struck)
                with pytest.raises(TimeoutError, match="too slow"):
                    trainings.sgd()
            assert watch.attached
            trainings.sgd()
    finally:
        signal.signal(signal.SIGUSR1, before)


# ---- the disk ----------------------------------------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(size: int) -> Generator[None]:
    """A write beyond ``size`` is cut, then refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 4321, 9000])
def test_a_full_disk(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = weights(trainings.sgd)
    with gradiometer.watch(out=tmp_path / "run", every=1) as watch, files_no_larger_than(size):
        watched = weights(trainings.sgd)
        assert not watch.attached
    assert same(plain, watched)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "your training goes on" in lines[0]
    trace = gradiometer.load(tmp_path / "run").trace
    frames = list((tmp_path / "run").glob("*.frames"))
    if size == 100:
        assert not frames, "a record cut inside its header is taken away again"
        assert trace.steps_seen == 0
    else:
        assert frames[0].stat().st_size == size, "this test needs a write that was cut"
        assert trace.sites
    if size == 9000:
        assert trace.ledger["loss"][0] == pytest.approx(1.1, abs=0.1)


def break_by_removing(folder: Path) -> None:
    shutil.rmtree(folder)


def break_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


def break_the_log(folder: Path) -> None:
    (folder / "events.jsonl").symlink_to("/dev/full")


@pytest.mark.parametrize("ruin", [break_by_removing, break_by_a_file, break_the_log], ids=lambda f: f.__name__)
def test_an_unwritable_folder_is_told_once(
    ruin: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = weights(trainings.sgd)
    with gradiometer.watch(out=tmp_path / "run", every=1) as watch:
        ruin(tmp_path / "run")
        watched = weights(trainings.sgd)
        assert watch.attached == (ruin is break_the_log)
    assert same(plain, watched)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("gradiometer: the run folder cannot be written")


# ---- the door in code --------------------------------------------------------------------------------------------------


def fit_and_raise(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    trainings.fit(model, optimizer, steps=3)
    raise KeyError


def test_watch_in_its_several_ways(tmp_path: Path) -> None:
    model = trainings.mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = gradiometer.watch(model, optimizer, out=tmp_path / "a")
    with pytest.raises(gradiometer.GradiometerError, match="already"):
        gradiometer.watch(out=tmp_path / "b")
    trainings.fit(model, optimizer, steps=2)
    first.detach()
    first.detach()
    trainings.fit(model, optimizer, steps=2)
    second = gradiometer.watch(out=tmp_path / "b")
    with pytest.raises(KeyError), second:
        fit_and_raise(model, optimizer)
    assert not second.attached
    with pytest.raises(gradiometer.GradiometerError, match="already holds a run"):
        gradiometer.watch(out=tmp_path / "b")
    assert [gradiometer.load(w.folder).trace.steps_seen for w in (first, second)] == [2, 3]
    assert first.folder.is_absolute()


@pytest.mark.parametrize("wrong", [{"overhead": 0.0}, {"overhead": 2.0}, {"overhead": float("nan")}, {"every": 0}])
def test_watch_with_wrong_arguments(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(gradiometer.GradiometerError, match=next(iter(wrong))):
        gradiometer.watch(out=tmp_path / "a", **wrong)
    assert not (tmp_path / "a").exists()


def test_a_script_may_change_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with gradiometer.watch(out="here") as watch:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        trainings.sgd()
    assert gradiometer.load(watch.folder).trace.steps_seen == trainings.STEPS
    assert watch.folder == tmp_path / "here"


@pytest.fixture
def under_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = gradiometer.record.folder.create_folder(tmp_path / "run", ["x"], "0")  # pyright: ignore
    monkeypatch.setenv("GRADIOMETER_RUN", str(folder))
    monkeypatch.setattr(attach, "_current", None)
    yield folder
    if attach._current is not None:  # pyright: ignore[reportPrivateUsage]
        attach._current.detach()  # pyright: ignore[reportPrivateUsage]


def test_watch_under_run_is_the_run(under_run: Path) -> None:
    attach.attach_from_environment()
    attach.attach_from_environment()
    watch = gradiometer.watch()
    for _ in range(2):
        with gradiometer.watch(trainings.mlp()) as same_watch:
            trainings.sgd()
        assert same_watch is watch
        assert watch.attached, "the command goes on"
    trainings.sgd()
    with pytest.raises(gradiometer.GradiometerError, match="already"):
        gradiometer.watch(out=under_run.parent / "other")
    watch.detach()
    assert gradiometer.load(under_run).trace.steps_seen == 3 * trainings.STEPS
    trainings.sgd()
    again = gradiometer.watch()
    assert again.folder == under_run
    for _ in range(4):
        trainings.sgd()
    again.detach()
    assert gradiometer.load(under_run).trace.steps_seen == 4 * trainings.STEPS


@pytest.mark.parametrize(
    ("variable", "text"),
    [("OVERHEAD", "much"), ("OVERHEAD", "0"), ("OVERHEAD", "inf"), ("EVERY", "-1"), ("EVERY", "0"), ("EVERY", "2.5")],
)
def test_malformed_variables_are_a_sentence(variable: str, text: str, under_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GRADIOMETER_{variable}", text)
    with pytest.raises(gradiometer.GradiometerError, match=f"GRADIOMETER_{variable} is '{text}'"):
        attach.attach_from_environment()
    assert torch.autograd.backward.__module__ == "torch.autograd"
    assert not hasattr(torch.autograd.backward, "__wrapped__")


def test_launchers_variables_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("WORLD_SIZE", "many")
    with gradiometer.watch(out=tmp_path / "run") as watch:
        trainings.sgd()
        assert watch.attached
    assert gradiometer.load(tmp_path / "run").process["world_size"] == 1


def open_files() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


def test_no_thread_and_no_file_stays(tmp_path: Path) -> None:
    before = (threading.active_count(), open_files())
    with gradiometer.watch(out=tmp_path / "run"):
        trainings.sgd()
        assert threading.active_count() == before[0]
    assert (threading.active_count(), open_files()) == before
