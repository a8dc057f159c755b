"""The digest of a model, by which a change says from which state of the model it was made."""

import hashlib

import msgspec

from signoff.core.model import Model, without_keys


def model_digest(model: Model) -> str:
    """Return the SHA-256 of a model in hexadecimal; keys of upstreams do not count."""
    # Decoded as the store does it, since a duration of 5 and one of 5.0 are equal.
    stored = msgspec.json.decode(msgspec.json.encode(without_keys(model)), type=Model)
    return hashlib.sha256(msgspec.json.encode(stored)).hexdigest()
