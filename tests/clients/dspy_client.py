"""DSPy as an application uses it: print the answer to one prompt as JSON.

Usage: python dspy_client.py URL TOKEN MODEL PROMPT
"""

import json
import sys

import dspy

url, token, model, prompt = sys.argv[1:]
lm = dspy.LM(f"openai/{model}", api_base=f"{url}/v1", api_key=token, cache=False)
[answer] = lm(prompt)
print(json.dumps({"text": answer}))  # noqa: T201 -- its output
