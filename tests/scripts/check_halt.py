"""Halt a command at its first step: check_halt.py FOLDER COMMAND... Exits with 130 after Ctrl-C."""

import sys
from pathlib import Path

from gradiometer import launch
from gradiometer.halting import halt_at_first_step
from gradiometer.record.folder import create_folder

command = launch.resolve(sys.argv[2:])
halted = halt_at_first_step(command, create_folder(Path(sys.argv[1]), command, "0"))
print(halted)
sys.exit(128 + halted.signal if halted.interrupted else 0)
