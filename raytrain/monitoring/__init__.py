"""Exports metrics of runs and sweeps to Prometheus through Ray's own metrics."""
