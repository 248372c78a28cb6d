# SPDX-License-Identifier: GPL-3.0-or-later
"""A board's NVS on this computer's disk while its flash is written anew.

    STATE_DIR/kept-nvs/<MAC without colons>/<partition>.bin

It holds the board's credentials: folders have mode 700, files 600. It is removed when the
board was seen to start with its keys, and used again where the writing was interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from ota_service.errors import OtaError

_FOLDER = "kept-nvs"


class KeptNvs:
    """What is kept of one board."""

    def __init__(self, state_dir: Path, mac: str) -> None:
        self.folder = state_dir / _FOLDER / mac.replace(":", "")

    def save(self, partitions: Mapping[str, bytes]) -> None:
        """Keep these partitions, label -> contents, in place of those kept before.

        On disk when this returns. Raises OtaError disk-full, or internal where that fails.
        """
        try:
            self.folder.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
            for label, data in partitions.items():
                self._write(self.folder / f"{quote(label, safe='')}.bin", data)
            names = {f"{quote(label, safe='')}.bin" for label in partitions}
            for path in self.folder.iterdir():
                if path.name not in names:
                    path.unlink()
            _sync(self.folder)
            _sync(self.folder.parent)
        except OSError as error:
            raise OtaError(
                "disk-full" if error.errno == 28 else "internal",
                f"The board's NVS cannot be kept in {self.folder}: {error.strerror}. Nothing was "
                "written to the board.",
                remedy="Free some space there, or use another state folder.",
            ) from None

    def load(self) -> dict[str, bytes]:
        """What is kept, label -> contents; empty where nothing is."""
        found = {}
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.glob("*.bin")):
                found[unquote(path.stem)] = path.read_bytes()
        return found

    def remove(self) -> None:
        """The board has its keys again: forget them here."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # where it was the last

    def _write(self, path: Path, data: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
