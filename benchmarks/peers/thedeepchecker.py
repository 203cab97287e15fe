"""TheDeepChecker's training checks (Ben Braiek and Khomh, "Testing Feedforward Neural Networks Training Programs", TOSEM 2022).

Formulas: ``deep_checker/hooks.py`` (the Overfit hooks) and ``metrics.py`` of the repository thedeepchecker/thedeepchecker.
Constants: its ``settings.yaml``, which its ports to PyTorch repeat. Written anew; the tool itself needs TensorFlow 1.

How the rules meet numbers other than those they were made for:

* TheDeepChecker runs these checks while the program overfits one batch of 50 samples for 200 iterations, where a loss that
  does not fall is a bug. Here, like all peers, it sees the training itself. Its loss checks say "stagnated" of every
  training that is nearly done; the gradient and activation checks make sense there all the same.
* A window is ten steps, as published; the first check is after ten of them.
* A neuron is a channel of a convolution, else an entry of the last dimension. Of long batches 4,096 rows are looked at.
* The saturation index runs over the range of the function, (-1, 1) for a tanh.
* Left out: the checks before and after the training, sign, size and growth of weights and biases, the range of
  activations, and the correlation of loss and accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from peers.record import Found, Numbers, Training, Verdict, verdict

PERIOD = 10
WINDOW = 5
VANISHING_SIZE = 1e-6
VANISHING_RATE = 0.5
EXPLODING_SIZE = 1e6
EXPLODING_RATE = 2.0
DEAD_NEURONS = 0.5  # neurons whose 95th percentile of |output| is below 1e-5
SATURATED_NEURONS = 0.5  # neurons whose saturation index is above 0.85
LEAST_SPREAD, MOST_SPREAD = 0.5, 2.0
F_CRITICAL = 2.70554  # alpha = 0.1
LOW_UPDATES, HIGH_UPDATES = -4.0, -1.0
LOSS_FALL = 0.05
LOSS_GROWTH = 2.0
LOSS_SMOOTHNESS = 0.5
SMOOTHNESS_WINDOW = 50


def vanishing(sizes: Numbers) -> bool:
    """Whether a mean absolute gradient is next to nothing, or halves in each of the last steps."""
    return bool(sizes[-1] < VANISHING_SIZE) or _all_rates(sizes, lambda rates: rates <= VANISHING_RATE)


def exploding(sizes: Numbers) -> bool:
    """Whether a mean absolute gradient is huge, or doubles in each of the last steps."""
    return bool(sizes[-1] > EXPLODING_SIZE) or _all_rates(sizes, lambda rates: rates >= EXPLODING_RATE)


def dead(share: float) -> bool:
    """Whether most neurons of a layer are dead."""
    return share > DEAD_NEURONS


def saturated(share: float) -> bool:
    """Whether most neurons of a layer are saturated."""
    return share > SATURATED_NEURONS


def unstable_spread(std: float) -> bool:
    """Whether the standard deviation of a layer's activations is out of bounds by more than an F test forgives."""
    bound = LEAST_SPREAD if std < LEAST_SPREAD else MOST_SPREAD if std > MOST_SPREAD else std
    ratio = (std / bound) ** 2 if bound else np.inf
    return bool(max(ratio, 1 / ratio if ratio else np.inf) > F_CRITICAL)


def update_problem(updates: Numbers, weights: Numbers) -> str:
    """What is wrong with the size of the updates of a window against that of the weights; nothing is "".

    A weight that an update leaves as it is counts as a ratio of one, as in the tool, whose log is zero.
    """
    known = weights > 0
    if not known.any():
        return ""
    with np.errstate(divide="ignore"):
        logs = np.where(updates[known] > 0, np.log10(updates[known] / weights[known]), 0.0)
    mean = float(logs.mean())
    if mean == 0:
        return "untrained weights"
    if mean > HIGH_UPDATES:
        return "updates too large"
    return "updates too small" if mean < LOW_UPDATES else ""


def stagnating(losses: Numbers) -> bool:
    """Whether the loss fell by less than a twentieth in each of the last windows."""
    if len(losses) < WINDOW:
        return False
    last = losses[-WINDOW:]
    return bool(((last[:-1] - last[1:]) / last[:-1] < LOSS_FALL).all())


def diverging(losses: Numbers) -> bool:
    """Whether the loss doubled in each of the last windows."""
    return _all_rates(losses, lambda rates: rates >= LOSS_GROWTH)


def fluctuating(losses: Numbers) -> bool:
    """Whether the loss turns more often than every other window."""
    last = losses[-SMOOTHNESS_WINDOW:]
    rising = last[1:] / last[:-1] > 1
    turns = np.count_nonzero(rising[1:] != rising[:-1])
    return bool((len(last) - turns) / len(last) < LOSS_SMOOTHNESS) if len(last) else False


def judge(training: Training) -> Verdict:
    """Hold the rules against a training: everything that fires, the tool only logs it and goes on."""
    with np.errstate(all="ignore"):
        return verdict([*_gradients(training), *_activations(training), *_losses(training)])


def _gradients(training: Training) -> Iterator[Found]:
    for column, kernel in enumerate(training.kernels):
        sizes = training.gradient_size[:, column]
        for step in np.flatnonzero(training.seen[:, column] & ~np.isfinite(sizes))[:1]:
            yield Found("gradient not finite", kernel, int(step))
        for step in range(0, training.steps, PERIOD):
            past = sizes[: step + 1][np.isfinite(sizes[: step + 1])]
            if step >= PERIOD and np.isfinite(sizes[step]):
                if vanishing(past):
                    yield Found("vanishing gradient", kernel, step)
                if exploding(past):
                    yield Found("exploding gradient", kernel, step)
            window = slice(max(0, step - PERIOD + 1) if step > PERIOD else 0, step + 1)
            updates, weights = training.update_size[window, column], training.weight_size[window, column]
            known = np.isfinite(updates) & np.isfinite(weights)
            problem = update_problem(updates[known], weights[known]) if step and known.any() else ""
            if problem:
                yield Found(problem, kernel, step)


def _activations(training: Training) -> Iterator[Found]:
    for step in range(PERIOD, training.steps, PERIOD):
        for site, shares in training.saturated_neurons.items():
            if saturated(shares[step]):
                yield Found("saturated neurons", site, step)
        for site, shares in training.dead_neurons.items():
            if dead(shares[step]):
                yield Found("dead neurons", site, step)
        for site, stds in training.spread.items():
            if np.isfinite(stds[step]) and unstable_spread(float(stds[step])):
                yield Found("unstable activations", site, step)


def _losses(training: Training) -> Iterator[Found]:
    means: list[float] = []
    since: list[float] = []
    for step, loss in enumerate(training.loss):
        since.append(float(loss))
        if not np.isfinite(loss):
            # the tool goes on, and the mean of a window with such a loss can show nothing else
            yield Found("loss not finite", "loss", step)
            return
        if step % PERIOD:
            continue
        means.append(float(np.mean(since)))
        since = []
        losses = np.array(means)
        if stagnating(losses):
            yield Found("stagnating loss", "loss", step)
        if diverging(losses):
            yield Found("diverging loss", "loss", step)
        if fluctuating(losses):
            yield Found("fluctuating loss", "loss", step)


def _all_rates(values: Numbers, holds: Callable[[Numbers], NDArray[np.bool_]]) -> bool:
    """Whether a condition holds of every ratio of successive values within the window."""
    if len(values) < WINDOW:
        return False
    last = values[-WINDOW:]
    return bool(holds(last[1:] / last[:-1]).all())
