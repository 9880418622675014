"""`raytrain watch`: the labels of texts as they arrive, the share of each, and an alert when a rule begins to hold."""
