"""Ray Core: connecting, nodes and actors. Private names of Ray are used here, in `elastic/ray_train*.py` and in
`launch/cluster_nodes.py` only."""
