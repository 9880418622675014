"""Sweeps: many runs that share one pool of workers."""
