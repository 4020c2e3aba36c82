"""What the relay and control share of the network: who a peer is, and the way of a request."""
