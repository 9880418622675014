"""Metrics of runs and sweeps for Prometheus, exported through Ray: their names, their values, the exporter."""
