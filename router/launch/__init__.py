"""Starting workers, watching their processes and ending them."""
