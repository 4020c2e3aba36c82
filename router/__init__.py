"""The SGLang diffusion router."""

__version__ = "0.1.0"
