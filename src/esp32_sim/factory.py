# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready-made boards: complete flash contents for the layouts that exist in the field."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from esp32_sim.bootmodel import (
    ABORTED,
    INVALID,
    NEW,
    PENDING_VERIFY,
    UNDEFINED,
    VALID,
    Select,
)
from esp32_sim.chips import ESP32, chip_of
from esp32_sim.config import FLASH_FILE, BoardConfig
from esp32_sim.flash import SECTOR_BYTES, create_file
from esp32_sim.images import build_app, build_bootloader
from esp32_sim.layouts import (
    DATA_NVS,
    DATA_NVS_KEYS,
    TABLE_OFFSET,
    TYPE_DATA,
    Layout,
    Partition,
    encode_table,
    layout_of,
)
from esp32_sim.nvsmodel import MemoryRegion, NvsStore, NvsValue, with_key

NAMESPACE = "VIAM_NS"
# Of a partition of NVS keys: two of 32 bytes, and a CRC (ESP-IDF, "NVS Encryption").
NVS_KEYS_BYTES = 68

OtadataState = Literal["blank", "first-boot", "updated", "new", "pending", "aborted"]

# OTA state names for the entry that an update left.
_STATES = {
    "updated": UNDEFINED,
    "new": NEW,
    "pending": PENDING_VERIFY,
    "aborted": ABORTED,
    "valid": VALID,
    "invalid": INVALID,
}


def default_nvs(*, version: str = "1.0.0", seed: int = 0) -> dict[str, NvsValue]:
    """What a provisioned robot keeps in VIAM_NS: strings, and blobs of realistic sizes."""
    rng = random.Random(f"nvs/{seed}")

    def token(size: int) -> str:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
        return "".join(rng.choice(alphabet) for _ in range(size))

    return {
        "WIFI_SSID": "workshop",
        "WIFI_PASSWORD": f"wifi-{token(12)}",
        "ROBOT_ID": f"{rng.getrandbits(128):032x}",
        "ROBOT_SECRET": token(43),
        "ROBOT_APP_ADDR": "https://app.viam.com:443",
        "OTA_VERSION": version,
        "ROBOT_CONFIG": rng.randbytes(880),
        "TLS_CERT": rng.randbytes(1400),
        "TLS_PRIV_KEY": rng.randbytes(240),
        "NETWORKS": rng.randbytes(96),
    }


def build_nvs(
    partition_bytes: int,
    values: Mapping[str, NvsValue],
    *,
    namespace: str = NAMESPACE,
    other: Mapping[str, Mapping[str, NvsValue]] | None = None,
    key: str = "",
) -> bytes:
    """An NVS partition as firmware would have written it, key by key.

    other: further namespaces, name to keys; by default what ESP-IDF's Wi-Fi driver keeps. key:
    encrypts the entries.
    """
    cells = bytearray(b"\xff" * partition_bytes)
    store = NvsStore(with_key(MemoryRegion(cells), key))
    store.init()
    spaces = {"phy": {"cal_version": 1143}} if other is None else other
    for space, keys in {**spaces, namespace: values}.items():
        for name, value in keys.items():
            store.set(space, name, value)
    return bytes(cells)


def otadata_entries(
    state: str, slot: int, slots: int, *, has_factory: bool
) -> tuple[bytes | None, bytes | None]:
    """The two entries of otadata for a board that is to run slot number `slot`.

    blank: never written. first-boot: as a bootloader without a factory app leaves it. updated,
    new, pending, valid, aborted, invalid: an update chose `slot`; the sector that it did not
    write names the slot before.
    """
    if state == "blank" or slots == 0:
        return None, None
    if state == "first-boot":
        return Select.make(slot + 1, VALID).encode(), None
    before = Select.make((slot - 1) % slots + 1, VALID if not has_factory else UNDEFINED)
    seq = slot + 1
    while seq <= before.seq:
        seq += slots
    return before.encode(), Select.make(seq, _STATES[state]).encode()


def make_flash(
    layout: str | Layout = "micro-rdk",
    flash_bytes: int | None = None,
    *,
    app: bytes | None = None,
    slot: str | Partition | None = None,
    other_app: bytes | None = None,
    other_slot: str | Partition | None = None,
    nvs: Mapping[str, NvsValue] | None = None,
    more_nvs: Mapping[str, Mapping[str, NvsValue]] | None = None,
    otadata: str | None = None,
    version: str = "1.0.0",
    seed: int = 0,
    table_offset: int = TABLE_OFFSET,
    chip: str = ESP32.name,
    nvs_key: str = "",
) -> bytearray:
    """A complete flash: bootloader, partition table, otadata, phy, NVS, a running app.

    app: an App Image, by default one of project micro-rdk-server in `version`; it goes to
    `slot` (a label, or the partition itself; by default the one that the layout boots first).
    other_app goes to other_slot. nvs: the keys of VIAM_NS in the partition "nvs", by default
    `default_nvs`; an empty mapping leaves the partition blank. more_nvs: those of further NVS
    partitions, by label. otadata: see `otadata_entries`; by default blank where the slot boots
    without it, else updated. chip: what bootloader and default app are built for. nvs_key: as in
    `BoardConfig`.
    """
    if isinstance(layout, str):
        layout = layout_of(layout)
    size = flash_bytes or layout.flash_bytes
    flash = bytearray(b"\xff" * size)
    target = layout.find(slot) if isinstance(slot, str) else slot or layout.first_app()
    image = app if app is not None else build_app(version=version, seed=seed, chip=chip)
    bootloader = build_bootloader(chip=chip, flash_size_code=_size_code(size))
    _place(flash, chip_of(chip).bootloader_offset, bootloader)
    _place(flash, table_offset, encode_table(layout.partitions))
    _place_app(flash, target, image)
    if other_app is not None:
        other = other_slot or _other(layout, target)
        _place_app(flash, layout.find(other) if isinstance(other, str) else other, other_app)
    for partition in layout.partitions:
        if partition.label == "phy_init":
            _place(flash, partition.offset, b"PHYINIT\x00" + bytes(range(128)))
        elif (partition.type, partition.subtype) == (TYPE_DATA, DATA_NVS):
            values = (more_nvs or {}).get(partition.label, {})
            if partition.label == "nvs":
                values = default_nvs(version=version, seed=seed) if nvs is None else nvs
            if values:
                _place(flash, partition.offset, build_nvs(partition.size, values, key=nvs_key))
        elif nvs_key and (partition.type, partition.subtype) == (TYPE_DATA, DATA_NVS_KEYS):
            noise = random.Random(nvs_key).randbytes(NVS_KEYS_BYTES)
            _place(flash, partition.offset, noise)
        elif partition.label == "otadata":
            _place_otadata(flash, layout, partition, target, otadata)
    return flash


def _place_otadata(
    flash: bytearray, layout: Layout, partition: Partition, target: Partition, state: str | None
) -> None:
    slots = layout.slots()
    if target not in slots:
        return
    index = slots.index(target)
    has_factory = layout.first_app() not in slots
    if state is None:
        state = "blank" if target == layout.first_app() else "updated"
    entries = otadata_entries(state, index, len(slots), has_factory=has_factory)
    for i, entry in enumerate(entries):
        if entry is not None:
            _place(flash, partition.offset + i * SECTOR_BYTES, entry)


def _other(layout: Layout, target: Partition) -> Partition:
    return next(slot for slot in layout.slots() if slot != target)


def _place_app(flash: bytearray, partition: Partition, image: bytes) -> None:
    if len(image) > partition.size:
        raise ValueError(f"{len(image)} bytes do not fit into {partition.label}")
    _place(flash, partition.offset, image)


def _place(flash: bytearray, offset: int, data: bytes) -> None:
    if offset + len(data) > len(flash):
        raise ValueError(f"{len(data)} bytes at {offset:#x} do not fit into the flash")
    flash[offset : offset + len(data)] = data


def _size_code(size_bytes: int) -> int:
    """The image header's code for a flash size: 1 MiB is 0, each doubling one more."""
    return (size_bytes >> 20).bit_length() - 1


def create_board(
    directory: Path, flash: bytes | bytearray, config: BoardConfig | None = None
) -> None:
    """Put a board's flash and settings into a directory, ready to be served."""
    (config or BoardConfig()).save(directory)
    create_file(directory / FLASH_FILE, bytes(flash))
