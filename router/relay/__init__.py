"""The data plane: bytes between clients and workers, unchanged and in bounded memory."""
