"""From a laptop to a cluster: the cluster files, checked by the code of Ray that will read them."""
