"""Which samples each step trains on, how they are split into micro-batches, and what is due when.

Pure functions: no Ray, no torch.
"""
