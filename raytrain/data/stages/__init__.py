"""Stages of PREPARE that choose or change rows, one module each. No Ray, no torch."""
