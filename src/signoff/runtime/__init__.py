"""State of one process: caches of the store's data, leases, watched jobs, endpoints and calls in flight."""
