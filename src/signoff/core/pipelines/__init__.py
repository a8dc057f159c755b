"""Pure rules of prompts, functions and pipelines: grammar, checks, rendering, coercion."""
