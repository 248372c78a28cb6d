# SPDX-License-Identifier: GPL-3.0-or-later
"""The display of an update: readable on a small terminal, plain where there is none."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from ota_service.cli.live import STYLES, Live, boards_of, frame, in_order
from ota_service.cli.output import rate_text, time_text
from ota_service.client.machine import whole_numbers

PHASES = ("waiting", "connecting", "inspecting", "writing", "verifying", "switching", "recording",
          "booting", "rolling_back")  # fmt: skip


def writing(percent: float, *, total: int = 1_000_000, rate: float = 60_000) -> dict[str, Any]:
    """A board that is being written."""
    done = int(total * percent / 100)
    progress = {"bytes_done": done, "bytes_total": total, "percent": percent}
    progress["eta_s"] = (total - done) / rate
    return {"state": "updating", "phase": "writing", "progress": progress}


def rendered(
    status: dict[str, Any], *, columns: int = 80, lines: int = 24, **options: Any
) -> list[str]:
    """The lines of a frame on a terminal of this size."""
    console = Console(
        file=io.StringIO(), width=columns, height=lines, force_terminal=True, highlight=False,
        markup=False, color_system=options.pop("color_system", None),
    )  # fmt: skip
    with console.capture() as captured:
        console.print(frame(status, columns=columns, lines=lines, **options))
    return [line.rstrip() for line in captured.get().splitlines()]


EIGHT = {
    "state": "updating",
    "boards": {
        "kitchen": writing(45),
        "cellar": {"state": "updating", "phase": "booting"},
        "roof": {"state": "up_to_date"},
        "24:0a:c4:00:00:07": {"state": "updating", "phase": "waiting"},
        "gripper-left": {"state": "rolled_back", "error": {"code": "boot-failed"}},
        "gripper-right": {"state": "absent", "error": {"code": "port-missing"}},
        "arm": {"state": "awaiting_confirmation", "phase": "waiting"},
        "a name that is much longer than there is room": writing(99.9),
    },
}


def test_eight_boards_fit_a_terminal_of_80_columns() -> None:
    """One line a board with name, phase, bar, percent, rate and time left; one line that counts."""
    lines = rendered(EIGHT)
    assert len(lines) == 9
    assert max(map(len, lines)) <= 80
    kitchen = next(line for line in lines if "kitchen" in line)
    for part in ("writing", "━", "45%", "60 kB/s", "0:09"):
        assert part in kitchen
    assert "✓ roof" in next(line for line in lines if "roof" in line)
    assert "boot-failed" in next(line for line in lines if "gripper-left" in line)
    assert "unconfirmed" in next(line for line in lines if " arm" in line)
    assert "3 updating" in lines[-1]
    assert "1 waiting" in lines[-1]


names = st.text(min_size=1, max_size=30).filter(str.isprintable)
"""The configuration allows no others."""

board = st.fixed_dictionaries(
    {"state": st.sampled_from(sorted(STYLES))},
    optional={
        "phase": st.sampled_from(PHASES),
        "progress": st.fixed_dictionaries(
            {"bytes_done": st.integers(0, 1 << 24)},
            optional={"bytes_total": st.integers(1, 1 << 24), "percent": st.floats(0, 100),
                      "eta_s": st.floats(0, 1e6)},
        ),
        "error": st.fixed_dictionaries({"code": st.sampled_from(["boot-failed", "no-answer"])}),
    },
)  # fmt: skip


@settings(max_examples=25)
@given(
    boards=st.dictionaries(names, board, max_size=20),
    columns=st.integers(60, 200),
    lines=st.integers(5, 50),
)
def test_any_status_fits_any_terminal(boards: dict[str, Any], columns: int, lines: int) -> None:
    """Whatever the boards do and are called: no line too many, none too long."""
    shown = rendered({"state": "updating", "boards": boards}, columns=columns, lines=lines)
    assert len(shown) <= lines
    assert all(cell_len(line) <= columns for line in shown)


def test_where_lines_are_few_busy_boards_come_first() -> None:
    """The others are counted, so nobody takes them for lost."""
    boards: dict[str, Any] = {f"board {n}": {"state": "up_to_date"} for n in range(30)}
    boards["board 29"] = writing(10)
    lines = rendered({"state": "updating", "boards": boards}, lines=10)
    assert any("board 29" in line and "writing" in line for line in lines)
    assert any("and 22 more: 22 up to date" in line for line in lines)


def test_a_status_knows_no_order_and_is_shown_in_one() -> None:
    """Numbers count as numbers; the place of a board never changes between two frames."""
    boards = {name: {"state": "absent"} for name in ("b10", "b2", "a", "b1")}
    assert list(in_order(boards)) == ["a", "b1", "b2", "b10"]
    assert list(boards_of({"boards": boards}, ["B2"])) == ["b2"]
    mac = {"x": {"state": "absent", "mac": "24:0a:c4:00:00:01"}}
    assert list(boards_of({"boards": mac}, ["24:0A:C4:00:00:01"])) == ["x"]


def test_a_board_that_waits_for_somebody_else_says_for_whom() -> None:
    """A port that another program has open would look like a hang."""
    error = {"code": "port-busy", "message": "The port /dev/ttyUSB0 is in use by pid 7 (minicom)."}
    status = {"boards": {"a": {"state": "updating", "phase": "waiting", "error": error}}}
    lines = rendered(status)
    assert "port-busy" in lines[0]
    assert lines[1] == "   a waits: The port /dev/ttyUSB0 is in use by pid 7 (minicom)."
    file = io.StringIO()
    with Live(Console(file=file, width=1000)) as live:
        live.show(status)
    assert "a            waiting: The port /dev/ttyUSB0 is in use" in file.getvalue()


def test_without_a_terminal_each_change_is_a_plain_line() -> None:
    """For logs: no bar, no colour, nothing twice, quarters of the writing."""
    file = io.StringIO()
    with Live(Console(file=file, width=1000, highlight=False)) as live:
        for percent in (0, 1, 2, 30, 31, 60, 99):
            live.show({"boards": {"a": writing(percent)}})
        live.show({"boards": {"a": {"state": "failed", "error": {"code": "link-lost"}}}})
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert [line[-2] for line in lines[:-1]] == ["0", "25", "50", "75"]
    assert lines[-1] == ["a", "failed", "[link-lost]"]
    assert "\x1b" not in file.getvalue()


def test_a_dumb_terminal_gets_plain_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """TERM=dumb cannot move its cursor."""
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    with Live(Console(file=file, width=100, force_terminal=True)) as live:
        live.show({"boards": {"a": writing(50)}})
    assert "writing 50 %" in file.getvalue()
    assert "\x1b" not in file.getvalue()


def test_colours_are_left_out_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR (no-color.org) keeps the bars and drops the colours."""
    coloured = "\n".join(rendered(EIGHT, color_system="standard"))
    assert "\x1b[3" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in "\n".join(rendered(EIGHT, color_system="standard"))


def test_numbers_in_words() -> None:
    """Rates and times keep within the columns that the display has for them."""
    assert [rate_text(n) for n in (0, 61_440, 999_400, 1_234_567)] == [
        "0 kB/s", "61 kB/s", "999 kB/s", "1.2 MB/s",
    ]  # fmt: skip
    assert [time_text(n) for n in (0, 7.4, 59.6, 754, 3723)] == [
        "0:00", "0:07", "1:00", "12:34", "1:02:03",
    ]  # fmt: skip


def test_whole_numbers_come_back_whole() -> None:
    """Through Viam each int becomes a float; programs that read --json want it back."""
    assert whole_numbers({"a": [1.0, 1.5, True], "b": {"c": 3.0}}) == {
        "a": [1, 1.5, True],
        "b": {"c": 3},
    }
    assert type(whole_numbers(2.0)) is int
    assert whole_numbers(True) is True
