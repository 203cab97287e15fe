"""Signals and gradients along depth: real random networks beside the theory of wide ones.

A layer turns pre-activations h into W phi(h) + b, W_ij ~ N(0, sigma_w^2 / width), b ~ N(0, sigma_b^2). A normalisation
follows it (`Norm`); with a skip connection the layer reads the normalised stream and adds to it, h + W phi(norm(h)) + b
(He et al. 2016). Many networks are followed at once, their weights stacked; `sample` measures, `expect` computes what theory
says (Poole et al. 2016, Schoenholz et al. 2017; finite width: Hanin & Nica 2020; batch normalisation: Yang et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from gradiometer.errors import GradiometerError
from gradiometer.lab import hermite
from gradiometer.lab.elementwise import elementwise
from gradiometer.theory.finite_width import log_variance, settled_log_variance
from gradiometer.theory.meanfield import START_Q, MeanField
from gradiometer.theory.structures import batch_norm_growth

FloatArray = npt.NDArray[np.float64]
Norm = Literal["none", "batch", "layer"]

SEEDS: Final = 20
"""Networks that are sampled."""
START_C: Final = 0.5
"""Correlation of any two inputs."""
BATCH: Final = 16
"""Inputs that batch normalisation sees together; without it two are followed."""

_PER_BLOCK: Final = 20  # layers whose random numbers are drawn and kept together
_BLOCKS: Final = 10
_EPS: Final = 1e-5  # of both normalisations, as in torch
_STILL: Final = 1e-12


@dataclass(frozen=True, slots=True)
class DeepNetwork:
    """A deep random network.

    Attributes:
        activation: a name of `gradiometer.lab.elementwise`.
        sigma_w: standard deviation of a weight times sqrt(fan_in).
        sigma_b: standard deviation of a bias.
        depth: layers.
        width: units of each.
        norm: ``none``, ``batch`` (over `BATCH` inputs) or ``layer``.
        skip: whether each layer adds to its input.
    """

    activation: str = "tanh"
    sigma_w: float = 1.0
    sigma_b: float = 0.0
    depth: int = 30
    width: int = 64
    norm: Norm = "none"
    skip: bool = False

    def __post_init__(self) -> None:
        elementwise(self.activation)
        if self.depth < 1 or self.width < 3:
            raise GradiometerError(f"A network has at least 1 layer of 3 units, not {self.depth} of {self.width}.")
        _ = self.field

    @property
    def field(self) -> MeanField:
        """Theory of its plain layer, without normalisation and skip."""
        return MeanField(self.activation, self.sigma_w, self.sigma_b)


# ---- real networks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What was measured, arrays of shape (seeds, depth + 1): the input first, then the output of every layer.

    Attributes:
        signal: log10 of the mean square of a pre-activation (of the stream, with a skip).
        gradient: log10 of the mean square of the loss gradient by it, relative to that at the last layer. The loss is a random
            linear function of the last layer.
        correlation: cosine of two inputs' pre-activations, without centring.
    """

    signal: FloatArray
    gradient: FloatArray
    correlation: FloatArray


def sample(network: DeepNetwork, seeds: int = SEEDS) -> Sampled:
    """Propagate inputs through random networks, and a gradient back by autograd, in float64.

    The backward signal is rescaled at every layer, which a linear map allows, so that it neither under- nor overflows.

    Args:
        network: what is sampled.
        seeds: how many of it; the first ones are the same whatever the weights' scale.
    """
    count = BATCH if network.norm == "batch" else 2
    generator = torch.Generator().manual_seed(1)
    x = _inputs(seeds, count, network.width, generator)
    ends: list[tuple[Tensor, Tensor]] = []
    signal, correlation = [_log_square(x, network)], [_alike(x)]
    for layer in range(network.depth):
        w, b = _normals(network.width, seeds, layer // _PER_BLOCK)
        start = x.requires_grad_()
        end = _layer(network, start, w[layer % _PER_BLOCK].double(), b[layer % _PER_BLOCK].double())
        ends.append((start, end))
        x = end.detach()
        signal.append(_log_square(x, network))
        correlation.append(_alike(x))
    g = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    total = -_log_square(g, network)
    gradient = [torch.zeros(seeds, dtype=torch.float64)]
    for start, end in reversed(ends):
        (g,) = torch.autograd.grad(end, start, g)
        size = _log_square(g, network)
        gradient.append(total + size)
        scale = torch.where(torch.isfinite(size), 10.0 ** (-0.5 * size), 1.0).view(-1, 1, 1)
        total = total + torch.where(torch.isfinite(size), size, 0.0)
        g = g * scale
    return Sampled(_stacked(signal), _stacked(gradient[::-1]), _stacked(correlation))


def _inputs(seeds: int, count: int, width: int, generator: torch.Generator) -> Tensor:
    """Inputs of mean square `START_Q` of which any two have correlation `START_C`, exactly, shape (seeds, count, width)."""
    own = torch.randn(seeds, count, width, generator=generator, dtype=torch.float64)
    shared = torch.randn(seeds, 1, width, generator=generator, dtype=torch.float64)
    x = math.sqrt(START_C) * shared + math.sqrt(1.0 - START_C) * own
    if count > 2:
        return x * (math.sqrt(START_Q * width) / x.norm(dim=2, keepdim=True))
    first = F.normalize(x[:, 0], dim=1)
    second = F.normalize(x[:, 1] - (x[:, 1] * first).sum(1, keepdim=True) * first, dim=1)
    pair = torch.stack([first, START_C * first + math.sqrt(1.0 - START_C**2) * second], dim=1)
    return pair * math.sqrt(START_Q * width)


@lru_cache(maxsize=_BLOCKS)
def _normals(width: int, seeds: int, block: int) -> tuple[Tensor, Tensor]:
    """Standard normal numbers for the weights and biases of some layers, kept because a slider scales the same ones anew.

    Shapes (layers, seeds, width, width) and (layers, seeds, 1, width).
    """
    generator = torch.Generator().manual_seed(1000 * width + block)
    weights = torch.randn(_PER_BLOCK, seeds, width, width, generator=generator)
    return weights, torch.randn(_PER_BLOCK, seeds, 1, width, generator=generator)


def _layer(network: DeepNetwork, h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    act, scale = elementwise(network.activation).function, network.sigma_w / math.sqrt(network.width)
    if network.skip:
        return h + torch.baddbmm(b, act(_normalised(network, h)), w, beta=network.sigma_b, alpha=scale)
    return _normalised(network, torch.baddbmm(b, act(h), w, beta=network.sigma_b, alpha=scale))


def _normalised(network: DeepNetwork, h: Tensor) -> Tensor:
    if network.norm == "none":
        return h
    dim = 1 if network.norm == "batch" else 2
    centred = h - h.mean(dim, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim, keepdim=True) + _EPS)


def _log_square(h: Tensor, network: DeepNetwork) -> Tensor:
    """log10 of the mean square, over all inputs if they share a fate (batch normalisation), else of the first, (seeds,)."""
    part = (h if network.norm == "batch" else h[:, :1]).detach().flatten(1)
    largest = part.abs().amax(dim=1, keepdim=True)
    safe = torch.where(largest > 0.0, largest, 1.0)
    return torch.log10((part / safe).square().mean(dim=1)) + 2.0 * torch.log10(safe[:, 0])


def _alike(h: Tensor) -> Tensor:
    """Mean cosine of two inputs, (seeds,)."""
    part = h.detach()
    units = part / part.abs().amax(dim=2, keepdim=True).clamp_min(1e-300)
    units = units / units.norm(dim=2, keepdim=True)
    count = h.shape[1]
    return (units.sum(dim=1).square().sum(dim=1) - count) / (count * (count - 1))


def _stacked(rows: list[Tensor]) -> FloatArray:
    return torch.stack(rows, dim=1).numpy()


# ---- theory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What theory says of infinitely wide networks, arrays of shape (depth + 1,), as in `Sampled`.

    Attributes:
        signal, gradient, correlation: as measured.
        chi: factor of the squared gradient of every layer, shape (depth,).
        deviation: standard deviation of `gradient` over networks of the given width, in decades; its mean lies
            ``deviation^2 ln 10 / 2`` below `gradient`. NaN with a normalisation or a skip, for which theory has none.
    """

    signal: FloatArray
    gradient: FloatArray
    correlation: FloatArray
    chi: FloatArray
    deviation: FloatArray

    @property
    def middle(self) -> FloatArray:
        """Mean of `gradient` over networks of the given width."""
        return self.gradient - 0.5 * math.log(10.0) * self.deviation**2


@dataclass(frozen=True, slots=True)
class _Place:
    """A signal between two layers: log10 of its variance, and the correlation."""

    t: float
    c: float


@lru_cache(maxsize=256)
def expect(network: DeepNetwork) -> Expected:
    """Mean-field theory of the network, layer by layer."""
    place = _Place(math.log10(START_Q), START_C)
    places, chis, spreads = [place], list[float](), list[float]()
    table = hermite.moments(network.activation)
    while len(chis) < network.depth:
        new, chi, spread = _step(network, table, place, first=not chis)
        still = abs(new.t - place.t) < _STILL and abs(new.c - place.c) < _STILL and bool(chis)
        times = network.depth - len(chis) if still else 1
        places += [new] * times
        chis += [chi] * times
        spreads += [spread] * times
        place = new
    chi = np.array(chis)
    back = np.concatenate([np.cumsum(np.log10(chi)[::-1])[::-1], [0.0]])
    variance = np.concatenate([np.cumsum(np.array(spreads)[::-1])[::-1], [0.0]]) * _settling(network)
    return Expected(
        np.array([p.t for p in places]),
        back,
        np.array([p.c for p in places]),
        chi,
        np.sqrt(variance) / math.log(10.0),
    )


def _step(network: DeepNetwork, table: hermite.Moments, place: _Place, *, first: bool) -> tuple[_Place, float, float]:
    """What comes after a layer, the factor of the squared gradient, and what the layer adds to the variance of its log."""
    w2, b2 = network.sigma_w**2, network.sigma_b**2
    if network.norm == "none":
        at = table.at(place.t)
        q = 10.0 ** min(place.t, 300.0)
        bias = b2 / q
        square, pair, chi = w2 * at.square + bias, w2 * at.pair(place.c) + bias, w2 * at.slope
        spread = (3.0 * at.kurtosis - 1.0) / network.width
        if network.skip:
            square, pair, chi, spread = 1.0 + square, place.c + pair, 1.0 + chi, math.nan
        return _Place(place.t + math.log10(square), _cut(pair / square)), chi, spread
    if network.skip:
        return *_normalised_skip(network, table.at(0.0), place), math.nan
    return *_normalised_plain(network, table.at(0.0), place, first=first), math.nan


def _normalised_plain(network: DeepNetwork, at: hermite.At, place: _Place, *, first: bool) -> tuple[_Place, float]:
    w2, b2 = network.sigma_w**2, network.sigma_b**2
    if network.norm == "layer":
        square = w2 * at.square + b2
        return _Place(0.0, _cut((w2 * at.pair(place.c) + b2) / square)), w2 * at.slope / square * _kept_by_layer(network)
    apart = at.square - at.pair(place.c)
    chi = at.slope / apart * _kept_by_batch() if first else _batch_growth(network.activation)
    return _Place(0.0, -1.0 / (BATCH - 1)), chi


def _normalised_skip(network: DeepNetwork, at: hermite.At, place: _Place) -> tuple[_Place, float]:
    w2, b2, q = network.sigma_w**2, network.sigma_b**2, 10.0**place.t
    batch = network.norm == "batch"
    pair = w2 * at.pair(-1.0 / (BATCH - 1) if batch else place.c) + b2
    new = q + w2 * at.square + b2
    within = q * (1.0 - place.c) if batch else q  # variance that is normalised to 1
    chi = 1.0 + w2 * at.slope / within * (_kept_by_batch() if batch else _kept_by_layer(network))
    return _Place(math.log10(new), _cut((place.c * q + pair) / new)), chi


def _kept_by_layer(network: DeepNetwork) -> float:
    """Share of directions in which layer normalisation lets a gradient through (see `theory.structures.layer_norm_factor`)."""
    return 1.0 - 2.0 / network.width


def _kept_by_batch() -> float:
    """The same for batch normalisation, with the mean of 1 / variance over batches: (B - 2) / (B - 3) (Yang et al. 2019)."""
    return (BATCH - 2) / (BATCH - 3)


@lru_cache(maxsize=16)
def _batch_growth(name: str) -> float:
    return batch_norm_growth(name, BATCH)


def _cut(c: float) -> float:
    return min(1.0, max(-1.0, c))


def _settling(network: DeepNetwork) -> float:
    """By how much the wandering of the signal's variance adds to the spread of the gradient, where it settles in time."""
    if network.norm != "none" or network.skip:
        return math.nan
    field = network.field
    try:
        q = field.q_star
        if network.depth * (1.0 - field.chi_parallel(q)) < 3.0:
            return 1.0
        whole = settled_log_variance(network.activation, network.sigma_w, network.sigma_b, network.width)
    except GradiometerError:  # the variance runs away or settles too slowly: layer by layer is all that there is
        return 1.0
    return whole / log_variance(network.activation, q, network.width)


# ---- in numbers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers that matter.

    Attributes:
        chi: factor of the squared gradient per layer deep in the network, by theory.
        layers: layers after which the norm of the gradient has changed a million times at that rate; infinite if never.
        measured: log10 of the factor of the gradient's norm from the last layer to the input, median network.
        expected: the same by theory, infinitely wide.
        correlation: of two inputs at the last layer, median network.
    """

    chi: float
    layers: float
    measured: float
    expected: float
    correlation: float


def summarise(sampled: Sampled, expected: Expected) -> Summary:
    """The numbers that matter of a network."""
    chi = float(expected.chi[-1])
    log = abs(math.log10(chi)) if chi > 0.0 else math.inf
    return Summary(
        chi=chi,
        layers=12.0 / log if log > 1e-9 else math.inf,
        measured=0.5 * float(np.median(sampled.gradient[:, 0])),
        expected=0.5 * float(expected.gradient[0]),
        correlation=float(np.median(sampled.correlation[:, -1])),
    )
