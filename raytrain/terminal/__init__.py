"""What a person sees in a terminal: one module per command."""
