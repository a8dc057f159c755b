"""Files, and batches of requests that are answered in the background."""
