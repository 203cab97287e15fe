"""Loaded by every Python that starts under ``gradiometer run``: waits for torch, then attaches the probe; nothing else.

The folder of this file stands first on ``PYTHONPATH``. Every Python process of the command pays for what happens here
(data workers and launchers too), so it imports only what the interpreter has imported already. It must also load in
interpreters too old for Gradiometer (hence the quoted annotations). The user's own ``sitecustomize`` takes this module's
place as if it had been found first.
"""

import os
import sys

TYPE_CHECKING = False  # importing typing would cost more than all the rest
if TYPE_CHECKING:
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib is not imported yet
EVENTS_ROOM = 1 << 16
"""Bytes of the event log that may be used from here: a training may start thousands of data workers."""

_journal: "Any" = None
"""Keeps the command's files; only in a check (`gradiometer check`), where it never takes a step."""
_seeds: "Any" = None
"""Shifts the seeds that the command sets; only in a trial."""


def _quote(text: str) -> str:
    """A JSON string (json would be an import)."""
    plain = (c if " " <= c <= "~" and c not in '"\\' else "\\u%04x" % min(ord(c), 0xFFFD) for c in text)  # noqa: UP031
    return '"' + "".join(plain) + '"'


def _event(event: str, **facts: str) -> None:
    """Append a line to the run's ``events.jsonl``; whatever goes wrong is nobody's business but ours."""
    try:
        pairs = "".join(", " + _quote(key) + ": " + _quote(value) for key, value in facts.items())
        line = '{"event": ' + _quote(event) + ', "pid": ' + str(os.getpid()) + pairs + "}\n"
        path = os.path.join(os.environ["GRADIOMETER_RUN"], "events.jsonl")
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            if os.fstat(descriptor).st_size < EVENTS_ROOM:
                os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except Exception:  # noqa: BLE001
        return


def _warn(error: BaseException) -> None:
    """One line on standard error: the probe could not attach."""
    _event("probe-failed", error=type(error).__name__ + ": " + str(error))
    if _journal is not None:
        _journal.refuse("Gradiometer could not attach (" + str(error) + ").")
    try:
        sys.stderr.write("gradiometer: could not attach (" + str(error) + "); your training goes on\n")
    except Exception:  # noqa: BLE001  standard error is closed: nobody is there to be told
        return


def _hide_frame(error: BaseException) -> None:
    """Take the frame that is handling this exception out of its traceback, which is then what it is without us."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


class _Loader:
    """A module's own loader, and what comes after it."""

    def __init__(self, loader: "Any", is_here: "Any") -> None:
        self._loader = loader
        self._is_here = is_here

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "Any") -> "Any":
        return self._loader.create_module(spec)

    def exec_module(self, module: "Any") -> None:
        # from here on the module's spec is what it would be without us
        module.__spec__.loader = module.__loader__ = self._loader
        try:
            self._loader.exec_module(module)
        except BaseException as error:
            if module.__name__ == "torch":
                _event("torch-failed", error=type(error).__name__ + ": " + str(error))
            _hide_frame(error)
            raise
        self._is_here(module)


class _Finder:
    """Finds nothing itself; when torch is imported, looks it up as the others would and wraps its loader.

    In a check other modules are waited for too: those that write files without Python. In a trial numpy's random numbers.

    It stays on ``sys.meta_path``: taking it off while another thread walks the list would make that thread skip a finder.
    """

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in _AWAITED:
            return None
        try:
            for finder in list(sys.meta_path):
                spec = finder.find_spec(name, path, target) if finder is not self else None
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader, _AWAITED[name])
                    return spec
        except Exception:  # noqa: BLE001  the import system will ask that finder again, and the user will see its exception
            return None
        if name == "torch":
            _event("no-torch", executable=sys.executable)
        return None


def _torch_is_here(torch: "Any") -> None:
    """Attach the probe: torch has just been imported."""
    try:
        version = str(torch.__version__)
        _event("torch", version=version)
        if sys.version_info < (3, 11) or _numbers(version) < [2, 6]:
            if _journal is not None:
                what = "torch " + version if sys.version_info >= (3, 11) else "Python %d.%d" % sys.version_info[:2]  # noqa: UP031
                _journal.refuse("The command uses " + what + "; Gradiometer needs Python 3.11 and torch 2.6, or newer.")
            if os.environ.get("GRADIOMETER_PRESCRIPTION"):
                _not_treated("torch " + version + " is too old")
            return  # the launcher says why nothing was measured
        if _journal is not None:
            _journal.torch_is_here(torch)
        if _seeds is not None:
            _seeds.torch_is_here(torch)
        _import_gradiometer()
        from gradiometer.probe.attach import attach_from_environment

        attach_from_environment()
    except Exception as error:  # noqa: BLE001  our failure never becomes the user's
        _warn(error)
    if os.environ.get("GRADIOMETER_PRESCRIPTION"):
        _treat()


def _treat() -> None:
    """Wait for a model to treat. A command that shall be treated never goes on untreated."""
    try:
        from gradiometer.remedies.ward import wait_from_environment

        wait_from_environment()
    except Exception as error:  # noqa: BLE001
        _not_treated(type(error).__name__ + ": " + str(error))


def _not_treated(reason: str) -> None:
    _event("treatment-failed", remedy="", sentence=reason)
    sys.stderr.write("gradiometer: the prescription cannot be given (" + reason + ")\n")
    sys.stderr.flush()
    os._exit(2)


def _writer_is_here(module: "Any") -> None:
    """A module that writes files without Python has just been imported (in a check)."""
    try:
        getattr(_journal, module.__name__ + "_is_here")(module)
    except Exception:  # noqa: BLE001  another version of it than we know
        return


def _numpy_is_here(numpy_random: "Any") -> None:
    """Shift numpy's seeds (in a trial)."""
    try:
        _seeds.numpy_is_here(numpy_random)
    except Exception as error:  # noqa: BLE001
        _event("seeds-failed", error=type(error).__name__ + ": " + str(error))


_AWAITED: "dict[str, Any]" = {"torch": _torch_is_here}


def _numbers(version: str) -> "list[int]":
    return [int(part) for part in version.split(".")[:2]]


def _import_gradiometer() -> None:
    """Import the package this file lies in, whether or not the user's environment has it on its path.

    Nothing else next to it becomes importable: the user's packages are the user's.
    """
    import importlib.util
    from pathlib import Path

    if "gradiometer" in sys.modules:
        return
    package = Path(HERE).parents[1]
    theirs = importlib.util.find_spec("gradiometer")
    # another version of ours gives way to the one that reads the record; a stranger does not
    if theirs is not None and not (Path(theirs.origin or "").parent / "probe" / "boot").is_dir():
        raise ImportError("another module is called gradiometer: " + str(theirs.origin))
    spec = importlib.util.spec_from_file_location(
        "gradiometer", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gradiometer"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["gradiometer"]
        raise


try:
    if os.environ.get("GRADIOMETER_RUN") and os.environ.get("GRADIOMETER_CHECK"):
        import gradiometer_journal  # lies next to this file

        _journal = gradiometer_journal.start(os.environ["GRADIOMETER_RUN"])
        _AWAITED.update(dict.fromkeys(("safetensors", "h5py"), _writer_is_here))
    if os.environ.get("GRADIOMETER_RUN") and os.environ.get("GRADIOMETER_SEED_SHIFT"):
        import gradiometer_seeds  # the same

        _seeds = gradiometer_seeds.start(os.environ["GRADIOMETER_SEED_SHIFT"])
        _AWAITED["numpy.random"] = _numpy_is_here
    # PYTHONPATH stays as it is for the processes that this one starts
    sys.path[:] = [entry for entry in sys.path if entry != HERE]
    sys.path_importer_cache.pop(HERE, None)
    if os.environ.get("GRADIOMETER_RUN"):
        _event("python", version=".".join(str(n) for n in sys.version_info[:3]), executable=sys.executable)
        if "numpy.random" in sys.modules and _seeds is not None:
            _numpy_is_here(sys.modules["numpy.random"])
        if "torch" in sys.modules:  # a .pth file has imported it
            _torch_is_here(sys.modules["torch"])
        else:
            sys.meta_path.insert(0, _Finder())
except Exception as error:  # noqa: BLE001
    _warn(error)

# The user's own sitecustomize, through the import machinery, from wherever it would have come. Where there is none, this
# import fails as Python expects it to, and no module of this name stays behind; where it raises, so do we.
del sys.modules["sitecustomize"]
try:
    import sitecustomize  # noqa: F401  # pyright: ignore[reportUnusedImport]
except BaseException as error:
    _hide_frame(error)
    raise
