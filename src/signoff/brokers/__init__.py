"""Adapters of the broker interface (`signoff.broker`)."""
