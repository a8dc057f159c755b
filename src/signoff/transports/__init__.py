"""Adapters of the transport interface (`signoff.transport`) over FastStream, imported when a stream needs them."""
