"""Turns a cloud's notice that it will reclaim a machine into a drain of the machine's Ray node."""
