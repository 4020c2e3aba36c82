"""Tasks that act on workers, over an HTTP client and connections of their own."""
