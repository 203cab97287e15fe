"""In a check, and only there: what the command is about to change on disk is kept first, so that it can be put back.

``gradiometer check`` stops a command before its first step, but scripts write before that: they truncate a log, remove an
old checkpoint, move a folder. An audit hook sees every such call of Python's before it happens. The file is then kept in
the run folder: as a copy, or as one more link where it is only removed or moved. Each path has one entry, which says what
it was when the command began; `gradiometer.journal` puts it back when the command is dead.

Loaded by ``sitecustomize`` under the same conditions: it imports only what the interpreter has imported already, and loads
in old interpreters. It never raises into the command. What cannot be kept is not let happen: the process blocks, and the
check is refused.

An entry is a file of one line, the ``ascii()`` of a dictionary (json would be an import).
"""

import _signal  # pyright: ignore[reportMissingImports]  # signal itself would be an import
import os
import stat
import sys
import time
from _thread import allocate_lock, get_ident

TYPE_CHECKING = False  # importing typing would cost more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LARGEST = 512 << 20
"""Bytes of a file that is copied. One that is larger is not let be overwritten."""
LIMIT = "largest"
"""File of the run folder that may say another number."""
SMALL = 16 << 20
"""Bytes of a file that is copied although the command only appends to it: it could still truncate it."""
CHUNK = 4 << 20
WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_APPEND

# what is about to happen to a file, in order of how much of it must be kept
META, APPEND, REMOVE, UPDATE, TRUNCATE = 1, 2, 3, 4, 5


class Refusal(Exception):
    """Something cannot be kept; the argument is the sentence that says so."""


class Journal:
    """Keeps what the command is about to change.

    Args:
        run: run folder.
    """

    def __init__(self, run: str) -> None:
        self._run = os.path.realpath(run)
        self._folder = os.path.join(self._run, "journal")
        self._limit = -1
        home = os.path.expanduser("~")  # noqa: PTH111  pathlib is not imported yet
        self._spared = ("/dev/", "/proc/", "/sys/", self._run + os.sep, os.path.join(home, ".cache") + os.sep)
        self._inside: set[int] = set()
        self._kept: dict[str, int] = {}
        self._fresh()
        self._acts: dict[str, Callable[..., None]] = {
            "os.remove": self._remove,
            "os.rename": self._rename,
            "os.rmdir": self._rmdir,
            "os.mkdir": self._mkdir,
            "os.truncate": self._truncate,
            "os.link": self._link,
            "os.symlink": self._symlink,
            "os.chmod": self._meta,
            "os.chown": self._meta,
            "os.utime": self._meta,
            "sqlite3.connect": self._database,
        }
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._fresh)

    def _fresh(self) -> None:
        """A lock that nobody holds: after a fork the threads that might have held the old one are gone."""
        self._lock = allocate_lock()
        self._inside.clear()

    # ---- what is about to happen -----------------------------------------------------------------------------------

    def hook(self, event: str, args: "tuple[Any, ...]") -> None:
        """Audit hook: sees everything, must cost nothing for what does not write."""
        if event == "open":
            try:
                if not args[2] & WRITING or type(args[0]) is int:
                    return
            except (IndexError, TypeError):  # an event of that name, but not Python's own
                return
            self.guarded(self._open, args[0], args[2])
        else:
            act = self._acts.get(event)
            if act is not None:
                self.guarded(act, *args)

    def guarded(self, act: "Callable[..., None]", *args: "Any") -> None:
        """Do something about a file; whatever goes wrong, nothing is raised."""
        thread = get_ident()
        if thread in self._inside:
            return
        self._inside.add(thread)
        reason = ""
        try:
            act(*args)
        except Refusal as refusal:
            reason = str(refusal)
        except (TypeError, ValueError, AttributeError):  # no path: the call itself will say so
            return
        except OSError as error:
            what = error.filename if isinstance(error.filename, str) else "a file"
            reason = what + " cannot be kept before the command changes it (" + (error.strerror or str(error)) + ")."
        except Exception as error:  # noqa: BLE001  what is not kept must not be changed
            reason = "Gradiometer itself failed (" + type(error).__name__ + ": " + str(error) + ")."
        finally:
            self._inside.discard(thread)
        if reason:
            self.refuse(reason)

    def refuse(self, reason: str) -> None:
        """Say why the check is not made, and never return: the parent stops this process."""
        plain = (c if " " <= c <= "~" and c not in '"\\' else _escape(c) for c in reason)
        line = '{"event": "check-refused", "pid": ' + str(os.getpid()) + ', "reason": "' + "".join(plain) + '"}\n'
        try:
            descriptor = os.open(os.path.join(self._run, "events.jsonl"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        except OSError:
            os._exit(1)  # nobody can be told, and it must not go on
        if hasattr(_signal, "pthread_sigmask") and hasattr(_signal, "valid_signals"):  # none of its handlers runs from here on
            _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        parent = os.environ.get("GRADIOMETER_CHECK_BY", "")
        while not parent.isdigit() or _is_alive(int(parent)):
            time.sleep(1.0)
        os._exit(1)

    def _open(self, path: "Any", flags: int) -> None:
        where = self._locate(path)
        if flags & os.O_TRUNC:
            self._keep(where, TRUNCATE)
        elif flags & os.O_EXCL and flags & os.O_CREAT:
            self._new(where)
        elif flags & os.O_APPEND:
            self._keep(where, APPEND)
        else:
            self._keep(where, UPDATE)

    def write(self, path: "Any") -> None:
        """Something that Python does not see is about to make this file anew."""
        self._keep(self._locate(path), TRUNCATE)

    def update(self, path: "Any") -> None:
        """Something that Python does not see is about to change parts of this file."""
        self._keep(self._locate(path), UPDATE)

    def _truncate(self, path: "Any", _length: int) -> None:
        self._keep(self._locate(path), TRUNCATE)

    def _remove(self, path: "Any", at: int = -1) -> None:
        self._keep(self._locate(path, at, follow=False), REMOVE)

    def _rmdir(self, path: "Any", at: int = -1) -> None:
        self._keep(self._locate(path, at, follow=False), REMOVE)

    def _mkdir(self, path: "Any", _mode: int, at: int = -1) -> None:
        self._new(self._locate(path, at, follow=False), "new folder")

    def _rename(self, source: "Any", target: "Any", source_at: int = -1, target_at: int = -1) -> None:
        before = self._locate(source, source_at, follow=False)
        after = self._locate(target, target_at, follow=False)
        try:
            found = os.lstat(before)
        except OSError:
            return
        folder = stat.S_ISDIR(found.st_mode)
        if not folder:
            self._keep(before, REMOVE, to=after)
        elif os.path.lexists(after) and not os.path.isdir(after):  # noqa: PTH112
            return  # it will fail
        if os.path.lexists(after):
            self._keep(after, REMOVE)
        elif not folder:
            self._new(after)
        if folder:
            self._move(before, after, found)

    def _move(self, before: str, after: str, found: os.stat_result) -> None:
        """A folder is about to be moved. Every such move is noted, for what lies in it is known by its path."""
        with self._locked():
            own = self._read(before)
            theirs = self._read(after)
            if own is not None and own["kind"] in ("new", "new folder"):
                if theirs is not None:
                    return  # it says what stood there before
                self._write(after, {"path": after, "time": time.time_ns(), "kind": "new", "level": TRUNCATE})
                return
            if theirs is not None and theirs["kind"] in ("new", "new folder"):
                os.unlink(self._name(after))  # noqa: PTH108  what will be there was there before
            moved = _entry(before, found)
            moved.update(kind="moved", to=after)
            self._write(before + "\0" + str(moved["time"]), moved)
        self._kept.pop(after, None)

    def _link(self, source: "Any", target: "Any", source_at: int = -1, target_at: int = -1) -> None:
        self._keep(self._locate(source, source_at, follow=False), REMOVE)  # may be changed under its other name
        self._new(self._locate(target, target_at, follow=False))

    def _symlink(self, _source: "Any", target: "Any", at: int = -1) -> None:
        self._new(self._locate(target, at, follow=False))

    def _meta(self, path: "Any", *how: "Any") -> None:
        self._keep(self._locate(path, how[-1]), META)

    def _database(self, name: "Any") -> None:
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if isinstance(name, str) and name.startswith("file:"):
            name, _, options = name[5:].partition("?")
            if "mode=ro" in options or "mode=memory" in options or "immutable=1" in options:
                return
            name = "/" + name.lstrip("/") if name.startswith("//") else name
        if not name or name == ":memory:":
            return
        where = self._locate(name)
        self._keep(where, UPDATE)
        for suffix in ("-wal", "-journal", "-shm"):
            if os.path.exists(where + suffix):  # noqa: PTH110
                self._keep(where + suffix, UPDATE)
            else:
                self._new(where + suffix, "side")

    # ---- writers that Python does not see --------------------------------------------------------------------------

    def torch_is_here(self, torch: "Any") -> None:
        """Torch writes its files itself: torch.save, torch.package and torch.export through one class, TorchScript alone."""
        journal = self

        class PyTorchFileWriter(torch._C.PyTorchFileWriter):
            def __init__(self, target: "Any", *args: "Any", **kwargs: "Any") -> None:
                if isinstance(target, (str, bytes)):
                    journal.guarded(journal.write, target)
                super().__init__(target, *args, **kwargs)

        torch._C.PyTorchFileWriter = PyTorchFileWriter
        script = getattr(torch.jit, "RecursiveScriptModule", None)
        if script is not None and hasattr(script, "save"):
            script.save = self._before(script.save, 1, "f", self.write)

    def _before(self, function: "Any", place: int, name: str, act: "Callable[[Any], None]") -> "Any":
        """The function, which first keeps the file that one of its arguments names."""

        def wrapped(*args: "Any", **kwargs: "Any") -> "Any":
            path = args[place] if len(args) > place else kwargs.get(name)
            if isinstance(path, (str, bytes, os.PathLike)):
                self.guarded(act, path)
            return function(*args, **kwargs)

        return wrapped

    def safetensors_is_here(self, module: "Any") -> None:
        """Its checkpoints are written in Rust."""
        module.serialize_file = self._before(module.serialize_file, 1, "filename", self.write)

    def h5py_is_here(self, module: "Any") -> None:
        """Its files are written in C."""
        plain = module.File.__init__

        def init(made: "Any", name: "Any", mode: "Any" = "r", *args: "Any", **kwargs: "Any") -> None:
            if mode != "r" and isinstance(name, (str, bytes, os.PathLike)):
                self.guarded(self.write if mode == "w" else self.update, name)
            plain(made, name, mode, *args, **kwargs)

        module.File.__init__ = init

    # ---- keeping ---------------------------------------------------------------------------------------------------

    def _locate(self, path: "Any", at: "int | None" = -1, follow: bool = True) -> str:
        """The absolute path of a file, with no link on the way; its last part may be one if that is not followed."""
        if type(path) is int:
            return _name_of(path)
        path = os.fsdecode(path)
        if at is not None and at >= 0:
            path = os.path.join(_name_of(at), path)
        if follow:
            return os.path.realpath(path)
        path = path.rstrip(os.sep) or os.sep
        head, tail = os.path.split(path)
        if tail in ("", ".", ".."):
            return os.path.realpath(path)
        return os.path.join(os.path.realpath(head), tail)

    def _is_spared(self, path: str) -> bool:
        return path.startswith(self._spared) or path.endswith(".pyc") or os.sep + "__pycache__" in path

    def _new(self, path: str, kind: str = "new") -> None:
        if not self._is_spared(path) and path not in self._kept and not os.path.lexists(path):
            with self._locked():
                if self._read(path) is None:
                    self._write(path, {"path": path, "time": time.time_ns(), "kind": kind, "level": TRUNCATE})
            self._kept[path] = TRUNCATE

    def _keep(self, path: str, level: int, to: str = "") -> None:
        """Make sure that what this path was when the command began is not lost by what is about to happen to it.

        Args:
            path: from `_locate`.
            level: what is about to happen.
            to: where it is about to be moved.
        """
        if self._is_spared(path):
            return
        try:
            found = os.lstat(path)
        except OSError:
            if level >= UPDATE or level == APPEND:
                self._new(path)
            return
        regular = stat.S_ISREG(found.st_mode)
        if level in (APPEND, UPDATE, TRUNCATE):
            if not regular or not os.access(path, os.W_OK):
                return
            if found.st_nlink > 1:
                self._part(found)
        elif level == REMOVE and not os.access(os.path.dirname(path), os.W_OK):  # noqa: PTH120
            return
        if self._kept.get(path, 0) >= level:
            return
        with self._locked():
            entry = self._read(path) or _entry(path, found)
            if entry["level"] < level and entry["kind"] in ("file", "link", "folder"):
                entry["level"] = level
                if entry["kind"] == "link":
                    entry["target"] = os.readlink(path)  # noqa: PTH115
                elif entry["kind"] == "file" and not entry["blob"]:
                    entry["level"] = self._keep_content(path, level, found, entry)
                entry["to"] = entry["to"] or to
                self._write(path, entry)
        self._kept[path] = entry["level"]

    def _keep_content(self, path: str, level: int, found: os.stat_result, entry: "dict[str, Any]") -> int:
        """Keep as much of a file as is needed for what is about to happen; returns what it is kept for."""
        size = found.st_size if entry["keep"] < 0 else entry["keep"]
        if level == APPEND and size > SMALL:
            entry["keep"] = size
        elif level == REMOVE and self._link_content(path, found):
            entry["blob"] = _stem(found)
        elif level != META and size <= self._largest():
            entry["blob"] = _key(path)
            self._copy(path, entry["blob"] + ".copy", size)
            if found.st_nlink > 1:
                self._link_content(path, found, ".held")  # its other names must change back too
            return TRUNCATE
        elif level == UPDATE:  # opened for reading and writing, perhaps only to be read: said afterwards if it was changed
            entry["watched"] = True
            return META
        elif level != META:
            what = "removed" if level == REMOVE else "overwritten"
            size = str(size >> 20)
            raise Refusal(path + " is about to be " + what + "; of " + size + " MB it is too large to be put back afterwards.")
        return level

    def _largest(self) -> int:
        """Bytes of the largest file that is copied; read when it is needed, for most processes never write."""
        if self._limit < 0:
            try:
                descriptor = os.open(os.path.join(self._run, LIMIT), os.O_RDONLY)
            except FileNotFoundError:
                self._limit = LARGEST
            else:
                try:
                    self._limit = int(os.read(descriptor, 32))
                finally:
                    os.close(descriptor)
        return self._limit

    def _link_content(self, path: str, found: os.stat_result, suffix: str = ".link") -> bool:
        """Keep a file that is only removed or moved under one more name; whether that could be done."""
        try:
            os.link(path, os.path.join(self._folder, _stem(found) + suffix))
        except FileExistsError:
            return True
        except OSError:  # another file system, or one without links
            return False
        return True

    def _part(self, found: os.stat_result) -> None:
        """A file with several names is about to change: if one of them is ours, keep a copy instead."""
        link = os.path.join(self._folder, _stem(found) + ".link")
        if not os.path.exists(link):  # noqa: PTH110
            return
        with self._locked():
            if os.path.exists(link):  # noqa: PTH110
                if found.st_size > self._largest():
                    size = str(found.st_size >> 20)
                    raise Refusal("A file of " + size + " MB is about to be overwritten, too large to be put back afterwards.")
                self._copy(link, _stem(found) + ".copy", found.st_size)
                if found.st_nlink > 2:  # it has names besides, which must change back too
                    os.replace(link, os.path.join(self._folder, _stem(found) + ".held"))  # noqa: PTH105
                else:
                    os.unlink(link)  # noqa: PTH108

    def _copy(self, source: str, name: str, size: int) -> None:
        target = os.path.join(self._folder, name)
        reading = os.open(source, os.O_RDONLY)
        try:
            writing = os.open(target + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                while size > 0:
                    piece = os.read(reading, min(CHUNK, size))
                    if not piece:
                        break
                    size -= len(piece)
                    while piece:
                        piece = piece[os.write(writing, piece) :]
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        os.replace(target + ".part", target)  # noqa: PTH105

    def _name(self, path: str) -> str:
        return os.path.join(self._folder, _key(path) + ".entry")

    def _read(self, path: str) -> "dict[str, Any] | None":
        try:
            descriptor = os.open(self._name(path), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            text = b""
            while piece := os.read(descriptor, CHUNK):
                text += piece
        finally:
            os.close(descriptor)
        return eval(text.decode(), {"__builtins__": {}})  # written by ourselves; ast would be an import

    def _write(self, path: str, entry: "dict[str, Any]") -> None:
        name = self._name(path)
        descriptor = os.open(name + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, ascii(entry).encode())
        finally:
            os.close(descriptor)
        os.replace(name + ".part", name)  # noqa: PTH105

    def _locked(self) -> "_Locked":
        return _Locked(self._lock, self._folder)


class _Locked:
    """One thread of one process at a time, for the journal is shared by all of them."""

    def __init__(self, lock: "Any", folder: str) -> None:
        self._lock = lock
        self._folder = folder

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            os.makedirs(self._folder, exist_ok=True)
            self._descriptor = os.open(os.path.join(self._folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            self._lock.release()
            raise
        try:
            os.lockf(self._descriptor, os.F_LOCK, 0)
        except OSError:  # a file system without locks: most checks are of one process
            return
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_error: object) -> None:
        try:
            os.close(self._descriptor)
        finally:
            self._lock.release()


def _entry(path: str, found: os.stat_result) -> "dict[str, Any]":
    """A new entry: what this path is now."""
    return {
        "path": path,
        "time": time.time_ns(),
        "kind": _kind(found.st_mode),
        "level": 0,
        "keep": -1,
        "watched": False,
        "blob": "",
        "to": "",
        "mode": stat.S_IMODE(found.st_mode),
        "size": found.st_size,
        "accessed": found.st_atime_ns,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "device": found.st_dev,
        "inode": found.st_ino,
        "links": found.st_nlink,
        "user": found.st_uid,
        "group": found.st_gid,
    }


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else ""


def _key(path: str) -> str:
    """Name of a path's entry: FNV-1a, 128 bits (hashlib would be an import)."""
    value = 0x6C62272E07BB014262B821756295C58D
    for byte in path.encode("utf-8", "surrogatepass"):
        value = ((value ^ byte) * 0x0000000001000000000000000000013B) & ((1 << 128) - 1)
    return "%032x" % value  # noqa: UP031


def _stem(found: os.stat_result) -> str:
    return str(found.st_dev) + "-" + str(found.st_ino)


def _name_of(descriptor: int) -> str:
    """Path of an open file."""
    try:
        return os.readlink("/proc/self/fd/" + str(descriptor))  # noqa: PTH115
    except OSError:
        import fcntl

        get_path = getattr(fcntl, "F_GETPATH", 50)  # macOS
        return os.fsdecode(fcntl.fcntl(descriptor, get_path, bytes(1024)).rstrip(b"\0"))


def _escape(character: str) -> str:
    """For a JSON string."""
    number = ord(character)
    if number > 0xFFFF:
        number -= 0x10000
        return "\\u%04x\\u%04x" % (0xD800 + (number >> 10), 0xDC00 + (number & 0x3FF))  # noqa: UP031
    return "\\u%04x" % number  # noqa: UP031


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def start(run: str) -> Journal:
    """Keep from here on what this process changes."""
    journal = Journal(run)
    sys.addaudithook(journal.hook)
    return journal
