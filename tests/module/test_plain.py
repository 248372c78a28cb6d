# SPDX-License-Identifier: GPL-3.0-or-later
"""Values on the way through Viam, and the folders and log of the module's process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from viam.rpc import server
from viam.utils import dict_to_struct, struct_to_dict

from ota_service.firmware import secrets
from ota_service.module.folders import default_cache_dir, default_state_dir
from ota_service.module.logs import set_up_logging
from ota_service.module.plain import from_struct, plain


def test_no_text_leaves_with_a_secret_or_unseen() -> None:
    """A library may repeat a password, a board print what clears a terminal or forges a line."""
    secrets.learn("http://joe:pa55-wörd@host/")
    told = {
        "error": "login joe:pa55-wörd refused",
        "boot_log": ["ok\x1b[2J\r\nI (1) fake", "a\u202eb"],
    }
    assert plain(told) == {
        "error": "login *** refused",
        "boot_log": ["ok\\x1b[2J\\r\\nI (1) fake", "a\\u202eb"],
    }


def test_every_kind_of_value_gets_through() -> None:
    """What the SDK refuses or changes is brought into a form that it keeps."""
    value = {
        "none": None,
        "list": (1, None, "a"),
        "nan": float("nan"),
        "path": Path("/x"),
        "deep": [{"none": None, "flag": False}],
    }
    sent = plain(value)
    assert sent == {
        "list": [1, "a"],
        "path": "/x",
        "deep": [{"flag": False}],
    }
    assert struct_to_dict(dict_to_struct(sent)) == sent


def test_null_is_read_as_none() -> None:
    """The SDK's own reader makes it 0, which would be a value."""
    values: dict[str, Any] = {"a": None, "b": [None, 1.0], "c": {"d": None, "e": False}}
    assert from_struct(dict_to_struct(values)) == values


def test_folders_follow_viam_and_else_the_desktop() -> None:
    """What must last is not in VIAM_MODULE_DATA, which viam-server may delete."""
    viam = {"VIAM_HOME": "/v", "VIAM_MODULE_DATA": "/v/data/m", "XDG_STATE_HOME": "/s"}
    assert default_state_dir(viam) == Path("/v/ota-service")
    assert default_cache_dir(viam) == Path("/v/data/m")
    desktop = {"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "relative"}
    assert default_state_dir(desktop) == Path("/s/ota-service")
    assert default_cache_dir(desktop) == Path.home() / ".cache/ota-service"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """What a foreign library logs while the module's log is set up, as viam-server starts it."""
    monkeypatch.delenv("VIAM_NO_MODULE_PARENT", raising=False)
    before = logging.getLogRecordFactory()
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign,assignment]
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)
    set_up_logging()
    yield kept
    logging.setLogRecordFactory(before)
    logger.removeHandler(handler)


def test_no_librarys_log_shows_a_secret(records: list[logging.LogRecord]) -> None:
    """Neither in a message nor in the trace of an exception."""
    logger = logging.getLogger("some.library")
    logger.warning("GET %s failed", "https://user:hunter2@h/x?token=s3cret")
    try:
        raise RuntimeError("https://user:hunter2@h/x?token=s3cret")
    except RuntimeError:
        logger.exception("it broke")
    shown = [logging.Formatter().format(record) for record in records]
    assert shown[0] == "GET https://***@h/x?token=*** failed"
    assert "RuntimeError: https://***@h/x?token=***" in shown[1]
    assert all(record.exc_info is None for record in records)


def test_where_the_sdk_serves_is_no_line_of_ours(records: list[logging.LogRecord]) -> None:
    """viam-server would show it with the codes of its colours; it knows where it starts us."""

    def shows(level: int) -> bool:
        return bool(server.LOGGER.filter(server.LOGGER.makeRecord("", level, "", 0, "", (), None)))

    assert not shows(logging.INFO)
    assert shows(logging.WARNING)
    assert shows(logging.DEBUG)
