"""DeepDiagnosis' symptoms (Wardat, Dantas Cruz, Le and Rajan, ICSE 2022).

The paper is "DeepDiagnosis: Automatically Diagnosing Faults and Recommending Actionable Fixes in Deep Learning Programs".
Formulas and constants: the paper's section 3, and ``callback/callbacks.py`` (class ``mapFaluireToFix``) of the repository
DeepDiagnosis/ICSE2022. Written anew from the formulas; the tool itself is a patch of Keras 2.2.

How the rules meet numbers other than those they were made for:

* The callback runs at the end of every epoch; here a twentieth of the steps stands for an epoch.
* It looks at the first batch of the data every time; here it is the batch of the step, so that "unchanged" is harder to
  reach for outputs (their input changes) and as hard for weights and gradients.
* Accuracies are those of training, where the script's loss shows one.
* Left out: the range of the last layer's output against the labels, which needs the labels and takes every classifier
  without a softmax layer for faulty (in PyTorch the loss contains it). So is the advice that follows a symptom.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from peers.record import Found, Numbers, Training, Verdict, epoch_ends, epoch_means, verdict

VANISHING_SIZE = 1e-7
DEAD_SHARE = 0.7
SATURATED_SHARE = 0.5  # of the inputs beyond +-5: counted where the numbers are collected
UNCHANGED_EPOCHS = 5
UNCHANGED_ACCURACY_EPOCHS = 20


def vanishing(gradient_size: float) -> bool:
    """Whether the mean absolute gradient of a fully connected layer is next to nothing."""
    return gradient_size < VANISHING_SIZE


def dead(closed_share: float) -> bool:
    """Whether most outputs of a ReLU are not above zero."""
    return closed_share >= DEAD_SHARE


def saturated(far_share: float) -> bool:
    """Whether most inputs of a tanh or a sigmoid are far out."""
    return far_share > SATURATED_SHARE


def numerical(mean: float) -> bool:
    """Whether the mean of a tensor is not finite, or exactly zero."""
    return not np.isfinite(mean) or mean == 0


def unchanged(values: Numbers, epochs: int = UNCHANGED_EPOCHS) -> bool:
    """Whether the last values are all the same."""
    last = values[-epochs:]
    return len(last) == epochs and bool(last.mean() == last.max())


def judge(training: Training) -> Verdict:
    """Hold the rules against a training. The first epoch with a symptom is the last: the tool stops there."""
    if not training.steps:
        return verdict(())
    ends = epoch_ends(training.steps)
    accuracy = epoch_means(training.accuracy)
    loss = epoch_means(training.loss)
    for epoch in range(len(ends)):
        found = list(_at(training, epoch, ends, loss, accuracy))
        if found:
            return verdict(found)
    return verdict(())


def _at(training: Training, epoch: int, ends: range, loss: Numbers, accuracy: Numbers) -> Iterator[Found]:
    step, count = ends[epoch], epoch + 1
    looks = np.array(ends[:count])
    every_fifth = count % UNCHANGED_EPOCHS == 0
    for layer, means in training.outputs.items():
        # a layer that did not run in the step has no output that could be judged
        if not np.isnan(means[step]) or _ran(training, layer, step):
            if numerical(means[step]):
                yield Found("numerical error in outputs", layer, step)
            if every_fifth and layer != list(training.outputs)[-1] and unchanged(means[looks]):
                yield Found("unchanged outputs", layer, step)
    if epoch == len(ends) - 1:
        yield from (Found("dead node", site, step) for site, share in training.closed.items() if dead(share[step]))
    if every_fifth:
        far = training.far_inputs.items()
        yield from (Found("saturated activation", site, step) for site, share in far if saturated(share[step]))
    if not np.isfinite(training.loss[step]):
        yield Found("invalid loss", "loss", step)
    elif every_fifth and unchanged(loss[:count]):
        yield Found("loss not decreasing", "loss", step)
    if np.isfinite(accuracy[epoch]):
        if accuracy[epoch] == 0:
            yield Found("invalid accuracy", "accuracy", step)
        if count % UNCHANGED_ACCURACY_EPOCHS == 0 and unchanged(accuracy[:count], UNCHANGED_ACCURACY_EPOCHS):
            yield Found("accuracy not increasing", "accuracy", step)
    for column, kernel in enumerate(training.kernels):
        if not training.dense[column]:
            continue
        gradient, size = training.gradient_mean[:, column], training.gradient_size[step, column]
        if not training.seen[step, column]:
            continue
        if numerical(gradient[step]):
            yield Found("numerical error in gradients", kernel, step)
        elif vanishing(size):
            yield Found("vanishing gradient", kernel, step)
        if numerical(training.weight_mean[step, column]):
            yield Found("numerical error in weights", kernel, step)
        if every_fifth and unchanged(gradient[looks]):
            yield Found("unchanged gradients", kernel, step)
        if every_fifth and unchanged(training.weight_mean[looks, column]):
            yield Found("unchanged weights", kernel, step)


def _ran(training: Training, layer: str, step: int) -> bool:
    """Whether a layer ran in a step: a mean of NaN may be one of a layer that made NaN."""
    return training.ran[layer][step] if layer in training.ran else False
