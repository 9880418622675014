"""The driver: checks, Ray, worker groups, resuming."""
