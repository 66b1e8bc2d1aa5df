"""Files written whole or not at all, and paths between them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from merc_model.errors import UserError


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make and fill a neighbour of ``path``, then move it there in one step; nothing may stand there yet.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def relative(path: str | Path, folder: Path) -> str:
    """``path`` as it is found from ``folder``, with slashes; the whole path where no way leads from there."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return Path(path).absolute().as_posix()


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a neighbour of ``path``, then move it into place in one step.

    Raises:
        UserError: the folder cannot be written to, or the disk is full; what stood at ``path`` is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not path.is_file():  # the move would put a file where a device stood
            raise UserError(f"{path}: cannot be written: a folder or device, not a file")
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
