"""What a process holds beside the keepers: copies, leases, waits, and calls in flight."""
