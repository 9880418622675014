"""From source files to a worker's batches, in the order of the flow."""
