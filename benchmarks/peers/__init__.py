"""The peers' side of the benchmarks: what people would use instead, at its best setting."""
