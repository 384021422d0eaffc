"""Files that nobody else may read: 0600, in folders of 0700; no symbolic links."""

from __future__ import annotations

import os
from pathlib import Path


def make_private_folder(path: str) -> None:
    """The folders above a file, where they are missing."""
    folder = Path(path).parent
    for part in reversed((folder, *folder.parents)):  # makedirs gives its mode to the last
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: str) -> os.stat_result:
    """Create it if it is missing; one of our own that others may use is closed to them.

    Raises OSError, for a symbolic link too."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        found = os.fstat(descriptor)
        if os.name == "posix" and found.st_mode & 0o077 and found.st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
        return found
    finally:
        os.close(descriptor)
