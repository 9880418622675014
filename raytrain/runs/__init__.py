"""One command's life: checks, plan, Ray, workers, report."""
