"""Figures: plain functions from a `Trace` (and findings) to plotly Figures, used by report, page and notebook alike."""
