"""A store and a model of it, moved side by side: after every step they must agree."""
