"""Adapters of the engine interface (`signoff.engine`), one module a kind of model."""
