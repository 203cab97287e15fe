"""Run a command under the probe: launch.py FOLDER COMMAND... What ``gradiometer run`` does, without the report."""

import sys
from pathlib import Path

from gradiometer import launch
from gradiometer.errors import GradiometerError
from gradiometer.record.folder import create_folder

try:
    command = launch.resolve(sys.argv[2:])
    folder = create_folder(Path(sys.argv[1]), command, "0")
    outcome = launch.launch(command, folder, overhead=0.01, every=None)
except GradiometerError as error:
    sys.exit(str(error))
sys.exit(outcome.status)
