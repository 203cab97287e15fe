"""Forecast of a real network: mean-field theory along its blueprint, with the interval that finite width asks for.

Every operation maps the statistics of its input to those of its output (forward) and multiplies the squared gradient by a
factor (backward). For weights drawn at random both are known in the limit of infinite width; at finite width every layer
adds a little noise, so that logarithms wander (Hanin & Nica 2020). The recursion is therefore run for `SAMPLES` copies of
the network at once, each with noise of its own, and the interval is what they spread over.

What theory does not cover (attention, pooling, a gate) takes the gain that was measured in the first pass, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gradiometer.record.blueprint import Blueprint, Node, Op
from gradiometer.record.ledger import FloatArray
from gradiometer.theory.moments import Moments, moments
from gradiometer.theory.propagation import (
    SAMPLES,
    TINY,
    Back,
    State,
    crossing,
    function_of,
    likeness,
    measured_state,
    sampled_likeness,
    spatial,
    weighted,
)

Z90: Final = 1.6448536269514722
"""Half width of a 90 % interval in standard deviations."""
ROUGHNESS: Final = 0.3
"""Relative error of what we say of the variances that batch normalisation divides by; the same in every layer. Set likewise."""
FLOOR: Final = 0.012
"""Decades of standard deviation that are always there: inputs are not Gaussian, a batch is finite. Set on the building half
of benchmarks/forecast.py."""
MOST_CHANCE: Final = 0.5
"""Variance of the logarithm of how much of a gradient lies along the signal, at most: a batch has several examples."""
LEAST_SLOPE: Final = 1e-90
"""Square of the slope that a layer of dead or fully saturated units is given, so that it is told from zero weights."""
HUGE: Final = 1e250
LN10: Final = math.log(10.0)


@dataclass(frozen=True, slots=True)
class Band:
    """A forecast number with its 90 % interval; NaN where theory has no say.

    Attributes:
        middle, low, high: log10.
    """

    middle: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a measured log10 lies in the interval."""
        return self.low <= value <= self.high

    @property
    def known(self) -> bool:
        """Whether there is a forecast."""
        return not math.isnan(self.middle)


UNKNOWN_BAND: Final = Band(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class NodeForecast:
    """What is expected at the output of one operation.

    Attributes:
        signal: log10 of its root mean square.
        gradient: log10 of the L2 norm of its gradient over the batch.
        apart: log10 of 1 - c, the share of the signal that differs between two inputs.
        backward_gain: log10 of what it multiplies the gradient by, towards its first input.
        slope: of an activation, root mean square of f'; NaN otherwise.
        covered: whether theory covers the operation; else its gain is the measured one.
    """

    signal: Band
    gradient: Band
    apart: Band
    backward_gain: float
    slope: float
    covered: bool


def forecast(blueprint: Blueprint, *, seed: int = 0) -> tuple[NodeForecast, ...]:
    """Forecast of every operation of a blueprint.

    Args:
        blueprint: drawn from the first step of a training.
        seed: of the noise that finite width stands for.
    """
    nodes = blueprint.nodes
    rng = np.random.default_rng(seed)
    run = _Run(nodes, rng)
    with np.errstate(all="ignore"):
        run.forward()
        run.backward()
        return tuple(run.result(i) for i in range(len(nodes)))


class _Run:
    def __init__(self, nodes: Sequence[Node], rng: np.random.Generator) -> None:
        self._nodes = nodes
        self._rng = rng
        self._states: list[State] = []
        self._moments: dict[int, Moments] = {}
        self._backs: list[Back | None] = [None] * len(nodes)
        self._gains: list[list[FloatArray]] = [[] for _ in nodes]
        self._lost: set[int] = set()
        heads = [node.count for node in nodes if node.op is Op.LINEAR]
        self._examples = heads[-1] if heads else 1
        self._doubt = rng.standard_normal(SAMPLES)
        self._covered = [node.op is not Op.UNKNOWN for node in nodes]

    def _noise(self, variance: FloatArray | float) -> FloatArray:
        """A factor with mean one and this variance of its logarithm, for every sample."""
        v = np.clip(np.nan_to_num(np.broadcast_to(np.asarray(variance, dtype=np.float64), (SAMPLES,))), 0.0, 4.0)
        return np.exp(np.sqrt(v) * self._rng.standard_normal(SAMPLES) - v / 2)

    # ---- forward ---------------------------------------------------------------------------------------------------

    def forward(self) -> None:
        for index, node in enumerate(self._nodes):
            state = self._step(index, node)
            if np.isnan(state.square).any():  # something unknown came in: go on from what was measured, if it was
                state = measured_state(node.output)
                self._lost.add(index)
            state.square = np.clip(state.square, 0.0, HUGE)
            state.apart, state.anywhere = np.clip(state.apart, 0.0, 2.0), np.clip(state.anywhere, 0.0, 2.0)
            self._states.append(state)

    def _step(self, index: int, node: Node) -> State:
        given = [self._states[i] for i in node.inputs]
        match node.op:
            case Op.LINEAR:
                return self._linear(node, given[0])
            case Op.ACTIVATION:
                return self._activation(index, node, given[0])
            case Op.BATCH_NORM:
                return self._batch_norm(node, given[0])
            case Op.LAYER_NORM | Op.RMS_NORM:
                return self._layer_norm(node, given[0])
            case Op.ADD:
                return self._add(node, given)
            case Op.SCALE:
                return self._scale(node, given[0])
            case Op.ENTRY | Op.UNKNOWN:
                return measured_state(node.output)

    def _linear(self, node: Node, x: State) -> State:
        n = node.numbers
        if n["gain"] == 0.0:  # weights that start at zero: nothing passes, whatever came in
            square = np.full(SAMPLES, n.get("bias_square", 0.0))
            return State(
                square, np.full(SAMPLES, n.get("bias_mean", 0.0)), np.zeros(SAMPLES), np.zeros(SAMPLES), np.zeros(SAMPLES)
            )
        factor, profile = spatial(n, x.profile)
        gain, ones = n["gain"] * factor, n["ones"]
        random = x.varying + np.minimum(ones, n["fan_in"]) * x.mean**2
        alike = likeness(x.anywhere, node.count)
        random = gain * random * self._noise(2.0 * alike * n["forward_excess"])
        square = random + n.get("bias_square", 0.0)
        kept = gain * x.square / np.maximum(square, TINY)
        mean = n["row_mean"] * factor * x.mean + n.get("bias_mean", 0.0)
        anywhere, pairs = x.anywhere * kept, sampled_likeness(x.pairs, n["forward_excess"])
        if "in0" in n and node.output is not None:
            # how alike two positions of an image are is no matter of weights: it is taken as the first pass showed it
            anywhere = np.full(SAMPLES, node.output.apart_anywhere)
            pairs = np.full(SAMPLES, max(node.output.pairs - 1.0 / node.units, 0.0))
        return State(square, mean, x.apart * kept, anywhere, pairs, profile)

    def _activation(self, index: int, node: Node, x: State) -> State:
        function = function_of(node)
        # a mean that weights drawn at random would have anyway is no mean
        mean = np.where(x.mean**2 > 9.0 * x.square / max(node.units, 1), x.mean, 0.0)
        varying = np.maximum(x.square - mean**2, TINY)
        scale = np.sqrt(varying)
        known = moments(function, np.nan_to_num(mean), np.nan_to_num(scale, nan=1.0))
        self._moments[index] = known
        share = np.clip(x.square / varying, 1.0, 1e12)
        apart, anywhere = (np.clip(a * share, 0.0, 2.0) for a in (x.apart, x.anywhere))
        pattern = known.square_likeness(anywhere)
        pattern = pattern + (known.kurtosis - pattern) / node.count
        own = (pattern - 1.0 - 2.0 * known.elasticity**2 * likeness(x.anywhere, node.count)) / node.units
        square = known.square * self._noise(own)
        lost = np.isnan(x.square)
        differs = known.apart(anywhere)
        # how the activation spreads pairs that are more alike than others, and what a finite width adds
        kept = varying * known.slope_square * known.slope_likeness(anywhere) * anywhere / (known.square * differs)
        linear = np.clip(np.nan_to_num(kept, nan=1.0), 0.0, 1.0)
        return State(
            np.where(lost, np.nan, square),
            np.where(lost, np.nan, known.mean * np.sqrt(square / known.square)),
            known.apart(apart),
            differs,
            sampled_likeness(x.pairs * linear**2, (1.0 - linear) / node.units),
            x.profile,
        )

    def _batch_norm(self, node: Node, x: State) -> State:
        n = node.numbers
        gamma2, beta2 = n.get("gamma_square", 1.0), n.get("beta_square", 0.0)
        if "running_inverse" in n:
            factor = gamma2 * n["running_inverse"]
            square = factor * (x.square + n.get("running_mean_square", 0.0)) + beta2
        else:
            variance = x.square * x.anywhere * (1.0 - 1.0 / node.count)
            factor = gamma2 / (variance + n["eps"])
            square = factor * variance + beta2
        kept = factor * x.square / np.maximum(square, TINY)
        mean = np.full(SAMPLES, n.get("beta_mean", 0.0))
        # units that lie along what many examples share have a large variance, and are scaled down: E z1^2 / sum p_k z_k^2
        pairs = x.pairs * np.clip(1.0 - 2.0 * x.pairs, 0.0, 1.0)
        return State(square, mean, x.apart * kept, x.anywhere * kept, pairs, x.profile)

    def _layer_norm(self, node: Node, x: State) -> State:
        n = node.numbers
        gamma2, beta2 = n.get("gamma_square", 1.0), n.get("beta_square", 0.0)
        variance = x.varying if node.op is Op.LAYER_NORM else x.square
        factor = gamma2 / (variance + n["eps"])
        square = factor * variance + beta2
        kept = factor * x.square / np.maximum(square, TINY)
        mean = n.get("beta_mean", 0.0) + (np.sqrt(factor) * x.mean if node.op is Op.RMS_NORM else 0.0 * x.mean)
        return State(square, mean, x.apart * kept, x.anywhere * kept, x.pairs, x.profile)

    def _add(self, node: Node, given: Sequence[State]) -> State:
        factors = [node.numbers[f"factor{k}"] for k in range(len(given))]
        mean = sum((f * x.mean for f, x in zip(factors, given, strict=True)), np.zeros(SAMPLES))
        parts = [f * f * np.maximum(x.square - x.mean**2, 0.0) for f, x in zip(factors, given, strict=True)]
        whole = sum(parts, np.zeros(SAMPLES))
        products = crossing(parts, whole) * likeness(given[0].anywhere, node.count) / node.units
        square = whole * self._noise(products) + mean**2
        weights = [f * f * x.square for f, x in zip(factors, given, strict=True)]
        apart = weighted(weights, [x.apart for x in given], square)
        anywhere = weighted(weights, [x.anywhere for x in given], square)
        differing = [w * x.anywhere for w, x in zip(weights, given, strict=True)]
        alike = weighted(differing, [np.sqrt(x.pairs) for x in given], square * anywhere) ** 2
        return State(square, mean, apart, anywhere, np.nan_to_num(alike), given[0].profile)

    def _scale(self, node: Node, x: State) -> State:
        n = node.numbers
        if n["square"] == 0.0:
            nothing = np.zeros(SAMPLES)
            return State(nothing, nothing, nothing, nothing, nothing)
        square, mean = n["square"] * x.square, n["mean"] * x.mean
        kept = n["cross"] / n["square"] if n["square"] else 1.0
        if kept == 1.0:
            return State(square, mean, x.apart, x.anywhere, x.pairs, x.profile)
        apart, anywhere = 1.0 - kept * (1.0 - x.apart), 1.0 - kept * (1.0 - x.anywhere)
        pairs = x.pairs * np.nan_to_num(kept * x.anywhere / anywhere) ** 2
        return State(square, mean, apart, anywhere, pairs, x.profile)

    # ---- backward --------------------------------------------------------------------------------------------------

    def backward(self) -> None:
        arriving: list[list[Back]] = [[] for _ in self._nodes]
        for index in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[index]
            back = self._gather(index, node, arriving[index])
            self._backs[index] = back
            for position, source in enumerate(node.inputs):
                sent, gain = self._send(index, node, position, back)
                self._gains[index].append(gain)
                if sent is not None:
                    arriving[source].append(sent)

    def _gather(self, index: int, node: Node, arriving: Sequence[Back]) -> Back:
        if not arriving:
            if index < len(self._nodes) - 1:  # what comes back to it could not be followed
                lost = np.full(SAMPLES, np.nan)
                return Back(lost, np.zeros(SAMPLES), np.zeros(SAMPLES), np.ones(SAMPLES))
            flow = node.gradient
            start = math.log(flow.square) if flow is not None and flow.square > 0.0 else 0.0
            return Back(np.full(SAMPLES, start), np.zeros(SAMPLES), np.zeros(SAMPLES), np.ones(SAMPLES))
        if len(arriving) == 1:
            return arriving[0]
        logs = np.array([b.log for b in arriving])
        top = logs.max(axis=0)
        parts = [np.where(np.isneginf(top), 1.0, np.exp(log - top)) for log in logs]
        whole = sum(parts, np.zeros(SAMPLES))
        shared = sum((p * b.shared for p, b in zip(parts, arriving, strict=True)), np.zeros(SAMPLES)) / whole
        overlap = sum((p * b.overlap for p, b in zip(parts, arriving, strict=True)), np.zeros(SAMPLES)) / whole
        along = sum((b.along for b in arriving), np.zeros(SAMPLES))
        products = crossing(parts, whole) * overlap / node.units
        return Back(top + np.log(whole * self._noise(products)), along, shared, overlap, arriving[0].profile)

    def _send(self, index: int, node: Node, position: int, back: Back) -> tuple[Back | None, FloatArray]:
        """Gradient that one input gets from this operation, and the natural logarithm of the factor."""
        state, out = self._states[node.inputs[position]], self._states[index]
        shared, overlap, along, profile = back.shared, back.overlap, back.along, back.profile
        n = node.numbers
        match node.op:
            case Op.LINEAR if n["gain"] == 0.0:
                gain, along = np.full(SAMPLES, -np.inf), np.zeros(SAMPLES)
            case Op.LINEAR:
                factor, profile = spatial(n, back.profile, backward=True)
                noise = self._noise(2.0 * overlap * n["backward_excess"])
                along = along * np.clip(1.0 - n.get("bias_square", 0.0) / np.maximum(out.square, TINY), 0.0, 1.0)
                gain = self._with_alignment(node.inputs[position], back.log, np.log(n["gain"] * factor * noise), along)
                overlap = sampled_likeness(overlap, n["backward_excess"])
            case Op.ACTIVATION:
                gain, shared, overlap = self._through(index, node, state, back)
                along = along * np.clip(np.nan_to_num(self._moments[index].elasticity), 0.0, 2.0)
            case Op.BATCH_NORM if "running_inverse" not in n:
                gain, shared = self._through_batch_norm(index, node, state, back)
                along = np.zeros(SAMPLES)
            case Op.BATCH_NORM:
                gain = np.log(np.full(SAMPLES, n.get("gamma_square", 1.0) * n["running_inverse"]))
            case Op.LAYER_NORM | Op.RMS_NORM:
                variance = state.varying if node.op is Op.LAYER_NORM else state.square
                lost = 2.0 if node.op is Op.LAYER_NORM else 1.0
                size = max(n.get("size", node.units), lost + 1.0)
                # the variance of an example is that of a finite number of units: E 1/V is more than 1/E V
                spread = 1.0 + 2.0 / max(node.units, 2)
                left = np.maximum(1.0 - lost / size - self._share_along(index, back), 0.01)
                gain = np.log(n.get("gamma_square", 1.0) / (variance + n["eps"]) * left * spread)
                along = np.zeros(SAMPLES)
            case Op.ADD:
                factor = n[f"factor{position}"]
                gain = np.log(np.full(SAMPLES, factor**2))
                product = factor * state.mean * out.mean + factor**2 * np.maximum(state.square - state.mean**2, 0.0)
                along = along * np.clip(np.nan_to_num(product / np.maximum(out.square, TINY)), 0.0, 1.0)
            case Op.SCALE:
                gain = np.log(np.full(SAMPLES, n["square"]))
                shared = shared * (n["cross"] / n["square"] if n["square"] else 1.0)
            case Op.ENTRY | Op.UNKNOWN:
                gain = np.full(SAMPLES, np.nan)
        if np.isnan(gain).any():
            return self._as_measured(index, node, position, back)
        return Back(back.log + gain, along, shared, overlap, profile), gain

    def _as_measured(self, index: int, node: Node, position: int, back: Back) -> tuple[Back | None, FloatArray]:
        """The gain that the first backward pass showed."""
        self._covered[index] = False
        measured = node.gains[position]
        if math.isnan(measured):
            if np.isneginf(back.log).all():  # nothing comes, so nothing goes on
                return back, np.full(SAMPLES, np.nan)
            return None, np.full(SAMPLES, np.nan)
        gain = np.full(SAMPLES, np.log(measured))
        source = self._nodes[node.inputs[position]]
        flow = source.gradient
        shared, overlap = back.shared, back.overlap
        if flow is not None and not math.isnan(flow.shared):
            shared = np.full(SAMPLES, (flow.shared - 1.0 / source.count) / max(1.0 - 1.0 / source.count, 1e-9))
            overlap = np.full(SAMPLES, flow.overlap)
        log = back.log + gain
        # as much of it lies along the signal as was measured; by chance that would be one part in its units
        share: FloatArray | float = flow.along if flow is not None else math.nan
        if math.isnan(share):
            share = self._noise(np.minimum(2.0 * overlap, MOST_CHANCE)) / source.units
        along = np.nan_to_num(np.sqrt(share * np.exp(np.clip(log, -700.0, 700.0)) * self._size(node.inputs[position])))
        return Back(log, along, shared, overlap), gain

    def _size(self, index: int) -> FloatArray:
        """Sum of squares of an output over the units and positions of one example."""
        node = self._nodes[index]
        places = max(node.count / self._examples, 1.0)
        return np.asarray(np.maximum(node.units * places * self._states[index].square, TINY))

    def _share_along(self, index: int, back: Back) -> FloatArray:
        """Share of the gradient at an output that lies along it, 0..1."""
        logs = 2.0 * np.log(np.abs(back.along)) - np.log(self._size(index)) - back.log
        return np.asarray(np.nan_to_num(np.exp(np.clip(logs, -700.0, 0.0))))

    def _with_alignment(self, source: int, log: FloatArray, gain: FloatArray, along: FloatArray) -> FloatArray:
        """The gain of weights that are not independent of the signal they made: the part along it is carried exactly.

        W' d has the component <d, W x> / |x| along x, whatever W is, and random ones in all other directions.
        """
        units = max(self._nodes[source].units, 2)
        size = self._size(source)
        random = log + gain + math.log1p(-1.0 / units)
        with np.errstate(divide="ignore"):
            carried = 2.0 * np.log(np.abs(along)) - np.log(size)
        known = np.isfinite(carried) & np.isfinite(log) & ~np.isnan(self._states[source].square)
        if self._nodes[source].count > self._examples:  # weights that many positions share are a matter of their own
            return np.where(known, np.maximum(gain, carried - log), gain)
        return np.where(known, np.logaddexp(random, carried) - log, gain)

    def _through(self, index: int, node: Node, state: State, back: Back) -> tuple[FloatArray, FloatArray, FloatArray]:
        known = self._moments[index]
        anywhere = np.clip(state.anywhere, 0.0, 2.0)
        kept = np.nan_to_num(known.slope_likeness(anywhere), nan=1.0)
        pattern = known.slope_square_likeness(anywhere)
        pattern = pattern + (known.slope_kurtosis - pattern) / node.count
        variance = (pattern - 1.0) * (1.0 + 2.0 * back.overlap) / node.units
        # a layer of dead units has no slope at all; only weights that are zero by design make an exact zero
        # what lies along the output lies in the units that are on, and meets their slope alone
        # (the positions of an image share their weights: there this is not so, and left out)
        share = self._share_along(index, back) if node.count <= self._examples else np.zeros(SAMPLES)
        through = known.slope_square * self._noise(variance) * (1.0 - share) + known.carried * share
        gain = np.log(np.maximum(through, LEAST_SLOPE))
        gain = np.where(np.isnan(state.square), np.nan, gain)
        rest = 1.0 / node.count
        left = rest + np.maximum(back.overlap - rest, 0.0) * kept**2
        return gain, back.shared * kept, sampled_likeness(left, (known.slope_kurtosis - 1.0) / node.units)

    def _through_batch_norm(self, index: int, node: Node, state: State, back: Back) -> tuple[FloatArray, FloatArray]:
        """BatchNorm's backward pass takes out the mean and what lies along its own output (Ioffe & Szegedy 2015)."""
        n = node.numbers
        count = max(node.count, 2)
        variance = state.square * state.anywhere * (1.0 - 1.0 / count)
        mean_share = 1.0 / count + (1.0 - 1.0 / count) * back.shared
        left = np.clip(1.0 - mean_share - 1.0 / (count - 1) - self._share_along(index, back), 1.0 / count, 1.0)
        # each unit has a variance of its own, from a finite batch whose examples are more or less alike: E 1/V > 1/E V
        purity = 1.0 / count + (1.0 - 1.0 / count) * state.pairs
        spread = (1.0 + 2.0 * purity) ** (1.0 + ROUGHNESS * self._doubt)
        gain = np.log(n.get("gamma_square", 1.0) / (variance + n["eps"]) * spread * left)
        return gain, np.full(SAMPLES, -1.0 / (count - 1))

    # ---- result ----------------------------------------------------------------------------------------------------

    def result(self, index: int) -> NodeForecast:
        state, back = self._states[index], self._backs[index]
        assert back is not None
        signal = _band(0.5 * np.log10(state.square))
        gains = self._gains[index]
        return NodeForecast(
            signal=signal,
            gradient=_band(0.5 * back.log / LN10),
            apart=_band(np.log10(np.where(state.square > 0.0, state.apart, np.nan))),
            backward_gain=float(np.mean(0.5 * gains[0] / LN10)) if gains else math.nan,
            slope=float(np.sqrt(self._moments[index].slope_square.mean())) if index in self._moments else math.nan,
            covered=self._covered[index] and index not in self._lost,
        )


def _band(logs: FloatArray) -> Band:
    if np.isnan(logs).any():
        return UNKNOWN_BAND
    if not np.isfinite(logs).all():
        value = float(logs[0])
        return Band(value, value, value)
    middle = float(logs.mean())
    deviation = float(logs.std(ddof=1))
    # the expansion in depth over width has a next order: its size is that of the variance (of ln square) squared
    deviation *= math.sqrt(1.0 + (2.0 * LN10 * deviation) ** 2)
    half = Z90 * math.hypot(deviation, FLOOR)
    return Band(middle, middle - half, middle + half)
