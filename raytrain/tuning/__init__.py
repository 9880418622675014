"""Sweeps: many runs over one pool of workers."""
