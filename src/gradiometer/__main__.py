"""``python -m gradiometer``."""

from gradiometer.cli import main

main()
