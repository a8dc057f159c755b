"""Infrastructure that several packages share, such as the SSRF guard, secret storage, logging, and tracing."""
