"""A process that starts others in every way, says that it is ready, and waits; none of them imports torch.

check_children.py: a daemon (two forks and a session of its own) that would write a file after a while, one more whose
environment is empty, and a spawned process of multiprocessing.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

LATE = "import time, pathlib; time.sleep(60); pathlib.Path('late').touch()"


def wait(name):
    Path(name).write_text(str(os.getpid()))
    time.sleep(60)


def daemonise():
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    wait("pid-daemon")
    os._exit(0)


if __name__ == "__main__":
    daemonise()
    detached = subprocess.Popen(["env", "-i", sys.executable, "-c", LATE], start_new_session=True)
    Path("pid-detached").write_text(str(detached.pid))
    child = multiprocessing.get_context("spawn").Process(target=wait, args=("pid-spawned",))
    child.start()
    while not (Path("pid-daemon").exists() and Path("pid-spawned").exists()):
        time.sleep(0.01)
    with open(os.environ["GRADIOMETER_RUN"] + "/events.jsonl", "a") as events:
        events.write(json.dumps({"event": "check-ready", "pid": os.getpid(), "rank": 0, "world": 1}) + "\n")
    try:
        time.sleep(60)
    finally:
        Path("late").touch()
