"""Trace: the numbers of a run, steps x sites x signals. The only input of rules, figures and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from gradiometer.record.depth import falls_towards_input, falls_towards_output
from gradiometer.record.frames import Flag, Group
from gradiometer.record.ledger import LEARNED_FALL as LEARNED_FALL
from gradiometer.record.ledger import BoolArray, FloatArray, IntArray, Learning, Ledger
from gradiometer.record.losses import Losses, losses_of
from gradiometer.types import Place, Role, Site

PATIENCE: Final = 200
"""Steps before which a loss that has not fallen yet is no failure of a training that goes on. Well runs of the calibration
half of the zoo have fallen clearly by then."""

TASK_JUMP: Final = 10.0
"""A loss that is this many times what it was, from one step to the next, after steps of ordinary length."""
TASK_MEMORY: Final = 50
"""Losses before a jump that it must stand out from."""
NEAR_STEPS: Final = 20
"""Steps around a jump that belong to it."""
LONG_STEP: Final = -1.0
"""log10 of update / weight: a hundred times the usual thousandth (CS231n notes)."""
HALF_WAY: Final = 0.5
"""Share of its start that a loss must have lost for what is ill with a training not to matter much (ours)."""
RELEARNED: Final = 0.5
"""The loss has halved since the task changed."""

SETTLE: Final = 5
"""Steps after which branches that start at zero carry a gradient (a few steps open them)."""

LOST_DECADES: Final = 3.0
"""Decades along depth beyond which a network cannot train evenly: what the rules about depth warn of."""
BLIND_SHARE: Final = 1e-4
"""Share of a signal that varies over the batch below which it tells nothing of the input."""
UNITS_SHARE: Final = 0.75
"""Share of dead or saturated units with which an activation lets little through."""
SMALL_OUTPUT: Final = -0.3
"""log10 of the rms of logits (a half) below which all classes are about as likely: ln K is then missed by a tenth at most."""
ORDINARY: Final = 2.0
"""A loss within this factor of ln K is a plain one."""
EXPLAINED: Final = 0.1
"""Ours: an output that varies by less than a tenth of what is left of the loss explains next to nothing."""
STANDS: Final = 0.1
"""Ours: a loss that has fallen by less than a tenth of itself over the last two thirds of the run stands still."""
COIN: Final = 0.02
"""How near to ln 2 the loss of a single yes or no that is guessed stays, and how little it varies."""
STANDSTILL: Final = -12.0
"""log10 of update / weight that stands for an update of exactly zero."""


@dataclass(frozen=True)
class Trace:
    """Immutable numbers of one run.

    Attributes:
        sites: N sites, outputs in order of execution, then parameters by depth, then places of attention.
        steps: shape (S,), the sampled steps, increasing.
        values: signal name -> array (S, N), NaN where not recorded.
        nonfinite: group -> bool array (S, N): that row held a NaN or an infinity.
        recorded: group -> bool array (S, N): there is such a row.
        ledger: every-step numbers.
        ranks: how many ranks were merged.
        notes: sentences about what could not be measured, from the probe.
        events: what the probe logged, in order (dicts with at least ``event``).
        marks: flag -> bool array (S, N): rows that carry it; see `flagged`.
        running: whether the training may still be going on: what has not happened yet is then no failure.
    """

    sites: tuple[Site, ...]
    steps: IntArray
    values: Mapping[str, FloatArray]
    nonfinite: Mapping[Group, BoolArray]
    recorded: Mapping[Group, BoolArray]
    ledger: Ledger
    ranks: int = 1
    notes: tuple[str, ...] = ()
    events: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    marks: Mapping[Flag, BoolArray] = field(default_factory=dict[Flag, BoolArray], repr=False)
    running: bool = False

    # ---- which sites -------------------------------------------------------------------------------------------

    @cached_property
    def outputs(self) -> IntArray:
        """Indices of output sites, in order of execution."""
        return np.array([i for i, s in enumerate(self.sites) if s.place is Place.OUTPUT], dtype=np.int64)

    @cached_property
    def chains(self) -> tuple[IntArray, ...]:
        """Indices of output sites for each connected network, in order of execution; the longest first.

        What rises or falls along depth is judged within a chain: an actor and a critic, or two encoders of one loss, may
        have gradients of any relative size and be well.
        """
        numbers = sorted({self.sites[i].chain for i in self.outputs})
        chains = [np.array([i for i in self.outputs if self.sites[i].chain == n], dtype=np.int64) for n in numbers]
        return tuple(sorted(chains, key=lambda c: -c.size))

    @cached_property
    def parameters(self) -> IntArray:
        """Indices of parameter sites, by depth."""
        return np.array([i for i, s in enumerate(self.sites) if s.place is Place.PARAMETER], dtype=np.int64)

    @cached_property
    def attentions(self) -> IntArray:
        """Indices of sites where attention weights are formed."""
        return np.array([i for i, s in enumerate(self.sites) if s.place is Place.ATTENTION], dtype=np.int64)

    @cached_property
    def unrolled(self) -> tuple[IntArray, ...]:
        """Output sites of each module that is called more than twice within a forward pass, in order of its calls.

        A cell unrolled in time; a module that is shared over depth looks the same.
        """
        calls: dict[tuple[str, str], list[int]] = {}
        for i in self.outputs:
            site = self.sites[int(i)]
            calls.setdefault((site.model, site.module), []).append(int(i))
        several = (sorted(sites, key=lambda i: self.sites[i].call) for key, sites in calls.items() if key[1])
        return tuple(np.array(s, dtype=np.int64) for s in several if len({self.sites[i].call for i in s}) > 2)

    @cached_property
    def optimizers(self) -> tuple[Mapping[str, Any], ...]:
        """What each optimizer is, in order of first step: ``kind`` (class name) and ``options`` of its first group."""
        return tuple(e for e in self.events if e.get("event") == "optimizer")

    def flagged(self, flag: Flag) -> BoolArray:
        """Rows of parameters (`Flag.NO_GRADIENT`, `Flag.UNOWNED`) or outputs (`Flag.HAS_GRAPH`) with a flag, shape (S, N)."""
        nowhere = np.zeros((self.steps.size, len(self.sites)), np.bool_)
        return self.marks.get(flag, nowhere)

    def with_role(self, *roles: Role) -> IntArray:
        """Indices of output sites with one of these roles, in order of execution."""
        return np.array([i for i in self.outputs if self.sites[i].role in roles], dtype=np.int64)

    def names(self, indices: Sequence[int] | IntArray) -> tuple[str, ...]:
        """Names of sites by index."""
        return tuple(self.sites[int(i)].name for i in indices)

    # ---- derived signals, shape (S, N) ---------------------------------------------------------------------------

    @cached_property
    def log10_signal(self) -> FloatArray:
        """log10 of the root mean square of each output; -inf for all zero, NaN where unknown or non-finite."""
        return _half_log10(self.values["output_sumsq"] / self.values["output_count"])

    @cached_property
    def log10_gradient(self) -> FloatArray:
        """log10 of the L2 norm of d loss / d output over the batch; -inf for all zero, NaN where unknown.

        The L2 norm, not the mean square: for fan-in scaled weights one layer multiplies it by sqrt(chi) whatever the
        widths on its two sides (theory: |d^l|^2 = chi |d^{l+1}|^2 summed over units), so layers of different width compare.
        """
        return _half_log10(self.values["gradient_sumsq"])

    @cached_property
    def log10_weight_gradient(self) -> FloatArray:
        """log10 of the root mean square of a parameter's gradient; -inf for exactly zero, NaN where unknown."""
        return _half_log10(self.values["weight_gradient_sumsq"] / self.values["weight_count"])

    @cached_property
    def log10_update_ratio(self) -> FloatArray:
        """log10 of |update| / |weight| of a parameter; NaN where unknown or the weight is zero."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = self.values["update_sumsq"] / self.values["weight_sumsq"]
        return _half_log10(np.where(np.isfinite(ratio), ratio, np.nan))

    @cached_property
    def varying_share(self) -> FloatArray:
        """Share of an output's second moment that varies over the batch, 0..1; NaN where unknown."""
        return _ratio(self.values["output_varying"], self.values["output_sumsq"])

    @cached_property
    def saturated_share(self) -> FloatArray:
        """Share of an activation's elements in its flat part; NaN where the activation is not bounded."""
        return _ratio(self.values["output_saturated"], self.values["output_count"])

    @cached_property
    def dead_share(self) -> FloatArray:
        """Share of an activation's units that were zero on all recent examples; NaN where not applicable."""
        units = np.array([max(s.units, 1) for s in self.sites], dtype=np.float64)
        return self.values["output_dead"] / units

    @cached_property
    def slope(self) -> FloatArray:
        """Root mean square of slope / steepest slope of an activation, 0..1; NaN where unknown."""
        share = _ratio(self.values["output_slope2"], self.values["output_count"])
        return np.sqrt(share)

    @cached_property
    def weights(self) -> IntArray:
        """Indices of trainable matrices and kernels; of all trainable parameters where there is none of these.

        A vector that starts at zero (a bias) moves by any factor of its size and is well.
        """
        trained = [int(i) for i in self.parameters if self.sites[i].trainable]
        # nor does a table of one number a row, which is a bias
        tables = {(self.sites[int(i)].model, self.sites[int(i)].module) for i in self.with_role(Role.EMBEDDING)}
        single = [i for i in trained if self.sites[i].shape[1:] == (1,)]
        biases = {i for i in single if (self.sites[i].model, self.sites[i].module) in tables}
        matrices = [i for i in trained if self.sites[i].kind not in ("0-d", "1-d") and i not in biases]
        return np.array(matrices or trained, dtype=np.int64)

    @cached_property
    def typical_step(self) -> FloatArray:
        """log10 of update / weight of the middle one of `weights` at each look, (S,); -inf if most stand still."""
        return _middle(self.log10_update_ratio[:, self.weights], 0.5)

    @cached_property
    def longest_step(self) -> FloatArray:
        """log10 of update / weight of that one of `weights` which moves most at each look, (S,)."""
        return _middle(self.log10_update_ratio[:, self.weights], 1.0)

    @cached_property
    def pace(self) -> FloatArray:
        """`longest_step` at every step of the ledger, (T,), drawn between the looks; empty where no look saw it."""
        known = ~np.isnan(self.longest_step)
        if not known.any() or not self.ledger.step.size:
            return np.empty(0)
        return np.interp(self.ledger.step, self.steps[known], np.maximum(self.longest_step[known], STANDSTILL))

    @cached_property
    def travel(self) -> float:
        """Sum of update / weight over all steps: how far a weight can have moved at most, in its own size; NaN if unknown."""
        if not self.pace.size:
            return float("nan")
        with np.errstate(over="ignore"):
            return float(np.sum(10.0**self.pace * np.diff(self.ledger.step, prepend=-1)))

    @cached_property
    def warming_up(self) -> bool:
        """Whether the learning rate is still on its way up at the end of what was seen."""
        rate = self.ledger["learning_rate"] if self.ledger.step.size else np.empty(0)
        rate = rate[np.isfinite(rate)]
        return rate.size > 1 and bool(rate[-1] >= 0.999 * rate.max() and rate[rate.size // 2] < 0.98 * rate[-1])

    @cached_property
    def sound_depth(self) -> BoolArray:
        """Looks at which signal and gradient pass through every network, (S,).

        They are neither lost nor multiplied along depth, something of the input is left at the end, and most activations
        are neither dead nor saturated. What is not known counts as sound.
        """
        sound = np.ones(self.steps.shape, np.bool_)
        for chain in self.chains:
            inside = [i for i in chain if self.sites[int(i)].role is not Role.EMBEDDING]  # a table has the size it was given
            for y in (self.log10_gradient[:, chain], self.log10_signal[:, inside]):
                known = np.where(np.isposinf(y), np.nan, y)
                sound &= ~(falls_towards_input(known) >= LOST_DECADES)
                sound &= ~(falls_towards_output(np.where(np.isfinite(y), y, np.nan)) >= LOST_DECADES)
            share = self.varying_share[:, chain]
            far = _middle(share[:, -max(2, chain.size // 10) :], 1.0)
            sound &= ~((far < BLIND_SHARE) & (_middle(share, 1.0) > 10.0 * BLIND_SHARE))
            for units in (self.dead_share[:, chain], self.saturated_share[:, chain]):
                sound &= ~(_middle(units, 0.5) >= UNITS_SHARE)
        return sound

    @cached_property
    def overshoot(self) -> FloatArray:
        """Slope along a step after it against before it, at the looks, (S,); NaN where unknown.

        1: the slope has not changed, the step was short. 0: it ended at the bottom. Below 0: beyond it. Below -1: the loss
        of a bowl would have risen. Noise of mini-batches draws it towards 0. Recorded at the step after a look.
        """
        if not self.ledger.step.size:
            return np.full(self.steps.shape, np.nan)
        at = np.searchsorted(self.ledger.step, self.steps + 1)
        inside = at < self.ledger.step.size
        at = np.minimum(at, self.ledger.step.size - 1)
        return np.where(inside & (self.ledger.step[at] == self.steps + 1), self.ledger["overshoot"][at], np.nan)

    @cached_property
    def zero_gradient_share(self) -> FloatArray:
        """Share of the elements of an output's gradient that are exactly zero; NaN where unknown."""
        return _ratio(self.values["gradient_zeros"], self.values["gradient_count"])

    @cached_property
    def tiny_gradient_share(self) -> FloatArray:
        """Share of the non-zero elements of an output's gradient below the smallest normal number of their type."""
        count = self.values["gradient_count"] - self.values["gradient_zeros"]
        return _ratio(self.values["gradient_tiny"], count)

    @cached_property
    def unmoved_share(self) -> FloatArray:
        """Share of a parameter's elements with a gradient that a step did not move; NaN where unknown."""
        count = self.values["weight_count"] - self.values["weight_gradient_zeros"]
        return _ratio(self.values["update_zeros"], count)

    @cached_property
    def unit_difference(self) -> FloatArray:
        """Share of a matrix's second moment in which its units (rows) differ: 0 when all are the same; NaN for a vector."""
        return _ratio(self.values["weight_between"], self.values["weight_sumsq"])

    @cached_property
    def moment_rms(self) -> FloatArray:
        """Root mean square of gradient / sqrt(second moment) of a parameter under an Adam-like optimizer; NaN without one.

        RMS_t of Wortsman et al. 2023, about 1 while the second moment is up to date.
        """
        return np.sqrt(_ratio(self.values["moment_ratio"], self.values["weight_count"]))

    @cached_property
    def gradient_correlation(self) -> FloatArray:
        """How much of the similarity of examples' gradients at the last layer is left at an output: 1 all, 0 none.

        The regression of the cosines of pairs of examples' gradients here on those at the last layer (Balduzzi et al. 2017
        look at the correlation of input gradients; this is its form for a batch).
        """
        return _ratio(self.values["gradient_kernel_cross"], self.values["gradient_kernel_head"])

    @cached_property
    def time_decades(self) -> FloatArray:
        """log10 of ||d h_T / d h_(T-lag)|| for a recurrent layer, shape (S, N, 9), lag = 0 to T in eighths; 0 at no lag."""
        lags = np.stack([self.values[f"time_lag_{k}"] for k in range(9)], axis=-1)
        y = _half_log10(lags)
        with np.errstate(invalid="ignore"):
            return y - y[..., :1]

    @cached_property
    def attention_spread(self) -> FloatArray:
        """Mean entropy of attention rows as a share of the largest possible: 1 uniform, 0 one choice; NaN elsewhere."""
        return _ratio(self.values["attention_entropy"], self.values["attention_rows"])

    @cached_property
    def backward_gain(self) -> FloatArray:
        """log10 of what each output site multiplies the gradient by on its way to the site before it, (S, N)."""
        return self._step_along_depth(self.log10_gradient, backward=True)

    @cached_property
    def forward_gain(self) -> FloatArray:
        """log10 of what each output site multiplies the signal of the site before it by, (S, N)."""
        return self._step_along_depth(self.log10_signal, backward=False)

    def _step_along_depth(self, y: FloatArray, *, backward: bool) -> FloatArray:
        gain = np.full_like(y, np.nan)
        before, after = self.outputs[:-1], self.outputs[1:]
        with np.errstate(invalid="ignore"):
            step = y[:, before] - y[:, after]
        gain[:, after] = step if backward else -step
        gain[~np.isfinite(gain)] = np.nan
        return gain

    # ---- time ----------------------------------------------------------------------------------------------------

    def until(self, step: int) -> Trace:
        """The trace as it was when ``step`` (inclusive) had just been recorded: what a rule could have said by then."""
        looks, rows = self.steps <= step, self.ledger.step <= step
        ledger = Ledger(self.ledger.step[rows], self.ledger.flags[rows], {k: v[rows] for k, v in self.ledger.values.items()})
        return Trace(
            self.sites,
            self.steps[looks],
            {k: v[looks] for k, v in self.values.items()},
            {k: v[looks] for k, v in self.nonfinite.items()},
            {k: v[looks] for k, v in self.recorded.items()},
            ledger,
            self.ranks,
            self.notes,
            tuple(e for e in self.events if int(e.get("step", 0)) <= step),
            {k: v[looks] for k, v in self.marks.items()},
            self.running or step < self.steps_seen - 1,
        )

    @property
    def steps_seen(self) -> int:
        """Number of steps in the training as far as it was watched."""
        return int(self.ledger.step[-1]) + 1 if self.ledger.step.size else 0

    @cached_property
    def learning(self) -> Learning:
        """How the loss moved, over all optimizers."""
        return Learning.of(self.ledger)

    @cached_property
    def losses(self) -> tuple[Losses, ...]:
        """The losses of every step: one series, or one for each optimizer where several take turns (a GAN)."""
        return losses_of(self.ledger)

    @property
    def only_losses(self) -> Losses | None:
        """The losses, where they are one series; None where optimizers take turns, whose losses may rightly rise."""
        return self.losses[0] if len(self.losses) == 1 else None

    def span(self, held: BoolArray, known: BoolArray | None = None) -> Span | None:
        """Where a condition held long enough to be a finding.

        One look is never enough, nor is what is gone after the first `SETTLE` steps: branches that start at zero have no
        gradient at step 0 by design. A run too short to tell is judged on what it has, two looks at least.

        Args:
            held: shape (S,), the looks at which it held.
            known: shape (S,), the looks that could tell; None for all. Of two networks that are trained in turns, each
                is seen in its own looks only, and the others say nothing about it.
        """
        known = np.ones(held.shape, np.bool_) if known is None else known
        held = held & known
        if not held.any() or np.count_nonzero(known) < 2:
            return None
        settled = (self.steps >= SETTLE) & known
        counted = held & settled if settled.any() else held
        if np.count_nonzero(counted) < min(2, np.count_nonzero(settled) or np.count_nonzero(known)):
            return None
        looks = np.flatnonzero(held)
        told = held[known]
        tail = told[-max(3, told.size // 10) :]
        first, last = int(self.steps[looks[0]]), int(self.steps[looks[-1]])
        return Span(first, last, bool(np.mean(tail) > 0.5), looks)

    @cached_property
    def learned(self) -> bool:
        """Whether the loss fell clearly: by a fifth, beyond its noise, and not just to the chance level.

        A classifier that ignores its input settles at ln K (K classes) wherever its loss began, so a loss that ends
        there has learned nothing but the class frequencies. Of several losses taken in turns one is enough.
        """
        return any(losses.learning.clear for losses in self.losses) and not self.at_chance

    @property
    def classes(self) -> int:
        """Outputs of the last dense layer: the classes of a classifier; 0 where there is no such layer."""
        heads = self.with_role(Role.LINEAR)
        return self.sites[int(heads[-1])].units if heads.size else 0

    @cached_property
    def guessing(self) -> float:
        """The loss of a classifier that guesses: ln K, in the unit of this loss; NaN for fewer than two classes.

        A loss may be multiplied by anything. Where the outputs are small before the first step, every class is as likely
        as any other, and what the loss is then says what ln K is in its unit; a plain loss is near ln K by itself.
        """
        if self.classes < 2:
            return float("nan")
        plain, start = float(np.log(self.classes)), self.learning.start
        heads = self.with_role(Role.LINEAR)
        size = self.log10_signal[0, heads[-1]] if self.steps.size and self.steps[0] == 0 else np.nan
        of_its_own = not plain / ORDINARY <= start <= ORDINARY * plain
        return start if of_its_own and start > 0.0 and size < SMALL_OUTPUT else plain

    @cached_property
    def fall_from_guessing(self) -> float:
        """How far the loss has fallen from what guessing costs (ln K), where it began above that; else `Learning.fall`.

        Weights that are far too large make the loss of the start large too, and most of its fall is the way back from there.
        """
        if self.classes < 2 or len(self.losses) > 1 or not self.steps.size or self.steps[0] != 0:
            return self.learning.fall
        guess, start = float(np.log(self.classes)), self.learning.start
        size = 10.0 ** float(self.log10_signal[0, self.with_role(Role.LINEAR)[-1]])
        # what a cross entropy costs with logits of this size that know nothing: the gap to the largest of K normal numbers
        expected = float(np.hypot(guess, size * np.sqrt(2.0 * guess)))
        plain = expected / ORDINARY <= start <= ORDINARY * expected
        return 1.0 - self.learning.end / guess if plain and start > guess else self.learning.fall

    @cached_property
    def at_chance(self) -> bool:
        """Whether the loss ends at the chance level: between 0.9 and 1.5 ln K, K being the width of the last dense layer.

        Below chance a classifier has learned something; far above it the loss is of another kind. For one output that is a
        yes or a no the level is ln 2, and the loss must stand right there, as that of a regression may pass by.
        """
        classes = self.classes
        end, noise = self.learning.end, self.learning.noise
        if len(self.losses) > 1 or classes < 1:
            return False
        if classes == 1:
            return abs(end / float(np.log(2.0)) - 1.0) < COIN and noise < COIN * end
        losses = self.only_losses
        late = losses.blocks[-max(1, losses.blocks.size // 4) :] if losses is not None else np.empty(0)
        # the level of the last quarter, where single losses are noisy
        end = min(end, float(np.median(late))) if late.size else end
        return any(0.9 < end / level < 1.5 for level in (float(np.log(classes)), self.guessing))

    @cached_property
    def stalled(self) -> bool:
        """Whether the loss has not fallen clearly, or is no number any more. Of a loss that was not seen nothing is said.

        Nor is anything said of losses that play against each other, each with an optimizer of its own that takes turns:
        those of a GAN rightly do not fall.
        """
        broken = self.ledger.has(Flag.NONFINITE)[-3:]
        still = len(self.losses) == 1 and bool(np.isfinite(self.learning.fall)) and not self.learned
        return (still and not self.too_early and not self.relearned) or (broken.size > 0 and bool(broken.all()))

    @cached_property
    def knows_the_mean_only(self) -> bool:
        """Whether a regression has learned the mean of its targets, and stands there.

        Squared errors fall from mean^2 + variance to the variance of the targets by that alone, which may be most of the
        loss. What tells it: the share of the output that varies over the batch is then far below end / start of the loss; of
        a network that explains its targets it is far above (both are shares of the mean square of the targets).
        """
        moved, losses = self.learning, self.only_losses
        if losses is None or not (np.isfinite(moved.fall) and 0.0 < moved.end < moved.start) or not self.chains:
            return False
        shares = self.varying_share[:, self.chains[0]]
        known = shares[~np.isnan(shares).all(axis=1)]
        if not known.size:
            return False
        last = known[-1][~np.isnan(known[-1])][-1]
        still = losses.drift(2.0 / 3.0) * losses.unit < STANDS * moved.end
        return bool(still and last < EXPLAINED * moved.end / moved.start)

    @cached_property
    def suffers(self) -> bool:
        """Whether it failed, or ended with more than half of its loss: what is ill with it then is more than a blemish."""
        losses = self.only_losses
        # of a loss that may fall below zero nobody knows what is left of it
        level = losses is not None and losses.value.size > 0 and float(losses.value.min()) >= 0.0
        half_way = level and self.learning.fall < HALF_WAY
        return self.stalled or (half_way and not self.running and not self.relearned)

    @property
    def too_early(self) -> bool:
        """Whether the training goes on and is so young that a loss which has not fallen yet is no failure."""
        return self.running and self.steps_seen < PATIENCE

    @cached_property
    def task_changed(self) -> int:
        """The last step at which the loss jumped to another level because the task did; -1 if it never did.

        A jump at once, after steps of ordinary length, beyond nearly all the losses before it and to where it does not come
        down from: other data, a larger scale, a new phase of a curriculum. What the loss was before says nothing of what
        it should be after.
        """
        losses = self.only_losses
        if losses is None or losses.value.size < 2 * NEAR_STEPS:
            return -1
        value = losses.value
        recent = np.maximum(value[SETTLE - 1 : -1], value[:-SETTLE])
        jumps = SETTLE + np.flatnonzero((value[SETTLE:] > TASK_JUMP * recent) & (value[:-SETTLE] > 0.0))
        long = self.steps[np.asarray(self.typical_step >= LONG_STEP)]
        found = -1
        for at in (int(j) for j in jumps):
            step, before, after = int(losses.step[at]), value[max(0, at - TASK_MEMORY) : at], value[at:]
            thrown = bool(((long > step - NEAR_STEPS) & (long < step)).any())
            if after.size < NEAR_STEPS or before.size < NEAR_STEPS or thrown:
                continue
            level, high = float(np.median(before)), float(np.percentile(before, 95))
            calm = np.median(np.lib.stride_tricks.sliding_window_view(after, SETTLE), axis=1)
            if value[at] > TASK_JUMP * high and float(calm.min()) > TASK_JUMP * level > 0.0:
                found = step
        return found

    @cached_property
    def relearned(self) -> bool:
        """Whether the loss has fallen clearly since the task changed; what its jump itself shook off is left out."""
        losses = self.only_losses
        if self.task_changed < 0 or losses is None:
            return False
        after = losses.value[losses.step > self.task_changed + NEAR_STEPS]
        if after.size < 6 * SETTLE:
            return False
        start = float(np.median(after[: max(SETTLE, after.size // 10)]))
        return float(np.median(after[-max(SETTLE, after.size // 10) :])) < RELEARNED * start

    @property
    def overhead_percent(self) -> float:
        """Measured own time of the probe as a percentage of the watched time; NaN if nothing was seen."""
        if not self.ledger.step.size:
            return float("nan")
        seconds, own = self.ledger["seconds"][-1], self.ledger["own_seconds"][-1]
        return float(100.0 * own / (seconds - own)) if seconds > own else float("nan")


@dataclass(frozen=True, slots=True)
class Span:
    """Looks at which something held.

    Attributes:
        first, last: steps (inclusive).
        at_end: whether it still held at the end of the run (in most of the last few looks).
        looks: indices of those looks in ``Trace.steps``.
    """

    first: int
    last: int
    at_end: bool
    looks: IntArray


def _middle(y: FloatArray, share: float) -> FloatArray:
    """A quantile of each row that lets NaN out and is one of the values (no mean of a number and -inf), shape (S,)."""
    ordered = np.sort(y, axis=1)  # NaN last
    known = np.count_nonzero(~np.isnan(y), axis=1)
    if not y.shape[1]:
        return np.full(y.shape[0], np.nan)
    at = np.maximum(np.ceil(share * known).astype(np.int64) - 1, 0)
    return np.where(known > 0, ordered[np.arange(y.shape[0]), at], np.nan)


def _half_log10(x: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        y = 0.5 * np.log10(x)
    y[np.isposinf(y)] = np.nan
    return y


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = part / whole
    return np.where(np.isfinite(share), share, np.nan)
