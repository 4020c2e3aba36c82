"""The router's own endpoints: parse, call one part, answer."""
