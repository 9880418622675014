"""`raytrain doctor`: examines the nodes of a cluster and says what to fix."""
