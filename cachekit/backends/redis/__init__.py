"""Redis, Valkey, Sentinel and Cluster as one backend."""

from .backend import RedisBackend

__all__ = ["RedisBackend"]
