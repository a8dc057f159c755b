"""The OpenAI-compatible API: routes, responses and errors."""
