"""Shifts every seed that a script sets (``GRADIOMETER_SEED_SHIFT``), so that a trial can be repeated with other random numbers.

A script that seeds nothing is seeded with the shift itself: two runs of it are then alike as far as the script is. Seeds of
``random``, ``numpy.random`` (``seed`` and ``default_rng``) and ``torch`` are known; generator objects that a script makes
otherwise are its own.
"""

import operator
import random

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Seeds:
    """The shift, and the wrappers that add it."""

    def __init__(self, shift: int) -> None:
        self._shift = shift
        self._inside = False
        self._unseeded = 0

    def start(self) -> None:
        """Seed Python's own generator and wrap its seeding."""
        random.seed(self._shift)
        self._wrap("seed", (1 << 64), random)

    def numpy_is_here(self, module: "Any") -> None:
        """The same for numpy's, which has just been imported."""
        module.seed(self._shift % (1 << 32))
        self._wrap("seed", 1 << 32, module, module.mtrand)
        original = module.default_rng

        def default_rng(seed: "Any" = None) -> "Any":
            if seed is None:
                self._unseeded += 1
                return original([abs(self._shift), self._unseeded])
            return original(self._shifted(seed, 1 << 64))

        module.default_rng = default_rng

    def torch_is_here(self, torch: "Any") -> None:
        """The same for torch's."""
        torch.manual_seed(self._shift)
        manual_seed = torch.manual_seed
        self._wrap("manual_seed", 1 << 64, torch, torch.random)
        self._wrap("manual_seed", 1 << 64, torch.cuda, torch.cuda.random)
        self._wrap("manual_seed_all", 1 << 64, torch.cuda, torch.cuda.random)

        def seed() -> int:
            manual_seed(self._shift)
            return self._shift

        torch.seed = torch.random.seed = seed

    def _wrap(self, name: str, limit: int, *homes: "Any") -> None:
        original: Callable[..., Any] = getattr(homes[0], name)

        def seeded(*args: "Any", **kwargs: "Any") -> "Any":
            if self._inside:  # seeding the processor seeds the accelerators too
                return original(*args, **kwargs)
            self._inside = True
            try:
                if args:
                    args = (self._shifted(args[0], limit), *args[1:])
                elif kwargs:
                    key = next(iter(kwargs))
                    kwargs[key] = self._shifted(kwargs[key], limit)
                else:
                    args = (self._shifted(None, limit),)
                return original(*args, **kwargs)
            finally:
                self._inside = False

        seeded.__name__, seeded.__doc__ = name, original.__doc__
        for home in homes:
            setattr(home, name, seeded)

    def _shifted(self, seed: "Any", limit: int) -> "Any":
        if seed is None:
            return self._shift % limit
        try:
            number = operator.index(seed)
        except TypeError:
            return seed  # a text, or a sequence
        return (number + self._shift) % limit if self._shift else seed


def start(shift: str) -> Seeds:
    """Begin, as early as Python lets us."""
    seeds = Seeds(int(shift))
    seeds.start()
    return seeds
