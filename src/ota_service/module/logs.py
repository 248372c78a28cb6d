# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's log: our loggers join Viam's, no secret gets into any line, and
no text from outside makes a line of its own."""

from __future__ import annotations

import logging
import traceback

from viam.logging import getLogger

from ota_service.firmware.urls import redact
from ota_service.formats.text import visible


def set_up_logging() -> None:
    """Send what `ota_service` logs to viam-server, and take secrets out of every record.

    The records of all libraries are included: an HTTP client names the url that it could not
    open, with its user info, in its own words.
    """
    getLogger("ota_service")  # gets the SDK's handlers; all loggers below it use them
    # Where it serves viam-server knows, which would show the line with its colours' codes.
    getLogger("viam.rpc.server").setLevel(logging.WARNING)
    made = logging.getLogRecordFactory()

    def factory(*args: object, **kwargs: object) -> logging.LogRecord:
        record = made(*args, **kwargs)
        try:
            record.msg, record.args = visible(redact(record.getMessage())), None
        except (TypeError, ValueError):
            return record  # a message that does not fit its arguments: logging reports it
        if record.exc_info and record.exc_info[0] is not None:
            trace = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.exc_text = "\n".join(map(visible, trace.split("\n")))
            record.exc_info = None  # handlers would format it again, unredacted
        return record

    logging.setLogRecordFactory(factory)
