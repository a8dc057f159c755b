"""Functions that pipelines call: `builtins.py`, and any `custom_*.py` beside it or in the configured folder.

A custom function is plain Python, and may call other registered functions:

    from signoff.funcs import call

    def shout(text: str) -> str:
        return call("uppercase", text) + "!"
"""

from signoff.funcs.context import call, names_of_prompts, time_now

__all__ = ["call", "names_of_prompts", "time_now"]
