"""Backends: bytes by key. Driver errors end here. Each is imported when it is first used."""
