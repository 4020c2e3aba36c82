"""Shared by all code that faces clients: server, relay and the router's own endpoints."""
