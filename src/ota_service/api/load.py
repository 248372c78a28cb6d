# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware as programs name it: a url, a file, or what was loaded already."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from ota_service.errors import OtaError
from ota_service.firmware.cache import Cache, Known
from ota_service.firmware.check import Firmware, check_firmware
from ota_service.firmware.files import FIRMWARE_BYTES
from ota_service.firmware.local import find_file, read_firmware
from ota_service.firmware.manifest import is_json, parse_manifest
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from ota_service.module.folders import default_cache_dir

Source = Firmware | Path | str
"""A firmware: loaded, or the path of an App Image or a manifest (or of a folder with a
`manifest.json`, or with just one `*.bin`), or its http or https address."""


def is_url(source: Source) -> bool:
    """Whether it has to be downloaded."""
    return isinstance(source, str) and "://" in source


async def load_firmware(
    source: Path | str,
    *,
    sha256: str | None = None,
    ca_file: Path | None = None,
    cache_dir: Path | None = None,
) -> Firmware:
    """The App Image at a path or an http(s) url, checked as a whole. A path may be a folder's with
    just one `*.bin`.

    sha256: the digest that the file must have, 64 hex digits. ca_file: a further certificate
    authority. cache_dir: where downloads are kept; by default `$VIAM_MODULE_DATA`, without that
    `~/.cache/ota-service`. Raises OtaError: what keeps it from being had, and every reason why a
    board could not start it (`not-an-image`, `image-corrupt`, `merged-binary`, ..), or why this
    host does not take it (`signature-untrusted`, ..: docs/trust.md).
    """
    supply = Supply(cache_dir or default_cache_dir())
    if not is_url(source):
        path = await asyncio.to_thread(Path(source).absolute)
        asked, grants = await supply.granted(str(path))
        check = partial(check_firmware, sha256=sha256, policies=asked, grants=grants)
        firmware = check(await asyncio.to_thread(_read, path))
        return replace(firmware, source=str(path)) if grants else firmware
    target = Target(str(source), "", sha256.lower() if sha256 else None)
    firmware = await supply.get(target, ca_file=str(ca_file) if ca_file else None)
    from_there = any(one.repositories is not None for one in firmware.asked)
    return replace(firmware, source=target.url) if from_there else firmware


def _read(path: Path) -> bytes:
    return read_firmware(find_file(path), FIRMWARE_BYTES)[0]


def stock(source: Firmware | Path | str, version: str | None, sha256: str | None,
          cache_dir: Path) -> Target:  # fmt: skip
    """Lay a firmware that is here into the cache, where its digest finds it without a download; a
    manifest is read where it lies.

    What the host asks of it is looked at when it is taken from there. version: None: the one in
    its app descriptor, or in the manifest. Blocks. Raises OtaError.
    """
    if isinstance(source, Firmware):
        firmware, url = source, source.source or f"sha256:{source.sha256}"
        if sha256 is not None and sha256.lower() != source.sha256:
            raise OtaError("digest-mismatch", f"The firmware's SHA-256 is {source.sha256}.")
    else:
        path = Path(os.path.abspath(source))
        data, url = _read(path), path.as_uri()
        if is_json(data):
            return Target(str(path), version or parse_manifest(data).version, sha256)
        firmware = check_firmware(data, sha256=sha256, policies=())
    version = version or firmware.image.descriptor.version
    cache = Cache(cache_dir)
    digest = cache.keep(firmware.file)
    cache.remember(url, Known(digest, version))
    return Target(url, version, digest)
