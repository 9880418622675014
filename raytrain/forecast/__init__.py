"""What a run will need, before anything starts: memory, time, bytes and money."""
