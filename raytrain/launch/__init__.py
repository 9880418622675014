"""From the user's machine to a cluster: the files that start one, checked, and jobs, sent and followed."""
