"""Ray Core: connections, nodes and actors. Private names of Ray are used only here, in `elastic/ray_train*.py` and in
`launch/cluster_nodes.py`."""
