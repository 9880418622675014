"""Population-based training: which trials exploit which, and with which values they explore."""
