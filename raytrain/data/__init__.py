"""From source files to a worker's batches; modules in the order in which data flows."""
