"""What a person sees in a terminal: one module a command."""
