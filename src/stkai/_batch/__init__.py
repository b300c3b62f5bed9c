"""Batches: `stkai batch`, `send_all` and `asend_all`.

What a user of the command can mend is a `ConfigurationError`; a `WriteError` halts the run.
"""
