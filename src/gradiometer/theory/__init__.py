"""Mean-field theory of signals and gradients at initialisation: numpy and scipy only, never torch."""
