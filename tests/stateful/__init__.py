"""Stateful tests: a store and its model take the same steps, and must agree after each."""
