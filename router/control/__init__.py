"""Tasks that act on workers, with an HTTP client and connections of their own."""
