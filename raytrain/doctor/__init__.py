"""`raytrain doctor`: what was found on a cluster's nodes, and what to fix."""
