"""Bytes: what a model and its training take, and which ZeRO stage fits."""
