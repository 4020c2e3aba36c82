"""What the router knows about its workers. No I/O, no clock, no logging: events in, effects out."""
