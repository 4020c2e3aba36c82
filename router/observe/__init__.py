"""Observers of the pool: they are told what happened and change nothing."""
