"""What everything that faces clients shares: server, relay and the router's own endpoints."""
