"""What Prometheus is told of runs and sweeps, through Ray's own metrics: the names, what lines become, the telling."""
