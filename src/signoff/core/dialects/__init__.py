"""Dialects: the requests, answers and streams of OpenAI's and Anthropic's APIs, and translations between them."""
