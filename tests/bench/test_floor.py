# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's own arithmetic and its selection of cells."""

from __future__ import annotations

import pytest

from bench import boards, downtime, floor, tables, updates
from bench.ours import Measured
from ota_service.formats.nvs import parse_nvs


def test_the_image_costs_what_wire_or_flash_asks() -> None:
    """esp32.md's table: 1 MiB compressed at 115200 takes 53 s; at 2 Mbaud the flash is slower."""
    slow = floor.image(floor.Line(115_200, 0.001), 600_000, 1 << 20)
    assert floor.total(slow) == pytest.approx(52.2, abs=0.2)
    fast = floor.image(floor.Line(2_000_000, 0.001), 600_000, 1 << 20)
    assert floor.total(fast) == pytest.approx(16 * 0.175 + 4096 * 0.0005)


def test_latency_counts_once_for_each_exchange() -> None:
    """15 ms more of latency make a register read 15 ms longer, and a flash read 30 ms."""
    near, far = floor.Line(921_600, 0.001), floor.Line(921_600, 0.016)
    assert far.exchange(4) - near.exchange(4) == pytest.approx(0.015)
    assert far.read(64) - near.read(64) == pytest.approx(0.030)


def test_the_stub_is_most_of_a_connect() -> None:
    """0.6 s at the ROM's speed, as measured (esp32.md)."""
    items = {item.name.split(" (")[0]: item.seconds
             for item in floor.connect(floor.Line(921_600, 0.001))}  # fmt: skip
    assert items["stub loader"] == pytest.approx(0.6, abs=0.05)
    assert sum(items.values()) < 0.9


def test_a_script_writes_what_an_update_leaves() -> None:
    """The partitions given to scripts boot ota_1 and hold the new version."""
    new = boards.edited(boards.flash("blank", 100_000))
    assert parse_nvs(new.nvs).get_string("VIAM_NS", "OTA_VERSION") == boards.NEW
    assert len(new.otadata) == 0x2000


def test_selection() -> None:
    """Only cells whose fields are named."""
    cells = updates.select(list(updates.standard()), image="1 MiB", baud="921600,2000000", way=None)
    assert cells
    assert {cell.image for cell in cells} == {"1 MiB"}
    assert {cell.baud for cell in cells} == {921_600, 2_000_000}


def test_tables_show_ratios() -> None:
    """Ours beside the floor and beside a script, medians of several runs."""
    cell = updates.Cell("update", "1 MiB", "random", 921_600, 1, "ours")
    mine = updates.Result(cell, [Measured(9.0), Measured(8.0), Measured(10.0)],
                          [floor.Item("wire", 6.0)])  # fmt: skip
    other = updates.Cell("update", "1 MiB", "random", 921_600, 1, "best")
    script = updates.Result(other, [Measured(12.0)], [floor.Item("wire", 6.0)])
    table = tables.ways([mine, script])
    cells = [list(column.cells) for column in table.columns]
    shown = [column[0] for column in cells[1:6]]
    assert shown == ["6.00", "9.00", "2.00", "1.50", "12.00 (0.75)"]
    assert mine.to_json()["ratio_to_floor"] == 1.5


def test_the_command_is_measured_beside_the_scripts() -> None:
    """Its first update over a port and a later one, for the sizes that are compared; each chip and
    native USB have a row."""
    cells = list(updates.standard())
    for image in ("330 kB", "1 MiB"):
        ways = {
            one.way for one in cells if (one.image, one.baud, one.chip) == (image, 921_600, "esp32")
        }
        assert ways == {"ours", "first", "later", "best", "separate"}
    assert {one.chip for one in cells} == {"esp32", *updates.OTHER_CHIPS}
    assert {one.usb for one in cells} == {"bridge", "serial-jtag", "otg"}
    cell = updates.Cell("update", "330 kB", "random", 921_600, 1, "first", "esp32c3", "serial-jtag")
    row = tables.ways([updates.Result(cell, [Measured(9.0)], [floor.Item("wire", 6.0)])])
    name = "330 kB, spare slot random, its own USB (serial-jtag), esp32c3, command, first"
    assert list(row.columns[0].cells) == [name]


def test_a_board_is_without_an_app_from_each_reset_to_the_next_app() -> None:
    """Nothing is read before the app is there: a stage ends a moment earlier."""
    names = ("reset", "rom", "reset", "app", "app", "reset", "rom")
    events = [{"event": name, "time_s": float(at)} for at, name in enumerate(names)]
    assert not downtime.has_app(events)
    events.append({"event": "app", "time_s": 9.0})
    assert downtime.has_app(events)
    assert downtime.without_app_s(events) == 3.0 + 4.0
