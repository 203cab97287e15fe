"""Figures of the lab: plain functions from the results of `gradiometer.lab` to plotly Figures and tables."""
