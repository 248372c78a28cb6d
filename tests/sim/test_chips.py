# SPDX-License-Identifier: GPL-3.0-or-later
"""Every chip is what esptool, espefuse and its ROM's log say that it is, and boots its own apps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from esptool.bin_image import LoadFirmwareImage
from esptool.targets import CHIP_DEFS
from esptool.util import FatalError, UnsupportedCommandError

from esp32_sim.bootmodel import boot
from esp32_sim.chip import Registers, key_purposes
from esp32_sim.chips import CHIP_NAMES, CHIPS, chip_of
from esp32_sim.config import BoardConfig
from esp32_sim.factory import make_flash
from esp32_sim.flash import NorFlash
from esp32_sim.images import Behaviour, build_app, build_bootloader
from esp32_sim.launch_esptool import configure_esptool
from esp32_sim.process import RunningBoard, SimBoard
from tests.sim.conftest import StartBoard, run_esptool

pytestmark = pytest.mark.slow

MIB = 1 << 20
NEWER = tuple(name for name in CHIP_NAMES if name != "esp32")
EACH = pytest.mark.parametrize("chip", CHIP_NAMES)
EACH_NEWER = pytest.mark.parametrize("chip", NEWER)
# Where a board runs, the quick tests take one chip of each architecture.
EACH_BOARD = pytest.mark.parametrize(
    "chip",
    [
        pytest.param(name, marks=() if name in ("esp32s3", "esp32c3") else pytest.mark.slow)
        for name in CHIP_NAMES
    ],
)
STUB = pytest.mark.parametrize("stub", [(), ("--no-stub",)], ids=["stub", "rom"])

# What esptool and the chips' users call them, in the revision that boards usually have.
DESCRIPTIONS = {
    "esp32s2": "ESP32-S2 (revision v1.0)",
    "esp32s3": "ESP32-S3 (QFN56) (revision v0.2)",
    "esp32c3": "ESP32-C3 (QFN32) (revision v0.4)",
    "esp32c6": "ESP32-C6 (QFN40) (revision v0.1)",
    "esp32h2": "ESP32-H2 (revision v0.1)",
}

Connect = Callable[..., Any]


@pytest.fixture
def connect_to(connect: Connect) -> Connect:
    """`connect`, with esptool's class for the board's chip."""

    def connect_chip(board: RunningBoard, chip: str, *, stub: bool = True) -> Any:
        return connect(board, stub=stub, kind=CHIP_DEFS[chip])

    return connect_chip


def esptool_on(chip: str, **settings: Any) -> Any:
    """esptool's object for a chip whose registers are ours, without a wire between them."""
    registers = Registers(BoardConfig(chip=chip, **settings), NorFlash(bytearray(MIB)))
    kind: Any = CHIP_DEFS[chip]
    esp = kind.__new__(kind)
    esp.read_reg = registers.read
    esp.write_reg = lambda address, value, *_, **__: registers.write(address, value)
    esp.cache = {"security_info": None}
    esp.secure_download_mode = False
    esp.get_security_info = lambda: {"flags": 0}
    return esp


# --- esptool's command


@pytest.mark.slow
@EACH_NEWER
@STUB
def test_chip_and_flash_are_identified(start: StartBoard, chip: str, stub: tuple[str, ...]) -> None:
    """Chip, revision, MAC and flash size."""
    board = start(chip=chip, layout="guide")
    said = run_esptool(board.url, *stub, "flash-id").stdout
    assert DESCRIPTIONS[chip] in said
    assert board.mac in said
    assert "Detected flash size: 8MB" in said
    assert "Stub flasher running" in said or stub
    assert "WARNING" not in said.replace("WARNING: DEPRECATED", "")


@pytest.mark.slow
@EACH_NEWER
@pytest.mark.parametrize("command", [("read-mac",), ("--no-stub", "chip-id")])
def test_mac(start: StartBoard, chip: str, command: tuple[str, ...]) -> None:
    """It stands elsewhere than on the ESP32."""
    board = start(chip=chip, config={"mac": "7c:df:a1:aa:bb:cc"})
    assert "7c:df:a1:aa:bb:cc" in run_esptool(board.url, *command).stdout


@pytest.mark.slow
@EACH_NEWER
@STUB
def test_write_and_read_flash(
    start: StartBoard, tmp_path: Path, chip: str, stub: tuple[str, ...]
) -> None:
    """What esptool writes over other data stands in the flash, and it reads the same back."""
    board = start(chip=chip, layout="guide")
    image = build_app(size_bytes=20_000, seed=9, chip=chip)
    file, back = tmp_path / "app.bin", tmp_path / "back.bin"
    file.write_bytes(image)
    board.control.write_flash(0x310000, b"\x00" * 0x8000)
    run_esptool(board.url, *stub, "write-flash", "0x310000", str(file))
    assert board.control.read_flash(0x310000, len(image)) == image
    run_esptool(board.url, *stub, "read-flash", "0x310100", "2500", str(back))
    assert back.read_bytes() == image[0x100 : 0x100 + 2500]


@pytest.mark.slow
@EACH_NEWER
def test_get_security_info(start: StartBoard, chip: str) -> None:
    """ROM and stub tell secure boot, encryption, what the keys are for, and the chip's id."""
    board = start(
        chip=chip, config={"secure_boot_v2": True, "flash_crypt_cnt": 1, "key_purposes": (9, 4)}
    )
    for stub in ((), ("--no-stub",)):
        said = run_esptool(board.url, *stub, "get-security-info").stdout
        assert "Secure Boot: Enabled" in said
        assert "Flash Encryption: Enabled" in said
        assert "Key Purposes: (9, 4, 0, 0, 0, 0, 0)" in said
        assert (f"Chip ID: {chip_of(chip).id}" in said) is (chip != "esp32s2")


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["esp32s2", "esp32s3", "esp32c3"])
def test_hard_reset_by_the_watchdog(start: StartBoard, chip: str) -> None:
    """What esptool does over USB: the always-on part's watchdog brings the app back."""
    board = start(chip=chip)
    since = board.control.wait_for("app")["number"]
    run_esptool(board.url, "--after", "watchdog-reset", "read-mac")
    board.control.wait_for("reset", since=since, reason=chip_of(chip).resets["rtc-watchdog"])
    board.control.wait_for("app", since=board.control.wait_for("stub", since=since)["number"])


# --- eFuses


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # espefuse uses an old click name
@EACH_NEWER
def test_efuses(tmp_path: Path, chip: str) -> None:
    """Each field stands where espefuse, which has tables of its own, looks for it."""
    from espefuse import init_commands  # type: ignore[import-untyped]

    esp = esptool_on(
        chip, mac="7c:df:a1:12:34:56", revision=(1, 3), block_revision=(1, 2),
        key_purposes=(0, 1, 4, 9, 10, 11), flash_crypt_cnt=7, secure_boot_v2=True,
        secure_download=True, download_encrypt_disabled=True, download_disabled=True,
        secure_version=5,
    )  # fmt: skip
    file = tmp_path / "efuses.json"
    commands = init_commands(esp=esp)
    with file.open("w") as out:
        commands.summary(format="json", file=out)
    fields = {name: entry["value"] for name, entry in json.loads(file.read_text()).items()}
    assert fields["MAC"].startswith("7c:df:a1:12:34:56")
    assert "OK" in fields["MAC"]
    revision = ("WAFER_VERSION_MAJOR", "BLK_VERSION_MAJOR", "BLK_VERSION_MINOR")
    assert [commands.efuses[name].get_raw() for name in revision] == [1, 1, 2]
    assert esp.get_chip_revision() == 103
    assert [esp.get_key_block_purpose(i) for i in range(6)] == [0, 1, 4, 9, 10, 11]
    assert fields["KEY_PURPOSE_3"] == "SECURE_BOOT_DIGEST0"
    assert fields["SPI_BOOT_CRYPT_CNT"] == "Enable"
    assert fields["SECURE_BOOT_EN"] is True
    assert fields["ENABLE_SECURITY_DOWNLOAD"] is True
    assert fields["DIS_DOWNLOAD_MODE"] is True
    assert fields["DIS_DOWNLOAD_MANUAL_ENCRYPT"] is True
    assert int(fields["SECURE_VERSION"]).bit_count() == 5


@EACH_NEWER
def test_encryption_and_secure_boot_are_off_by_default(chip: str) -> None:
    """A board that says nothing has neither; an encrypted one has a key for it."""
    esp = esptool_on(chip)
    assert esp.get_flash_encryption_enabled() is False
    assert not esp.get_secure_boot_enabled()
    encrypted = esptool_on(chip, flash_crypt_cnt=1)
    assert encrypted.get_flash_encryption_enabled() is True
    assert encrypted.is_flash_encryption_key_valid() is True


@pytest.mark.parametrize(
    "chip", ["esp32c3", *(pytest.param(n, marks=pytest.mark.slow) for n in NEWER if n != "esp32c3")]
)
def test_secure_download_mode(start: StartBoard, chip: str) -> None:
    """The ROM says what it is, and neither reads registers nor takes code."""
    from esptool import cmds

    configure_esptool()
    board = start(chip=chip, config={"secure_download": True})
    with cmds.detect_chip(board.url) as esp:
        assert CHIPS[chip].title == esp.CHIP_NAME
        assert esp.secure_download_mode
        with pytest.raises(UnsupportedCommandError):
            esp.read_reg(0x40001000)
        esp.flash_spi_attach(0)
        esp.flash_set_parameters(8 * MIB)
        esp.flash_defl_begin(4096, 100, 0x310000)


def test_download_mode_disabled(start: StartBoard, open_port: Callable[..., Any]) -> None:
    """The chip goes nowhere until the next reset; which words its ROM has for that is not known."""
    board = start(chip="esp32c3", config={"download_disabled": True, "reset_lines": False})
    since = board.control.wait_for("app")["number"]
    port = open_port(board.url)
    board.control.reset(boot_button=True)
    port.read_until(b"DOWNLOAD(USB/UART0/1))\r\n")
    assert board.control.events(since=since)[-1]["event"] == "reset"
    board.control.reset()
    board.control.wait_for("app", since=since)


def test_the_s3_starts_the_stub_under_secure_boot(start: StartBoard, connect_to: Connect) -> None:
    """Its ROM does not by itself; esptool leads it there by a pointer in RAM."""
    board = start(chip="esp32s3", config={"secure_boot_v2": True})
    esp = connect_to(board, "esp32s3")
    assert esp.IS_STUB
    assert board.control.state()["state"] == "stub"


# --- registers, speeds, large flash


@EACH_BOARD
def test_programming_by_registers(start: StartBoard, connect_to: Connect, chip: str) -> None:
    """esptool's own register path meets the flash: write enable, page program, status, id."""
    board = start(chip=chip, layout="guide")
    esp = connect_to(board, chip)
    data = bytes(range(64))
    esp.run_spiflash_command(0x02, data, addr=0x310000, addr_len=24)
    assert board.control.read_flash(0x310000, 64) == b"\xff" * 64  # without write enable
    esp.run_spiflash_command(0x06)
    assert esp.run_spiflash_command(0x05, read_bits=8) == 0x02
    esp.run_spiflash_command(0x02, data, addr=0x310040, addr_len=24)
    assert board.control.read_flash(0x310040, 64) == data
    assert esp.run_spiflash_command(0x03, read_bits=32, addr=0x310044, addr_len=24) == 0x07060504
    assert esp.flash_id(cache=False) == 0x1740EF


def test_an_esp32s_addresses_reach_nothing_on_a_c3(start: StartBoard, connect_to: Connect) -> None:
    """Registers are where the chip has them, and nowhere else."""
    board = start(chip="esp32c3", layout="guide")
    esp = connect_to(board, "esp32c3")
    other = CHIPS["esp32"].spi
    esp.write_reg(other.user, 0x80000000)
    esp.write_reg(other.cmd, 1 << 18)
    assert esp.read_reg(other.user) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "stub_baud"),
    [("esp32s2", 115200), *((chip, 460800) for chip in NEWER if chip != "esp32s2")],
)
def test_speed_at_which_the_stub_starts(
    start: StartBoard, connect_to: Connect, chip: str, stub_baud: int
) -> None:
    """The ESP32's and the S2's stub sets the UART anew; the others leave it as the ROM had it."""
    from esptool import cmds

    board = start(chip=chip)
    esp = connect_to(board, chip, stub=False)
    esp.change_baud(460800)
    if stub_baud == 460800:
        esp = cmds.run_stub(esp)
        assert esp.flash_id(cache=False) == 0x1740EF
    else:
        with pytest.raises(FatalError, match="Failed to start stub"):
            cmds.run_stub(esp)
    board.control.wait_for("stub")
    assert board.control.state()["baud"] == stub_baud


def big_board(start: StartBoard, chip: str) -> RunningBoard:
    """A board with 32 MiB of flash."""
    return start(chip=chip, layout="guide", flash_options={"flash_bytes": 32 * MIB})


@pytest.mark.parametrize(("chip", "at"), [("esp32s3", 0x1310000), ("esp32c3", 0x310000)])
def test_flash_above_16_mib(start: StartBoard, connect_to: Connect, chip: str, at: int) -> None:
    """The S3's stub has commands with 4-byte addresses; others hit the place modulo 16 MiB."""
    board = big_board(start, chip)
    esp = connect_to(board, chip)
    esp.flash_set_parameters(32 * MIB)
    assert esp.flash_id(cache=False) == 0x1940EF
    board.control.write_flash(at, b"\x00" * 4096)
    data = random.Random(1).randbytes(4096)
    esp.flash_begin(4096, 0x1310000)
    esp.flash_block(data, 0)
    esp.flash_finish(False)
    assert board.control.read_flash(at, 4096) == data
    assert esp.read_flash(0x1310000, 4096) == data


@pytest.mark.parametrize("chip", ["esp32", "esp32s3", "esp32c6"])
def test_registers_above_16_mib(start: StartBoard, connect_to: Connect, chip: str) -> None:
    """A 4-byte command reaches the place; one with 24 bits the place modulo 16 MiB."""
    board = big_board(start, chip)
    esp = connect_to(board, chip)
    for command, bits, at in ((0x12, 32, 0x1310000), (0x02, 24, 0x310000)):
        esp.run_spiflash_command(0x06)
        esp.run_spiflash_command(command, b"here", addr=0x1310000 & (1 << bits) - 1, addr_len=bits)
        assert board.control.read_flash(at, 4) == b"here"
    read = esp.run_spiflash_command(0x13, read_bits=32, addr=0x1310000, addr_len=32)
    assert read.to_bytes(4, "little") == b"here"
    esp.run_spiflash_command(0x06)
    esp.run_spiflash_command(0x21, addr=0x1310000, addr_len=32)
    assert board.control.read_flash(0x1310000, 4) == b"\xff" * 4
    assert board.control.read_flash(0x310000, 4) == b"here"
    # More address bits than the command has: the flash takes the last eight for data.
    esp.run_spiflash_command(0x06)
    esp.run_spiflash_command(0x02, b"more", addr=0x31100041, addr_len=32)
    assert board.control.read_flash(0x311000, 5) == b"Amore"


# --- images and the bootloader


@EACH
def test_images_are_those_of_the_chip(chip: str) -> None:
    """esptool, told the chip, finds them whole, and their segments where that chip has memory."""
    for image in (build_app(chip=chip), build_app(size_bytes=20_000, chip=chip),
                  build_bootloader(chip=chip)):  # fmt: skip
        loaded = LoadFirmwareImage(chip, image)
        assert loaded.chip_id == chip_of(chip).id
        assert loaded.checksum == loaded.calculate_checksum()
        assert loaded.stored_digest == loaded.calc_digest
        memory = [segment.get_memory_type(loaded) for segment in loaded.segments]
        assert all(memory), [hex(segment.addr) for segment in loaded.segments]
        assert any(s.addr <= loaded.entrypoint < s.addr + len(s.data) for s in loaded.segments)


@EACH
def test_boots_its_own_apps_and_no_others(chip: str) -> None:
    """The bootloader starts what was built for the chip, and says why it refuses the rest."""
    facts = chip_of(chip)
    flash = make_flash("guide", chip=chip)
    assert boot(flash, chip=facts, revision=100).slot == "factory"
    for other in CHIP_NAMES:
        if other == chip:
            continue
        flash = make_flash("guide", chip=chip, app=build_app(chip=other))
        result = boot(flash, chip=facts, revision=100)
        assert result.slot is None
        wanted = f"mismatch chip ID, expected {facts.id}, found {chip_of(other).id}"
        assert any(wanted in line for line in result.log)
        elsewhere = chip_of(other).bootloader_offset != facts.bootloader_offset
        assert boot(flash, chip=chip_of(other)).started is not elsewhere


@EACH
def test_app_for_other_efuse_blocks(chip: str) -> None:
    """ESP-IDF looks at the blocks' revision on every chip but the ESP32."""
    facts = chip_of(chip)
    for least, most, why in ((2, 99, ">= v0.2"), (0, 0, ""), (0, 50, "<= v0.50")):
        flash = make_flash(
            "guide", chip=chip, app=build_app(chip=chip, block_revisions=(least, most))
        )
        result = boot(flash, chip=facts, revision=100, block_revision=1 if "<" not in why else 101)
        refused = bool(why) and facts.checks_blocks
        assert (result.slot is None) is refused
        assert any(f"efuse blk rev {why}" in line for line in result.log) is refused


# --- what it prints


@EACH_BOARD
def test_boot_log(start: StartBoard, chip: str) -> None:
    """The ROM's own banner and names, then the bootloader and the app of that chip."""
    facts = chip_of(chip)
    behaviour = Behaviour(ending="panic", ending_lives=1)
    app = build_app(behaviour=behaviour, chip=chip)
    board = start(chip=chip, app=app, config={"time_scale": 0.01})
    since = board.control.wait_for("panic")["number"]
    board.control.wait_for("app", since=since)
    log = board.control.console()
    assert log.startswith(facts.rom.banner)
    assert f"rst:{facts.resets['power-on']},boot:{facts.rom.normal:#x} (SPI_FAST_FLASH_BOOT)" in log
    assert f"rst:{facts.resets['cpu']},boot:{facts.rom.normal:#x} (SPI_FAST_FLASH_BOOT)" in log
    assert ("Saved PC:0x" in log) is (chip != "esp32")
    assert f"boot.{chip}: SPI Flash Size" in log
    assert "Guru Meditation Error: Core  0 panic'ed (Load" in log
    riscv = chip in ("esp32c3", "esp32c6", "esp32h2")
    assert ("MEPC    : 0x" in log) is riscv
    assert ("Backtrace: 0x" in log) is not riscv


@pytest.mark.parametrize(
    ("ending", "names"),
    [
        ("loop", ("RTC_SW_SYS_RST", "LP_SW_HPSYS")),
        ("watchdog", ("TG0WDT_SYS_RST", "TG0_WDT_HPSYS")),
        ("deep-sleep", ("DSLEEP", "SLEEP_WAKEUP")),
        ("brownout-reset", ("BROWNOUT_RST", "LP_BOD_SYS")),
    ],
)
@pytest.mark.parametrize("generation", [0, 1], ids=["esp32c3", "esp32c6"])
def test_reset_names(
    start: StartBoard, ending: Any, names: tuple[str, str], generation: int
) -> None:
    """The ROMs of 2019 to 2021 and those since then have their own words for each cause."""
    chip = ("esp32c3", "esp32c6")[generation]
    app = build_app(behaviour=Behaviour(ending=ending, ending_lives=1), chip=chip)
    board = start(chip=chip, app=app, config={"time_scale": 0.01})
    since = board.control.wait_for("app")["number"]
    board.control.wait_for("app", since=since)
    assert f"({names[generation]}),boot:" in board.control.console()


@pytest.mark.parametrize(
    ("form", "mode", "waits"),
    [
        ("joint", "boot:0x4 (DOWNLOAD(USB/UART0/1))", "waiting for download"),
        ("uart0", "boot:0x2 (UART0_BOOT)", "wait uart0 download"),
        ("usb", "boot:0x2 (USB_BOOT)", "wait usb download"),
    ],
)
def test_download_mode_in_its_forms(
    start: StartBoard, open_port: Callable[..., Any], form: str, mode: str, waits: str
) -> None:
    """By its strapping pins and eFuses a ROM waits at all interfaces or at one, and says which."""
    board = start(chip="esp32c3", config={"download_form": form, "reset_lines": False})
    board.control.wait_for("app")
    port = open_port(board.url)
    board.control.reset(boot_button=True)
    log = port.read_until(b"download\r\n").decode()
    assert mode in log
    assert log.endswith(waits + "\r\n")


def test_an_unknown_chip() -> None:
    """Named, with those that there are."""
    with pytest.raises(ValueError, match="there is no chip 'esp32x'; there are esp32, esp32s2"):
        BoardConfig(chip="esp32x")
    with pytest.raises(ValueError, match="there is no chip"):
        SimBoard(chip="esp8266").make_flash(0)


def test_an_encrypted_nvs_has_a_key_for_hmac() -> None:
    """On chips with key blocks; the flash is not encrypted by that."""
    assert key_purposes(BoardConfig(chip="esp32c3", nvs_key="k"))[:2] == (8, 0)
    esp = esptool_on("esp32c3", nvs_key="k")
    assert esp.get_flash_encryption_enabled() is False
