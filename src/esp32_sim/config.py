# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated board is: the settings that it is created with, as a value and as a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esp32_sim.chips import ESP32, Chip, chip_of
from esp32_sim.layouts import TABLE_OFFSET

CONFIG_FILE = "board.json"
FLASH_FILE = "flash.bin"

# How long EN takes to rise after its transistor lets go (10 kOhm, about 1 uF, and the threshold
# of 0.75 VDD). It has to outlast the moment in which esptool's reset sequence has both lines
# asserted (that is, none pulled), and to end before the sequence releases IO0 50 ms later.
EN_RISE_S = 0.025

# Stand for what the chip usually has.
USUAL_REVISION = (-1, -1)
USUAL_PACKAGE = -1


@dataclass(frozen=True)
class BoardConfig:
    """One simulated board.

    chip: its name, such as "esp32c3" (`chips.CHIPS`). mac: six bytes as text, "24:0a:c4:00:00:01".
    revision: (major, minor) of the chip; by default what such boards usually have, and the same
    with package. block_revision: of its eFuse blocks. key_purposes: of its key blocks (not on the
    ESP32). secure_download: it is in secure download mode (not on the ESP32). download_disabled:
    there is no download mode. download_form: "uart0" and "usb" where the ROM waits at one of both
    only. secure_boot_keys: digests of the keys that Secure Boot v2 trusts, in hex;
    secure_boot_revoked: which of them (0 to 2) are not to be trusted any more, and
    secure_boot_aggressive whether the ROM may add to that (not on the ESP32). flash_crypt_cnt:
    eFuse count, an odd number of bits means encrypted. rollback: whether the bootloader was built
    with app rollback. anti_rollback: and with anti-rollback, too;
    secure_version: what the eFuses count for it. bootloader_log: "none" for one that prints
    nothing, as the Arduino core's; the ROM's lines stay. table_offset: where the bootloader looks
    for the partition table. nvs_key: of an NVS whose entries are encrypted while the flash is plain
    (`nvsregion.EncryptedRegion`); a chip with key blocks then has one for HMAC, from which ESP-IDF
    5.2 and later derive it. reset_lines: whether DTR and RTS reach EN and IO0; where not, only
    people reset the board (`BoardControl.reset`). usb: how it is attached: "bridge" (a UART behind
    a USB bridge), or by the chip's own port, "serial-jtag" or "otg" (`usb`). usb_leaves_at: after
    which resets its own port is gone from the bus for a moment: "hard-resets", those that reset the
    port as well, or "every-reset". usb_back_s: for how long. usb_name: the folder beside the
    board's under whose name it is back; "": its own. timed: wire, bridge and flash take their real
    time. erase_factor: how much longer than their data sheets say erases take, where boards are
    timed. time_scale: seconds of an app's behaviour are multiplied by it. resets_on_open: opening
    the port resets the board, as with drivers that move DTR and RTS one after the other. max_baud:
    above it the wire carries noise; 0: it holds every speed.
    crystal_estimate: what the ROM takes its crystal for, as a part of what it is: a speed that it
    is asked for comes out as wrong (esptool, targets/esp32.py).
    """

    chip: str = ESP32.name
    mac: str = "24:0a:c4:00:00:01"
    revision: tuple[int, int] = USUAL_REVISION
    package: int = USUAL_PACKAGE
    block_revision: tuple[int, int] = (0, 0)
    key_purposes: tuple[int, ...] = ()
    secure_download: bool = False
    download_disabled: bool = False
    download_form: Literal["joint", "uart0", "usb"] = "joint"
    flash_crypt_cnt: int = 0
    secure_boot_v1: bool = False
    secure_boot_v2: bool = False
    secure_boot_keys: tuple[str, ...] = ()
    secure_boot_revoked: tuple[int, ...] = ()
    secure_boot_aggressive: bool = False
    download_encrypt_disabled: bool = False
    rollback: bool = False
    anti_rollback: bool = False
    secure_version: int = 0
    nvs_key: str = ""
    bootloader_log: Literal["info", "none"] = "info"
    table_offset: int = TABLE_OFFSET
    reset_lines: bool = True
    usb: Literal["bridge", "serial-jtag", "otg"] = "bridge"
    usb_leaves_at: Literal["hard-resets", "every-reset"] = "hard-resets"
    usb_back_s: float = 0.3
    usb_name: str = ""
    timed: bool = False
    bridge_latency_ms: float = 1.0
    erase_factor: float = 1.0
    time_scale: float = 1.0
    en_rise_s: float = EN_RISE_S
    boots_at_start: bool = True
    resets_on_open: bool = False
    max_baud: int = 0
    crystal_estimate: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Fill in what the chip usually has; raises ValueError for what no chip has."""
        if self.revision == USUAL_REVISION:
            object.__setattr__(self, "revision", self.chip_facts.revision)
        if self.package == USUAL_PACKAGE:
            object.__setattr__(self, "package", self.chip_facts.package)
        if self.usb not in ("bridge", *self.chip_facts.usb):
            raise ValueError(f"an {self.chip_facts.title} has no USB port of the kind {self.usb!r}")

    @property
    def chip_facts(self) -> Chip:
        """What is known of its chip."""
        return chip_of(self.chip)

    @property
    def boot_keys(self) -> tuple[bytes, ...] | None:
        """Digests of the keys that Secure Boot v2 trusts; None where it is off."""
        if not self.secure_boot_v2:
            return None
        digests = map(bytes.fromhex, self.secure_boot_keys[: self.chip_facts.signature_blocks])
        return tuple(d for i, d in enumerate(digests) if i not in self.secure_boot_revoked)

    def save(self, directory: Path) -> None:
        """Write it beside the flash."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, directory: Path) -> BoardConfig:
        """Read it back; a directory without one is a default board."""
        try:
            values = json.loads((directory / CONFIG_FILE).read_text())
        except FileNotFoundError:
            return cls()
        return cls(**from_json(values))

    def mac_bytes(self) -> bytes:
        """The MAC as six bytes; raises ValueError for anything else."""
        mac = bytes.fromhex(self.mac.replace(":", ""))
        if len(mac) != 6:
            raise ValueError(f"{self.mac!r} is not a MAC")
        return mac


def from_json(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them, with tuples for its lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
