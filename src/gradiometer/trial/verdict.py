"""The verdict: what treated runs show beside untreated ones of the same seeds.

Cured is a strong word, and needs all of it: what ailed the control is not found any more, nor anything else that stops a
training, and the loss at the end is better than the control's beyond noise. A treatment that lowers the training's loss
and harms what the training evaluates on held-out data is no cure.

Losses are compared as the logarithm of their ratio, paired: two runs of one seed see the same batches. Over several seeds
the interval is Student's over the pairs; with one seed it is Student's over blocks of the last fifth of the run, which
knows the noise of batches and nothing of that of seeds, and so never ends a race.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from scipy import special

from gradiometer.trial.result import Ending, Interval, Trial, Verdict, Word

CONFIDENCE: Final = 0.95
TAIL_SHARE: Final = 0.2
"""The end of a run is its last fifth, as in `gradiometer.record.ledger.Learning`."""
LEAST_TAIL: Final = 3
"""Bins of the curve that make an end at least."""
BLOCKS: Final = 4
"""Parts of the end whose ratios are taken as independent where there is one seed (ours)."""
HALF: Final = 0.5
"""A loss that is half of what it was, and half of the control's, leaves no doubt that something is learned (ours)."""
THROWN: Final = 1.5
"""A loss that ends this many times above its start was thrown there (ours)."""
LEAST_LOSS: Final = 1e-12
"""Losses are not told apart below this: a training that is over."""
LEAST_RATIO: Final = 1e-3
"""What an interval of ratios that reaches to zero is said to begin at."""
HIGHER_IS_BETTER: Final = ("acc", "f1", "auc", "score", "r2", "reward", "return", "iou", "dice", "precision", "recall", "bleu")
LOWER_IS_BETTER: Final = ("loss", "err", "mse", "mae", "rmse", "perplexity", "ppl", "nll", "distance", "cost")
"""Parts of names of metrics that say which way is better; of any other metric nothing is judged."""


# ---- one run -----------------------------------------------------------------------------------------------------------


def end_of(trial: Trial, steps: int) -> tuple[float, ...]:
    """The bins of the loss curve that are its last fifth at a step; empty where it is not known or no number by then."""
    whole = trial.curve[: max(1, steps // trial.bin_steps)]
    if not whole or not all(math.isfinite(loss) for loss in whole[-LEAST_TAIL:]):
        return ()
    tail = whole[-max(LEAST_TAIL, round(TAIL_SHARE * len(whole))) :]
    return tuple(loss for loss in tail if math.isfinite(loss))


def level(trial: Trial, steps: int) -> float:
    """The loss of a run at a step; infinite where it is no number any more, or the run did not get there."""
    tail = end_of(trial, steps)
    return statistics.median(tail) if tail and trial.ran else math.inf


def start(trial: Trial) -> float:
    """The loss at the start; infinite where it is no number."""
    return trial.curve[0] if trial.curve and math.isfinite(trial.curve[0]) else math.inf


def control_level(control: Trial, treated: Trial, steps: int) -> float:
    """The loss of a control; where it was thrown far above its start, that of its start, or of the treated run's.

    Such a control has learned nothing; how far it was thrown says nothing, and would drown the differences that do.
    """
    end, began = level(control, steps), start(control)
    if math.isfinite(end) and not end > THROWN * began > 0.0:
        return end
    return began if math.isfinite(began) else start(treated)


def beyond_doubt(control: Trial, treated: Trial, steps: int) -> bool:
    """Whether one pair of runs leaves no doubt: nothing ill, better beyond noise, and half of the way gone."""
    mine, theirs = level(treated, steps), control_level(control, treated, steps)
    halved = mine <= HALF * min(theirs, start(control)) if theirs > 0.0 else treated.learned
    return treated.ran and not treated.errors and not treated.several and halved and against(control, treated, steps).below


# ---- pairs -------------------------------------------------------------------------------------------------------------


def against(control: Trial, treated: Trial, steps: int) -> Interval:
    """How one run differs from its control: log ratio of the losses at a step, with the interval of the noise within them."""
    if control.several or treated.several:
        return Interval(math.nan, math.nan, math.nan, 0)
    mine = level(treated, steps)
    if not math.isfinite(mine):
        return Interval(math.inf, math.inf, math.inf, 1)
    ours = np.array(end_of(treated, steps))
    theirs = np.array(end_of(control, steps))
    cap = control_level(control, treated, steps)
    if not math.isfinite(cap):
        return Interval(math.nan, math.nan, math.nan, 0)
    if theirs.size == ours.size and level(control, steps) == cap:
        differences = [_difference(float(a), float(b), start(control)) for a, b in zip(ours, theirs, strict=True)]
    else:  # thrown above its start, or no number: its start stands for it
        differences = [_difference(float(a), cap, cap) for a in ours]
    parts = [float(np.mean(part)) for part in np.array_split(np.array(differences), min(BLOCKS, len(differences)))]
    found = interval(parts)
    return Interval(_difference(mine, cap, start(control)), found.low, found.high, 1)


def over_seeds(controls: Sequence[Trial], treated: Sequence[Trial], steps: int) -> Interval:
    """The same over all seeds that have both runs."""
    pairs = paired(controls, treated)
    if len(pairs) == 1:
        return against(*pairs[0], steps)
    values = [against(control, trial, steps).middle for control, trial in pairs]
    if not values or any(math.isnan(v) for v in values):
        return Interval(math.nan, math.nan, math.nan, 0)
    if math.inf in values:  # one of them is no number any more
        return Interval(math.inf, math.inf, math.inf, len(values))
    found = interval(values)
    if max(values) < 0.0 and not found.below:
        # losses of 0.1 and of 0.9 differ by a factor, and are both far from 2.3: then the ratios themselves are compared
        plain = interval([math.exp(v) for v in values])
        if plain.high < 1.0:
            return Interval(math.log(plain.middle), math.log(max(plain.low, LEAST_RATIO)), math.log(plain.high), plain.pairs)
    return found


def paired(controls: Sequence[Trial], treated: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Control and treated run of each seed that has both."""
    of_seed = {control.seed: control for control in controls}
    return [(of_seed[trial.seed], trial) for trial in treated if trial.seed in of_seed]


def interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with Student's interval; without one where there is a single value."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Interval(middle, -math.inf, math.inf, len(values))
    half = float(special.stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half, len(values))


def _difference(mine: float, theirs: float, unit: float) -> float:
    """Log of the ratio of two losses; of losses that are not above zero their difference in units of the start's size."""
    if mine >= 0.0 and theirs > 0.0:
        return math.log(max(mine, LEAST_LOSS) / max(theirs, LEAST_LOSS))
    scale = max(abs(unit) if math.isfinite(unit) else 0.0, abs(theirs), LEAST_LOSS)
    return (mine - theirs) / scale


# ---- the verdict -------------------------------------------------------------------------------------------------------


def judge(controls: Sequence[Trial], treated: Sequence[Trial], steps: int) -> Verdict:
    """What the runs of one treatment show.

    Args:
        controls: untreated runs, at least one that ran.
        treated: runs of the treatment at those seeds, all as long.
        steps: at which losses are compared: those that all of them have.
    """
    bad = next((trial for trial in treated if trial.ending in (Ending.FAILED, Ending.REFUSED)), None)
    pairs = paired(controls, [trial for trial in treated if trial.ran])
    if bad is not None or not pairs:
        reason = bad.trouble if bad is not None else "It was not run."
        return Verdict(Word.FAILED, reason, Interval(math.nan, math.nan, math.nan, 0), len(pairs), steps)
    found = over_seeds(controls, [trial for _, trial in pairs], steps)
    roots = {rule for control, _ in pairs for rule in control.roots}
    ill = {rule for control, _ in pairs for rule in control.errors}
    errors = dict.fromkeys(rule for _, trial in pairs for rule in trial.errors)
    left, new = tuple(r for r in errors if r in ill), tuple(r for r in errors if r not in ill)
    harmed = _harmed(pairs)
    ends = [level(trial, steps) for _, trial in pairs]
    theirs = [control_level(control, trial, steps) for control, trial in pairs]
    gone = not roots.intersection(errors)
    if harmed or (found.above and not left):
        word = Word.HARMFUL
    elif found.above:
        word = Word.NO_HELP
    elif found.below and not errors:
        word = Word.CURED
    elif found.below:
        word = Word.HELPS
    else:
        word = Word.NO_HELP
    # the first control runs alone, those of the other seeds beside what they are compared with
    timed = [(c, t) for c, t in pairs if c.seed] or pairs
    costs = [t.seconds_per_step / c.seconds_per_step for c, t in timed if c.seconds_per_step > 0.0]
    verdict = Verdict(
        word=word,
        sentence="",
        loss=found,
        seeds=len(pairs),
        steps=steps,
        loss_end=statistics.median(ends),
        control_end=statistics.median(theirs),
        gone=gone,
        left=left,
        new=new,
        harmed=tuple(harmed),
        cost=statistics.median(costs) if costs else math.nan,
    )
    return _worded(verdict)


def _harmed(pairs: Sequence[tuple[Trial, Trial]]) -> list[str]:
    """Metrics that are worse in the treated runs: beyond noise over seeds; with one seed, by more than a tenth (ours)."""
    found: list[str] = []
    names = dict.fromkeys(name for _, trial in pairs for name in trial.metrics)
    for name in names:
        better = direction(name)
        both = [(c.metrics[name], t.metrics[name]) for c, t in pairs if name in c.metrics and name in t.metrics]
        both = [(a, b) for a, b in both if math.isfinite(a)]
        if not better or not both:
            continue
        worse = [-better * (b - a) / max(abs(a), LEAST_LOSS) if math.isfinite(b) else math.inf for a, b in both]
        if math.inf in worse or (interval(worse).above if len(worse) > 1 else worse[0] > 0.1):
            found.append(name)
    return found


def direction(metric: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where its name does not tell."""
    name = metric.lower()
    if any(part in name for part in LOWER_IS_BETTER):
        return -1
    return int(any(part in name for part in HIGHER_IS_BETTER))


def _worded(verdict: Verdict) -> Verdict:
    found = verdict.loss
    if math.isnan(found.middle):
        loss = "losses that take turns cannot be compared"
    elif math.isinf(found.middle):
        loss = "its loss is no number any more"
    else:
        loss = f"loss {verdict.loss_end:.3g} against {verdict.control_end:.3g}"
        seeds = f"{verdict.seeds} seeds" if verdict.seeds > 1 else "one seed"
        if verdict.loss_end >= 0.0 and verdict.control_end > 0.0 and math.isfinite(found.low):
            loss += f" (95 % interval of the ratio {_ratio(found.low)} to {_ratio(found.high)}, {seeds})"
        else:
            loss += f" ({seeds})"
    parts = [loss]
    if verdict.left:
        parts.append(f"{_list(verdict.left)} {'is' if len(verdict.left) == 1 else 'are'} still found")
    if verdict.new:
        parts.append(f"{_list(verdict.new)} {'has' if len(verdict.new) == 1 else 'have'} come instead")
    if not verdict.left and not verdict.new:
        parts.append("nothing ill is found any more")
    if verdict.harmed:
        parts.append(f"but {_list(verdict.harmed)} {'is' if len(verdict.harmed) == 1 else 'are'} worse than without it")
    sentence = "; ".join(parts)
    return replace(verdict, sentence=f"{sentence[0].upper()}{sentence[1:]}.")


def _ratio(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.2g}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
