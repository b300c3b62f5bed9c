"""Batches: many requests through one stack, from a file (`stkai batch`) or from a program (`send_all`, `asend_all`).

A mistake that the user of the command can correct is a `ConfigurationError`; a `WriteError` halts the run.
"""
