"""What the benchmarks share: servers as processes of their own, load, measuring, tables."""
