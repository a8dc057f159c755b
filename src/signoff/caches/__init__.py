"""Caches: where signed-off answers are kept to be given again, a file each."""
