"""ProtoLLM's client as its users call it: print the answers to one prompt at both routes as JSON.

Usage: python protollm_client.py URL TOKEN MODEL PROMPT
"""

import json
import sys

from protollm_sdk.jobs.llm_api import LLMAPI
from protollm_sdk.models.job_context_models import ChatCompletionModel, PromptMeta, PromptModel

url, token, model, text = sys.argv[1:]
api = LLMAPI(url.removeprefix("http://"))
api.client.headers["authorization"] = f"Bearer {token}"
prompt = PromptModel(job_id="1", meta=PromptMeta(model=model), content=text)
chat = ChatCompletionModel.from_prompt_model(prompt)
answers = [api.inference(prompt).content, api.chat_completion(chat).content]
print(json.dumps({"answers": answers}))  # noqa: T201 -- its output
