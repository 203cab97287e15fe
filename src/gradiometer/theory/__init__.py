"""Mean-field theory of signals and gradients at initialisation: numpy and scipy only, never torch."""

from gradiometer.theory.activations import ACTIVATIONS as ACTIVATIONS
from gradiometer.theory.activations import Activation as Activation
from gradiometer.theory.activations import activation as activation
from gradiometer.theory.criticality import CriticalPoint as CriticalPoint
from gradiometer.theory.criticality import critical_initialisation as critical_initialisation
from gradiometer.theory.criticality import edge_at as edge_at
from gradiometer.theory.criticality import edge_of_chaos as edge_of_chaos
from gradiometer.theory.criticality import half_stable_points as half_stable_points
from gradiometer.theory.meanfield import FixedPoint as FixedPoint
from gradiometer.theory.meanfield import MeanField as MeanField
from gradiometer.theory.quadrature import expectation as expectation
from gradiometer.theory.quadrature import pair_expectation as pair_expectation
