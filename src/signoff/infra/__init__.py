"""Infrastructure that several packages share: SSRF guard, secret storage, Redis client, logging, memory, tasks."""
