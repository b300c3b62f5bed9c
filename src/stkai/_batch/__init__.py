"""Batches: many requests through one stack, from a file (`stkai batch`) or from a program (`send_all`, `asend_all`).

What a user of the command can mend is a `ConfigurationError`; a `WriteError` halts the run.
"""
