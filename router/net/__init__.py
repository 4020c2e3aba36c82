"""The network, for relay and control: who a peer is, and which routers a request has passed."""
