"""From the user's machine to a cluster's job server: what is sent, how it is started, and how it is followed."""
