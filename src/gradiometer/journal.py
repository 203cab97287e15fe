"""Put back what a command changed on disk before it was stopped, from what its processes kept in the run folder.

The other half, which keeps, is ``probe/boot/gradiometer_journal.py``. Entries are undone from the last to the first. What
the command made anew is never deleted; it only gives way where something older stood in its place.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

JOURNAL: Final = "journal"
SET_ASIDE: Final = "set-aside"
CHUNK: Final = 4 << 20
CHANGED: Final = "it was changed, and could not be kept before"


@dataclass(slots=True)
class Undone:
    """What became of the files.

    Attributes:
        restored: changed, removed or moved by the command, and now as they were.
        created: made by the command, and still there.
        not_restored: changed and not put back, each with the reason.
    """

    restored: list[Path] = field(default_factory=list[Path])
    created: list[Path] = field(default_factory=list[Path])
    not_restored: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])


class _NotRestoredError(Exception):
    """The argument says why."""


def undo(folder: Path, *, here: Path | None = None) -> Undone:
    """Put everything back that the command changed; all its processes must be dead.

    Args:
        folder: run folder.
        here: folder in which the command ran; new files below it are listed even where temporary ones lie.
    """
    undone = Undone()
    journal = folder / JOURNAL
    entries = sorted(_read(journal), key=lambda entry: entry["time"], reverse=True)
    undoing = _Undoing(journal, {entry["path"] for entry in entries if entry["kind"] == "new"}, _writers())
    for entry in entries:
        path = Path(entry["path"])
        try:
            if undoing(entry):
                undone.restored.append(path)
        except _NotRestoredError as reason:
            undone.not_restored.append((path, str(reason)))
        except OSError as error:
            reason = error.strerror or str(error)
            if blob := _blob(entry, journal):
                reason += f"; what it was is kept as {blob}"
            undone.not_restored.append((path, reason))
    is_created = _is_created(here or Path.cwd())
    undone.restored = sorted(set(undone.restored))
    undone.created = sorted(p for p in map(Path, undoing.new) if is_created(p))
    if not undone.not_restored:
        shutil.rmtree(journal, ignore_errors=True)
    return undone


def _read(journal: Path) -> Iterable[dict[str, Any]]:
    for path in journal.glob("*.entry"):
        with contextlib.suppress(OSError, ValueError, SyntaxError):  # its process died while writing it: nothing was changed
            yield ast.literal_eval(path.read_text(encoding="ascii"))


def _is_created(here: Path) -> Callable[[Path], bool]:
    """Tells which new files are worth a word: caches and temporary files are not, nor empty folders."""
    temporary = Path(tempfile.gettempdir()).resolve()
    home = Path(os.path.expanduser("~")).resolve()  # noqa: PTH111  where there is none this does not raise
    here = here.resolve()

    def is_created(path: Path) -> bool:
        if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
            return False
        hidden = home in path.parents and path.relative_to(home).parts[0].startswith(".")
        return here in path.parents or not (hidden or temporary in path.parents)

    return is_created


# ---- one entry ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Undoing:
    """Undoes entries, the last one first.

    Attributes:
        journal: folder of the journal.
        new: paths that the command made, less those that have given way.
        writers: files that another program is writing, which are left alone, and that program.
        remade: folders that were removed and are there again, and which ones they stand for.
    """

    journal: Path
    new: set[str]
    writers: Mapping[tuple[int, int], int]
    remade: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def __call__(self, entry: Mapping[str, Any]) -> bool:
        """Undo one entry; whether there was anything to undo."""
        match entry["kind"]:
            case "file":
                return self._file(entry)
            case "link":
                return self._link(entry)
            case "folder":
                return self._folder(entry)
            case "moved":
                return self._moved(entry)
            case "side":
                return self._side(entry)
            case _:
                return False

    def _file(self, entry: Mapping[str, Any]) -> bool:
        path = Path(entry["path"])
        now = _look(path)
        if now is not None and _is_untouched(now, entry):
            return False
        blob = _blob(entry, self.journal)
        linked = blob is not None and blob.suffix == ".link"
        same = now is not None and _is_same(now, entry)
        if now is not None and stat.S_ISDIR(now.st_mode):
            raise _NotRestoredError("a folder has its place" + (f"; what it was is kept as {blob}" if blob is not None else ""))
        if now is not None:
            self._refuse_if_written(now)
        if same and (blob is None or linked):  # its content was at most added to
            assert now is not None
            changed = _cut(path, now, entry)
        elif blob is None:
            raise _NotRestoredError(CHANGED)
        elif same and _equal(path, blob):
            changed = False
        elif same:
            _overwrite(path, blob)
            changed = True
        else:
            written = linked and entry["watched"] and not _is_as_long_ago(blob.stat(), entry)
            self._put(path, blob, entry, linked=linked)
            changed = True
            if written:
                raise _NotRestoredError(CHANGED)
        return _set_facts(path, entry) or changed

    def _refuse_if_written(self, found: os.stat_result) -> None:
        writer = self.writers.get((found.st_dev, found.st_ino))
        if writer is not None:
            raise _NotRestoredError(f"process {writer} has it open for writing")

    def _put(self, path: Path, blob: Path, entry: Mapping[str, Any], *, linked: bool) -> None:
        """Put a file back that is no longer at its place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        held = self.journal / f"{entry['device']}-{entry['inode']}.held"
        moved = _look(Path(entry["to"])) if entry["to"] in self.new and linked else None
        if moved is not None and _is_same(moved, entry):
            Path(entry["to"]).replace(path)
        elif held.exists() and not linked:  # the file itself, for it has other names
            if not _equal(held, blob):
                self._refuse_if_written(held.stat())
                _overwrite(held, blob)
            temporary = _beside(path)
            temporary.hardlink_to(held)
            temporary.replace(path)
        elif linked and blob.stat().st_nlink <= max(1, entry["links"]):
            blob.replace(path)  # no other name but those that it had before
        else:
            temporary = _beside(path)
            try:
                shutil.copyfile(blob, temporary)
                temporary.chmod(entry["mode"])
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        if entry["keep"] >= 0:
            os.truncate(path, entry["keep"])

    def _link(self, entry: Mapping[str, Any]) -> bool:
        path, target = Path(entry["path"]), entry["target"]
        now = _look(path)
        if now is not None and stat.S_ISLNK(now.st_mode) and str(path.readlink()) == target:
            return False
        if now is not None and stat.S_ISDIR(now.st_mode):
            raise _NotRestoredError(f"a folder has its place; it was a link to {target}")
        path.parent.mkdir(parents=True, exist_ok=True)
        moved = Path(entry["to"])
        if entry["to"] in self.new and moved.is_symlink() and str(moved.readlink()) == target:
            moved.replace(path)
        else:
            temporary = _beside(path)
            temporary.symlink_to(target)
            temporary.replace(path)
        return True

    def _folder(self, entry: Mapping[str, Any]) -> bool:
        """Make a folder again that was removed when it was empty."""
        path = Path(entry["path"])
        now = _look(path)
        if now is not None and not path.is_dir():
            raise _NotRestoredError("a file has the place of this folder")
        path.mkdir(parents=True, exist_ok=True)
        if now is None:
            self.remade[str(path)] = (entry["device"], entry["inode"])
        if now is not None and stat.S_IMODE(now.st_mode) == entry["mode"]:
            return False
        path.chmod(entry["mode"])
        return True

    def _moved(self, entry: Mapping[str, Any]) -> bool:
        """Move a folder back."""
        path, moved = Path(entry["path"]), Path(entry["to"])
        now, there = _look(path), _look(moved)
        which = (entry["device"], entry["inode"])
        if now is not None and (_is_same(now, entry) or self.remade.get(str(path)) == which):
            return False  # between two file systems it is copied and removed instead
        if there is None or (not _is_same(there, entry) and self.remade.get(str(moved)) != which):
            raise _NotRestoredError(f"it was moved to {moved}, and is not there any more")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._move_back(moved, path)
        inside = entry["to"] + os.sep
        self.new = {entry["path"] + os.sep + n.removeprefix(inside) if n.startswith(inside) else n for n in self.new}
        return True

    def _move_back(self, source: Path, target: Path) -> None:
        """Move a file or folder to where it was; new files that lie there stay, except under the same name."""
        if target.is_dir() and not target.is_symlink() and source.is_dir() and not source.is_symlink():
            mode = stat.S_IMODE(source.stat().st_mode)
            for child in source.iterdir():
                self._move_back(child, target / child.name)
            source.rmdir()
            target.chmod(mode)
        else:
            source.replace(target)
            self.new.discard(str(target))

    def _side(self, entry: Mapping[str, Any]) -> bool:
        """A new log of a database that was there before: it would be played into what is put back, so it is set aside."""
        path = Path(entry["path"])
        now = _look(path)
        database = path.with_name(path.name.rpartition("-")[0])
        if now is None or not database.exists() or str(database) in self.new:
            return False
        self._refuse_if_written(now)
        aside = self.journal.parent / SET_ASIDE
        aside.mkdir(exist_ok=True)
        shutil.move(path, aside / path.name)
        return True


def _cut(path: Path, now: os.stat_result, entry: Mapping[str, Any]) -> bool:
    """Take off what was appended to a file; whether anything was."""
    keep = entry["keep"] if entry["keep"] >= 0 else entry["size"]
    written = entry["watched"] and not _is_as_long_ago(now, entry)
    if now.st_size < keep or written or (now.st_size > keep and entry["keep"] < 0):
        raise _NotRestoredError(CHANGED)
    if now.st_size > keep:
        os.truncate(path, keep)
        return True
    return False


# ---- files -------------------------------------------------------------------------------------------------------------


def _look(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _blob(entry: Mapping[str, Any], journal: Path) -> Path | None:
    """What was kept of a file's content: a copy, or one more link."""
    if not entry.get("blob"):
        return None
    copy = journal / f"{entry['blob']}.copy"
    return copy if copy.exists() else journal / f"{entry['blob']}.link"


def _is_same(now: os.stat_result, entry: Mapping[str, Any]) -> bool:
    """Whether it is the very file, whatever its content."""
    return (now.st_dev, now.st_ino) == (entry["device"], entry["inode"])


def _is_as_long_ago(now: os.stat_result, entry: Mapping[str, Any]) -> bool:
    """Whether nothing has been written to it since."""
    return (now.st_size, now.st_mtime_ns) == (entry["size"], entry["modified"])


def _overwrite(path: Path, blob: Path) -> None:
    """Write a file's content back in place, so that it stays the same file."""
    with blob.open("rb") as source, path.open("r+b") as target:
        shutil.copyfileobj(source, target, CHUNK)
        target.truncate()


def _beside(path: Path) -> Path:
    """A name for a moment, in the same folder."""
    return path.with_name(f".{path.name[:60]}.gradiometer")


def _is_untouched(now: os.stat_result, entry: Mapping[str, Any]) -> bool:
    found = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    return found == (entry["device"], entry["inode"], entry["size"], entry["modified"], entry["changed"])


def _equal(path: Path, other: Path) -> bool:
    if path.stat().st_size != other.stat().st_size:
        return False
    with path.open("rb") as one, other.open("rb") as two:
        while piece := one.read(CHUNK):
            if piece != two.read(CHUNK):
                return False
    return True


def _set_facts(path: Path, entry: Mapping[str, Any]) -> bool:
    """Give a file its owner, mode and time back; whether one of them was another."""
    now = path.stat()
    changed = False
    if (now.st_uid, now.st_gid) != (entry["user"], entry["group"]):
        with contextlib.suppress(OSError):
            os.chown(path, entry["user"], entry["group"])
            changed = True
    if stat.S_IMODE(now.st_mode) != entry["mode"]:
        path.chmod(entry["mode"])
        changed = True
    if now.st_mtime_ns != entry["modified"]:
        os.utime(path, ns=(entry["accessed"], entry["modified"]))
        changed = True
    return changed


def _writers() -> dict[tuple[int, int], int]:
    """Regular files that are open for writing, and by which process; where there is no /proc nobody can tell."""
    found: dict[tuple[int, int], int] = {}
    if sys.platform != "linux":
        return found
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    held = descriptor.stat()
                    if stat.S_ISREG(held.st_mode) and _writes(process, descriptor.name):
                        found[held.st_dev, held.st_ino] = int(process.name)
    return found


def _writes(process: Path, descriptor: str) -> bool:
    for line in (process / "fdinfo" / descriptor).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False
