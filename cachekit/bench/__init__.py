"""The strategy benchmark: one workload over backends and strategies, against a real source."""
