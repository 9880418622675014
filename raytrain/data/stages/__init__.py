"""What happens to rows between reading and encoding, one file per stage. No Ray, no torch."""
