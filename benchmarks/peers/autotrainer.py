"""AUTOTRAINER's rules (Zhang et al., "AUTOTRAINER: An Automatic DNN Training Problem Detection and Repair System", ICSE 2021).

Formulas and constants: the paper's section 3, and ``AutoTrainer/utils/utils.py`` and ``monitor.py`` of the repository
shiningrain/AUTOTRAINER (last state, 2023). Written anew from the formulas; the tool itself needs TensorFlow 2.3.

How the rules meet numbers other than those they were made for:

* AUTOTRAINER looks every three epochs. A script need not have epochs, and they cannot be seen from outside: every
  twentieth of the steps is one look, and the accuracies of the steps before it are averaged as those of one epoch.
* It looks at one fixed batch; here it is the batch of the step.
* A gradient problem is *reported* only while the training counts as not converged: the best accuracy so far is below
  0.7, or no epoch has gained 0.01. That gate is kept where the script's loss shows an accuracy. There is no validation
  accuracy to be had, so that of training decides alone. The tool cannot watch a training without an accuracy; there the
  gradient rules are reported without the gate, and oscillation and slow convergence are left out.
* What the gate holds back is a warning here, so that the rules can be judged without it.
* Left out: output activation, loss function and abnormal layer outputs, which compare names of Keras layers and losses
  (a PyTorch classifier has no softmax layer), and a negative loss.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from peers.record import EPOCHS, Found, Numbers, Training, Verdict, epoch_ends, epoch_means, verdict

VANISHING_RATIO = 1e-3  # beta_1
VANISHING_NORM = 1e-4  # beta_2
EXPLODING_RATIO = 70.0  # beta_3
DYING_SHARE = 0.7  # gamma
OSCILLATION_HEIGHT = 0.03  # zeta
OSCILLATION_RATE = 0.2  # eta
SLOW_GAIN = 0.01  # delta
CONVERGED_ACCURACY = 0.7  # Theta
LARGE_LOSS = 1e3
JUDGEMENT_POINT = 0.3
"""Share of the epochs before which accuracies are not judged."""


def vanishing(first: float, last: float) -> bool:
    """Whether the gradient of the first kernel is far below that of the last one, and small."""
    return _ratio(first, last) < VANISHING_RATIO and first < VANISHING_NORM


def exploding(first: float, last: float) -> bool:
    """Whether the gradient of the first kernel is far above that of the last one."""
    return _ratio(first, last) > EXPLODING_RATIO


def dying(zero_share: float) -> bool:
    """Whether most gradient entries are exactly zero."""
    return zero_share >= DYING_SHARE


def oscillating(accuracy: Numbers) -> bool:
    """Whether local maxima and minima of the accuracy, paired in order, differ often enough."""
    middle, before, after = accuracy[1:-1], accuracy[:-2], accuracy[2:]
    tops = middle[(middle >= before) & (middle >= after)]
    bottoms = middle[(middle <= before) & (middle <= after)]
    pairs = min(len(tops), len(bottoms))
    high = np.count_nonzero(tops[:pairs] - bottoms[:pairs] >= OSCILLATION_HEIGHT)
    return len(accuracy) > 2 and high >= OSCILLATION_RATE * len(accuracy)


def unconverged(accuracy: Numbers) -> bool:
    """Whether no epoch has reached the accuracy a converged training has."""
    return bool(accuracy.max(initial=0.0) < CONVERGED_ACCURACY)


def slow(accuracy: Numbers) -> bool:
    """Whether no epoch has gained more than a little on the one before."""
    return bool(np.diff(accuracy).max(initial=0.0) < SLOW_GAIN)


def judge(training: Training) -> Verdict:
    """Hold the rules against a training. The first problem is the last: the tool stops there to repair it."""
    notes: list[str] = []
    if not training.kernels:
        return verdict((), notes=["no weight matrix"])
    accuracies = epoch_means(training.accuracy)
    known = bool(np.isfinite(accuracies).all())
    if not known:
        notes.append("no accuracy: gradient rules without their gate")
    seen: list[Found] = []
    gate = not known
    for epoch, step in enumerate(epoch_ends(training.steps)):
        loss = training.loss[: step + 1]
        loss_gone = bool((~np.isfinite(loss)).any() or (loss >= LARGE_LOSS).any())
        if not training.finite[: step + 1].all() and loss_gone:
            return verdict([Found("explode (not finite)", "weights or gradients", step)], seen, notes)
        seen += _gradient_problems(training, step)
        if not known:
            if seen:
                return verdict(_first_by_priority(seen, step), (), notes)
            continue
        past = accuracies[: epoch + 1]
        judged = epoch + 1 >= JUDGEMENT_POINT * EPOCHS and not loss_gone
        gate = gate or (judged and (unconverged(past) or slow(past)))
        if gate and seen:
            return verdict(_first_by_priority(seen, step), (), notes)
        if not judged:
            continue
        if unconverged(past) and slow(past):
            return verdict([Found("slow convergence", "accuracy", step)], seen, notes)
        if oscillating(past):
            return verdict([Found("oscillating accuracy", "accuracy", step)], seen, notes)
    return verdict((), seen, notes)


def _gradient_problems(training: Training, step: int) -> list[Found]:
    """The three rules at a step; where it has no gradient, none."""
    norms = training.gradient_norm[step]
    known = np.flatnonzero(training.seen[step])
    if not len(known) or not np.isfinite(norms[known]).all():
        return []
    first, last = float(norms[known[0]]), float(norms[known[-1]])
    found: list[Found] = []
    if dying(training.zero_share[step]):
        found.append(Found("dying ReLU", "all gradients", step))
    if exploding(first, last):
        found.append(Found("explode", training.kernels[known[0]], step))
    if vanishing(first, last):
        found.append(Found("vanish", training.kernels[known[0]], step))
    return found


def _first_by_priority(seen: list[Found], step: int) -> list[Found]:
    """The one problem that is reported, at the step of the report: dying before exploding before vanishing."""
    order = ("dying ReLU", "explode", "vanish")
    return [replace(min(seen, key=lambda f: order.index(f.rule)), step=step)]


def _ratio(first: float, last: float) -> float:
    """First over last; as in numpy, 0/0 is no number, which no rule fires at."""
    if last:
        return first / last
    return float("inf") if first else float("nan")
