"""Estimates the memory of a model and its training, and chooses the ZeRO stage that fits."""
