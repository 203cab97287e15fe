"""What structures other than a plain layer do to signals and squared gradients: dropout, skips, norms, convolutions, time.

Factors are for squared norms unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special

from gradiometer.errors import GradiometerError
from gradiometer.theory.activations import Activation, Elementwise, FloatArray, activation
from gradiometer.theory.meanfield import MeanField, pair_moment, second_moment, slope_moment

_ANGLE_REACH: Final = 10.0  # in standard deviations: what lies outside weighs 2e-23
_ANGLE_PANELS: Final = 12
_ANGLE_ORDER: Final = 12

# ---- initialisations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Initialisation:
    """A way to draw weights and biases.

    Attributes:
        name: as people call it.
        scales: (fan_in, fan_out, gain) to (sigma_w, sigma_b).
        source: the paper, or the library.
    """

    name: str
    scales: Callable[[int, int, float], tuple[float, float]]
    source: str


INITIALISATIONS: Final = (
    Initialisation("pytorch", lambda fan_in, _out, _gain: (3**-0.5, (3.0 * fan_in) ** -0.5), "torch.nn.Linear's own"),
    Initialisation("xavier", lambda i, o, g: (g * math.sqrt(2.0 * i / (i + o)), 0.0), "Glorot & Bengio 2010"),
    Initialisation("he", lambda _i, _o, g: (g * math.sqrt(2.0), 0.0), "He et al. 2015"),
    Initialisation("lecun", lambda _i, _o, g: (g, 0.0), "LeCun et al. 1998"),
    Initialisation("orthogonal", lambda i, o, g: (g * math.sqrt(min(1.0, i / o)), 0.0), "Saxe et al. 2013"),
)
"""Initialisations: sigma_w is the standard deviation of a weight times sqrt(fan_in). Orthogonal ones keep the gain for
inputs, or, if there are more outputs than inputs, share it among them."""


def initialisation(name: str, fan_in: int, fan_out: int | None = None, gain: float = 1.0) -> tuple[float, float]:
    """(sigma_w, sigma_b) of an initialisation; ``fan_out`` is ``fan_in`` by default, He's sqrt(2) is on top of ``gain``.

    Raises:
        GradiometerError: no such name, a fan below 1, or a gain that is no positive number.
    """
    if fan_in < 1 or (fan_out is not None and fan_out < 1):
        raise GradiometerError(f"fan_in and fan_out must be at least 1, not {fan_in} and {fan_out}.")
    if not (math.isfinite(gain) and gain > 0.0):
        raise GradiometerError(f"gain must be a positive number, not {gain}.")
    for row in INITIALISATIONS:
        if row.name == name:
            return row.scales(fan_in, fan_in if fan_out is None else fan_out, gain)
    known = ", ".join(row.name for row in INITIALISATIONS)
    raise GradiometerError(f"No initialisation is called {name!r}.", f"Known are: {known}.")


# ---- dropout and skips -----------------------------------------------------------------------------------------------


def dropout_factors(keep: float) -> tuple[float, float]:
    """Factor of the mean square and of the product of two examples under (inverted) dropout: 1/keep and 1.

    The two differ, so two equal inputs do not stay equal: no edge of chaos is left (Schoenholz et al. 2017, section 5).

    Raises:
        GradiometerError: keep is outside (0, 1].
    """
    if not 0.0 < keep <= 1.0:
        raise GradiometerError(f"keep must lie in (0, 1], not at {keep}.", "It is the share of units that stay.")
    return 1.0 / keep, 1.0


def residual_chi(which: str | Elementwise | Activation, sigma_w: float, q: float, branch: float = 1.0) -> float:
    """Factor of the squared gradient of x + s F(x), 1 + s^2 chi_F (F's output has no correlation with x)."""
    return MeanField(which, sigma_w, branch=branch).chi(q)


def balanced_branch(layers: int) -> float:
    """Branch scale 1/sqrt(L): with chi_F = 1 the whole of L residual layers grows by no more than e."""
    if layers < 1:
        raise GradiometerError(f"There must be at least one layer, not {layers}.")
    return layers**-0.5


# ---- normalisation ---------------------------------------------------------------------------------------------------


def batch_norm_growth(which: str | Elementwise | Activation, batch: int | None = None) -> float:
    """Growth of the squared gradient per layer of a deep network of weights, batch normalisation and activation.

    For many examples and units: E phi'^2 / (E phi^2 - E phi(u1) phi(u2)) for Gaussians of variance 1, independent for two
    examples (Yang et al. 2019: pi / (pi - 1) for ReLU). A batch of B makes it larger. The B normalised pre-activations of a
    unit then lie anywhere on a sphere of radius sqrt(B) in the B - 1 dimensions of mean zero, whatever their variance was;
    with D = diag phi'(x), P = 1 - 11^T/B - x x^T/B and C = 1 - 11^T/B the growth is

        B / (B - 3)  E tr(P D C D) / ((B - 1) (E phi(x1)^2 - E phi(x1) phi(x2)))

    (computed here after Yang et al. 2019, for wide networks whose examples have become equally far from each other, eps = 0;
    (B - 2) / (B - 3) for a line). Wide random networks of 16 layers agree to 1 %.

    Args:
        which: activation.
        batch: examples B in a batch, at least 4; many by default.

    Raises:
        GradiometerError: fewer than four examples, where the mean is infinite; an activation that is constant.
    """
    act = activation(which)
    if batch is None:
        square, pair = second_moment(act, 1.0), pair_moment(act, 1.0, 0.0)
        return slope_moment(act, 1.0) / _apart(act, square, pair)
    _enough(batch)
    n = batch - 1
    root, c = math.sqrt(n), -1.0 / n
    # x1 = sqrt(n) sin(s), and x2 by a second angle t: the weights are cos^(n-2) s and cos^(n-3) t
    kinks = np.array([k for k in act.kinks if abs(k) < root], dtype=np.float64)
    a, g = np.arcsin(kinks / root), math.acos(c)
    hidden = [a - g, a + g, math.pi - a - g, g - math.pi - a]  # beyond these no second example reaches the kink
    s, ws = _angles(n - 2, np.concatenate([a, *hidden]))
    x1 = root * np.sin(s)
    across = math.sqrt(1.0 - c * c) * np.cos(s)[:, None]
    with np.errstate(divide="ignore"):
        seen = np.arcsin(np.clip((kinks / root - c * np.sin(s)[:, None]) / across, -1.0, 1.0))
    t, wt = _angles(n - 3, seen)
    x2 = root * (c * np.sin(s)[:, None] + across * np.sin(t))
    f1, f2, d1, d2 = act.f(x1), act.f(x2), act.slope(x1), act.slope(x2)
    pair = float(ws @ (f1 * (wt * f2).sum(axis=1)))
    steep, steep_x = float(ws @ d1**2), float(ws @ (d1 * x1) ** 2)
    steep_pair, steep_x_pair = float(ws @ (d1 * (wt * d2).sum(axis=1))), float(ws @ (d1 * x1 * (wt * d2 * x2).sum(axis=1)))
    trace = (n - 1) * steep - steep_x + (steep + n * steep_pair + steep_x + n * steep_x_pair) / batch
    return batch / (batch - 3) * trace / (n * _apart(act, float(ws @ f1**2), pair))


def batch_norm_growth_linear(batch: int) -> float:
    """The same for a linear network and a batch of B examples, (B - 2) / (B - 3) (Yang et al. 2019).

    Raises:
        GradiometerError: fewer than four examples, where the mean is infinite.
    """
    _enough(batch)
    return (batch - 2) / (batch - 3)


def _enough(batch: int) -> None:
    if batch < 4:
        raise GradiometerError(f"A batch of {batch} has no finite mean growth.", "Take at least 4 examples.")


def _apart(act: Activation, square: float, pair: float) -> float:
    """E phi(u1)^2 - E phi(u1) phi(u2): what tells two examples apart."""
    if square - pair <= 1e-12 * square:
        raise GradiometerError(f"{act.name} gives the same for every input: there is nothing to normalise.")
    return square - pair


def _angles(power: int, kinks: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights for the mean over an angle of density cos^power; kinks (..., k) give both (..., nodes)."""
    reach = min(0.5 * math.pi, _ANGLE_REACH / math.sqrt(power + 1.0))
    even = np.broadcast_to(np.linspace(-reach, reach, _ANGLE_PANELS + 1), (*kinks.shape[:-1], _ANGLE_PANELS + 1))
    edges = np.sort(np.concatenate([even, np.clip(kinks, -reach, reach)], axis=-1), axis=-1)
    x, w = np.polynomial.legendre.leggauss(_ANGLE_ORDER)
    half = 0.5 * np.diff(edges, axis=-1)[..., None]
    angle = edges[..., :-1, None] + half * (x + 1.0)
    weight = half * w * np.cos(angle) ** power
    shape = (*kinks.shape[:-1], -1)
    angle, weight = angle.reshape(shape), weight.reshape(shape)
    return angle, weight / weight.sum(axis=-1, keepdims=True)


def layer_norm_factor(variance: float, size: int, gamma: float = 1.0, eps: float = 1e-5) -> float:
    """Factor of the squared gradient of layer normalisation over ``size`` units, gamma^2 / (variance + eps) (1 - 2/size).

    It takes out the mean and what lies along its own output: two of ``size`` directions (Ba et al. 2016, section 5).

    Raises:
        GradiometerError: fewer than three units, or no positive variance.
    """
    _positive("variance + eps", variance + eps)
    if size < 3:
        raise GradiometerError(f"Over {size} units layer normalisation leaves no gradient.", "Normalise over at least 3.")
    return gamma**2 / (variance + eps) * (1.0 - 2.0 / size)


def rms_norm_factor(square: float, size: int, gamma: float = 1.0, eps: float = 1e-6) -> float:
    """The same for RMS normalisation, which takes out one direction (Zhang & Sennrich 2019).

    Raises:
        GradiometerError: fewer than two units, or no positive mean square.
    """
    _positive("square + eps", square + eps)
    if size < 2:
        raise GradiometerError(f"Over {size} unit RMS normalisation leaves no gradient.", "Normalise over at least 2.")
    return gamma**2 / (square + eps) * (1.0 - 1.0 / size)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise GradiometerError(f"{name} must be a positive number, not {value}.")


# ---- convolutions ----------------------------------------------------------------------------------------------------


def convolution_fan_in(channels: int, kernel: Sequence[int], groups: int = 1) -> int:
    """Inputs of one output element: its sigma_w^2 is this times the variance of a weight (Xiao et al. 2018, eq. 2.2).

    Raises:
        GradiometerError: no channels, groups or taps, or channels that cannot be split into the groups.
    """
    if min(channels, groups, *kernel) < 1:
        raise GradiometerError(f"Channels, groups and kernel must be at least 1, not {channels}, {groups}, {tuple(kernel)}.")
    if channels % groups:
        raise GradiometerError(f"{channels} channels cannot be split into {groups} groups.")
    return channels // groups * math.prod(kernel)


def padded_share(size: int, kernel: int) -> float:
    """Share of the taps of a centred odd kernel that meet an input, over one axis of ``size`` positions, deep in a network.

    The largest eigenvalue of the taps, (1 + 2 sum cos) / kernel for three taps: signals gather in the middle, where all of
    them meet (computed here; for one layer alone it is the mean over the positions, which is less).
    """
    if kernel % 2 == 0 or kernel < 1 or size < 1:
        raise GradiometerError(f"The kernel must be odd and the size positive, not {kernel} and {size}.")
    taps = sum(np.eye(size, k=k) for k in range(-(kernel // 2), kernel // 2 + 1))
    return float(np.linalg.eigvalsh(np.asarray(taps, dtype=np.float64))[-1]) / kernel


def delta_orthogonal(shape: Sequence[int], gain: float = 1.0, rng: np.random.Generator | None = None) -> FloatArray:
    """Kernel that is zero but for an orthogonal matrix in its middle (Xiao et al. 2018, algorithm 1).

    Args:
        shape: (out, in, ...kernel), out >= in, every extent of the kernel odd.
        gain: of the orthogonal matrix; the critical sigma_w for a network without normalisation.
        rng: random numbers; seed 0 by default.

    Raises:
        GradiometerError: the shape does not allow it.
    """
    if len(shape) < 2 or min(shape) < 1:
        raise GradiometerError(f"{tuple(shape)} is no shape of weights.", "Give (out, in, ...kernel), each at least 1.")
    out, inputs, *kernel = shape
    if out < inputs:
        raise GradiometerError(f"{out} output channels cannot keep {inputs} input channels apart.", "Give at least as many.")
    if any(extent % 2 == 0 for extent in kernel):
        raise GradiometerError(f"A kernel of {tuple(kernel)} has no middle.", "Give odd extents.")
    rng = np.random.default_rng(0) if rng is None else rng
    q, r = np.linalg.qr(rng.standard_normal((out, inputs)))
    weights = np.zeros(tuple(shape))
    weights[(slice(None), slice(None), *(extent // 2 for extent in kernel))] = gain * q * np.sign(np.diag(r))
    return weights


# ---- through time ----------------------------------------------------------------------------------------------------


def recurrent_chi(which: str | Elementwise | Activation, sigma_w: float, drive: float, sigma_b: float = 0.0) -> float:
    """Factor of the squared gradient per time step of h' = phi(W h + U x + b), where it has settled.

    Args:
        which: activation.
        sigma_w: standard deviation of a recurrent weight times sqrt(units).
        drive: variance that the input U x gives a pre-activation.
        sigma_b: standard deviation of a bias.

    In mean field the input is one more bias, new at every step (Chen, Pennington & Schoenholz 2018).
    """
    if not drive >= 0.0:
        raise GradiometerError(f"drive is a variance and at least 0, not {drive}.")
    field = MeanField(which, sigma_w, math.sqrt(sigma_b**2 + drive))
    return field.chi(field.q_star)


def recurrent_bound(weights: FloatArray, steepest: float, steps: int) -> float:
    """Upper bound of |dh_T / dh_0| of a recurrent layer after ``steps`` steps: (largest singular value x steepest)^steps.

    Below 1 per step the gradient must vanish (Pascanu et al. 2013, section 2.1: steepest = 1 for tanh, 1/4 for sigmoid).
    Infinity where the bound is beyond float64. The spectral radius will not do in place of the singular value: it gives the
    long run of a linear network only, and with slopes that differ from unit to unit and from step to step the gradient may
    explode although the radius is 0.

    Args:
        weights: the recurrent matrix, shape (n, n).
        steepest: largest |phi'|.
        steps: number of steps, at least 0.

    Raises:
        GradiometerError: weights that are not a square matrix of finite numbers, a negative slope or number of steps.
    """
    _square(weights)
    if not steepest >= 0.0 or steps < 0:
        raise GradiometerError(f"steepest and steps must be at least 0, not {steepest} and {steps}.")
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float64(np.linalg.norm(weights, 2) * steepest) ** steps)


def spectral_radius(weights: FloatArray) -> float:
    """Largest absolute eigenvalue of a square matrix, shape (n, n).

    Raises:
        GradiometerError: it is not a square matrix of finite numbers.
    """
    _square(weights)
    return float(np.abs(np.linalg.eigvals(weights)).max())


def _square(weights: FloatArray) -> None:
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not weights.size or not np.isfinite(weights).all():
        raise GradiometerError(f"A recurrent matrix is square and finite; this one has the shape {weights.shape}.")


def forget_gate_memory(bias: float, steps: int) -> float:
    """What the forget gates of an LSTM leave of the cell's gradient: sigmoid(bias)^steps (Jozefowicz et al. 2015: bias 1).

    Taken at pre-activations that are the bias alone; torch's LSTM has two, whose sum counts.

    Raises:
        GradiometerError: a bias that is no number, or a negative number of steps.
    """
    if math.isnan(bias) or steps < 0:
        raise GradiometerError(f"bias must be a number and steps at least 0, not {bias} and {steps}.")
    return float(special.expit(bias)) ** steps
