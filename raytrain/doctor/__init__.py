"""`raytrain doctor`: what a cluster's nodes are found to be, and what to mend."""
