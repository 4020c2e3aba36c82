"""Observers of the pool: they receive its events and change nothing."""
