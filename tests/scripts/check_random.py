"""Random file operations under the journal, then undone: check_random.py FIRST LAST. Prints what is not as it was."""
# ruff: noqa: PTH101, PTH102, PTH106, PTH107, PTH115, PTH211

import importlib.util
import os
import random
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import gradiometer
from gradiometer.journal import undo

JOURNAL = Path(gradiometer.__file__).parent / "probe" / "boot" / "gradiometer_journal.py"
SPEC = importlib.util.spec_from_file_location("gradiometer_journal", JOURNAL)
keeper = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(keeper)

LONG_AGO = 1_500_000_000_123_456_789
NAMES = ["a", "b", "c", "d/x", "d/y", "d/e/z", "f/x", "f", "d", "d/e", "g", "h/i", "h", "l", "m"]


def write(name, mode, text):
    with open(name, mode) as file:
        file.write(text)


OPERATIONS = [
    lambda a, b: write(a, "w", "new" + b),
    lambda a, b: write(a, "a", "more"),
    lambda a, b: write(a, "r+", "XY"),
    lambda a, b: os.remove(a),
    os.rename,
    os.rename,
    os.rename,
    os.replace,
    lambda a, b: os.mkdir(a),
    lambda a, b: os.rmdir(a),
    lambda a, b: shutil.rmtree(a),
    lambda a, b: os.truncate(a, 2),
    lambda a, b: os.chmod(a, 0o711),
    lambda a, b: os.utime(a),
    lambda a, b: os.symlink(b, a),
    os.link,
    shutil.copy,
    shutil.move,
    shutil.copytree,
]


def furnish(dice):
    for name in ["a", "b", "d/x", "d/y", "d/e/z", "f/x"]:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 5)
        path.chmod(dice.choice([0o640, 0o600, 0o755]))
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    os.symlink("a", "l")
    os.symlink("d", "m")
    os.link("b", "d/b2")


def facts():
    found = {}
    for path in sorted(Path().rglob("*")):
        at = path.lstat()
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_dir():
            found[path] = stat.S_IMODE(at.st_mode)
        else:
            found[path] = (path.read_bytes(), at.st_mode, at.st_mtime_ns)
    return found


def act(run, dice):
    """In the child: some operations, until the journal refuses one; returns what was done."""
    done = []
    journal = keeper.Journal(str(run))

    def refuse(reason):
        (run / "done").write_text("\n".join([*done, reason]))
        os._exit(0)

    journal.refuse = refuse
    sys.addaudithook(journal.hook)
    for _ in range(dice.randrange(1, 9)):
        which, one, two = dice.randrange(len(OPERATIONS)), dice.choice(NAMES), dice.choice(NAMES)
        try:
            OPERATIONS[which](one, two)
            done.append(f"{which} {one} {two}")
        except (OSError, shutil.Error) as error:
            done.append(f"{which} {one} {two}: {error}")
    (run / "done").write_text("\n".join(done))
    os._exit(0)


def is_told(path, told):
    return any(path == other or other in path.parents or path in other.parents for other in told)


def try_one(seed, base):
    dice = random.Random(seed)
    work, run = base / "work", base / "run"
    work.mkdir()
    run.mkdir()
    os.chdir(work)
    furnish(dice)
    (run / keeper.LIMIT).write_text(str(dice.choice([1 << 20, 1 << 20, 8])))
    before = facts()
    pid = os.fork()
    if pid == 0:
        act(run, dice)
    os.waitpid(pid, 0)
    done = (run / "done").read_text()
    undone = undo(run, here=work)
    after = facts()
    told = [path.relative_to(work) for path, _ in undone.not_restored]
    created = [path.relative_to(work) for path in undone.created]
    wrong = [f"{path} was {what}, is {after.get(path)}" for path, what in before.items() if after.get(path) != what]
    wrong = [line for line in wrong if not is_told(Path(line.split()[0]), told)]
    new = [path for path in after if path not in before and not path.is_dir()]
    wrong += [f"{path} is not listed" for path in new if not told and not is_told(path, created)]
    if wrong:
        print(f"seed {seed}", *wrong, done, sep="\n    ")


for number in range(int(sys.argv[1]), int(sys.argv[2])):
    with tempfile.TemporaryDirectory() as folder:
        try_one(number, Path(folder).resolve())
        os.chdir("/")
