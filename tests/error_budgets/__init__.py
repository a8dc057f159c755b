"""Simulation of error budgets on texts that many raters have marked, with the code of the product."""
