"""Trains the networks that the lab's phase diagram shows as circles and crosses, and writes them into the package.

    python benchmarks/phases.py [--jobs N] [--only ACTIVATION]

Some minutes on two cores; ``gradiometer.lab.phases`` says what is trained and how.
"""

from __future__ import annotations

import argparse
import json
import time

from gradiometer.lab.phases import DEPTHS, TRAINED_FILE, TrainedPlane, plain, train_plane

ACTIVATIONS = ("tanh", "relu", "sigmoid", "gelu", "silu", "selu", "softplus")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, help="blocks at a time; joblib decides by default")
    parser.add_argument("--only", choices=ACTIVATIONS, help="train one activation and write nothing")
    args = parser.parse_args()
    found: list[TrainedPlane] = []
    for name in (args.only,) if args.only else ACTIVATIONS:
        began = time.perf_counter()
        planes = train_plane(name, jobs=args.jobs)
        seconds = time.perf_counter() - began
        shares = ", ".join(f"depth {p.depth}: {p.learned.mean():.0%}" for p in planes)
        print(f"{name:10} {seconds:6.1f} s  trained at {shares}", flush=True)
        for p in planes if args.only else ():
            for bias, row in zip(p.sigma_b[::-1], p.accuracy[::-1], strict=True):
                print(f"{p.depth:4} {bias:4.1f} " + " ".join(f"{a:4.2f}" for a in row))
        found += planes
    if not args.only:
        TRAINED_FILE.write_text(json.dumps(plain(found), separators=(",", ":")) + "\n")
        print(f"wrote {TRAINED_FILE.name}: {len(found)} planes of depths {DEPTHS}")


if __name__ == "__main__":
    main()
