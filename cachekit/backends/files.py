"""Files that nobody else may read: 0600, in folders of 0700; no symbolic links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def make_private_folder(path: str) -> None:
    """The folders above a file, where they are missing."""
    folder = Path(path).parent
    for part in reversed((folder, *folder.parents)):  # makedirs gives its mode to the last
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: str) -> os.stat_result:
    """Create it if it is missing; one of our own that others may use is closed to them.

    One that exists is never opened here: closing any descriptor of a file drops all locks of the
    process on it, those of SQLite's connections too. Raises OSError, also for what is no regular
    file: a link, a folder, a device."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, flags, 0o600))
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "is a symbolic link", path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", path)
    if os.name == "posix" and found.st_mode & 0o077 and found.st_uid == os.geteuid():
        os.chmod(path, 0o600)
    return found
