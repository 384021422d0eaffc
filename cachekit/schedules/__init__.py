"""Scheduled invalidation: at planned times, once for all processes that share a far tier."""

from .scheduler import Schedule, Scheduler

__all__ = ["Schedule", "Scheduler"]
