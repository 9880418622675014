"""From a cloud's notice that it takes a machine back to the drain of its Ray node."""
