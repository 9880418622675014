"""A trained model behind HTTP: the requests, the queue that joins them into batches, and replicas on Ray Serve."""
