# SPDX-License-Identifier: GPL-3.0-or-later
"""The one table of errors: code, message, remedy.

Everything that can go wrong and reach a person is an `OtaError` whose code stands in `ERRORS`.
The message says what happened, the remedy what to do about it; both are complete sentences
without secrets. Codes are part of the product's outside and are never renamed; so is `__all__`
(docs/python.md).

    OtaError
    |-- blame "config"    the configuration or the command is wrong
    |-- blame "firmware"  the file at the url, or the way to it
    |-- blame "board"     what is on the board, or what the board is
    |-- blame "link"      the port, the cable, the way to the board
    |-- blame "policy"    nothing is wrong: it may not happen now
    `-- blame "host"      this computer: disk, journal
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["ERRORS", "ErrorKind", "OtaError"]

Blame = Literal["config", "firmware", "board", "link", "policy", "host"]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the table.

    message: what happened, in general; an `OtaError` usually says it more precisely.
    remedy: what a person can do about it.
    transient: the same attempt may succeed a moment later without anybody's doing.
    counts: it uses up one of a board's `max_attempts`.
    """

    code: str
    blame: Blame
    message: str
    remedy: str
    transient: bool = False
    counts: bool = True


def _by(blame: Blame, *, counts: bool) -> Callable[..., ErrorKind]:
    """Makes rows of this blame; counts: of those that do not say it."""

    def row(code: str, message: str, remedy: str, **flags: bool) -> ErrorKind:
        return ErrorKind(code, blame, message, remedy, **{"counts": counts, **flags})

    return row


_config, _firmware = _by("config", counts=False), _by("firmware", counts=False)
_host, _policy = _by("host", counts=False), _by("policy", counts=False)
_board, _link = _by("board", counts=True), _by("link", counts=False)

_ROWS: tuple[ErrorKind, ...] = (
    _config(
        "config-invalid",
        "The configuration of the service is not valid.",
        "Correct the named attributes in the machine's configuration.",
    ),
    # --- the firmware and the way to it
    _firmware(
        "download-failed",
        "The firmware could not be downloaded.",
        "Check that the url can be reached from this machine, and that its server is running.",
        transient=True,
    ),
    _firmware(
        "http-status",
        "The firmware's server answered with an error.",
        "Check the path, the user and password, or the token in the url.",
    ),
    _firmware(
        "download-truncated",
        "The download ended before the whole file had arrived.",
        "Check the network and the firmware's server; the update tries again by itself.",
        transient=True,
    ),
    _firmware(
        "download-stalled",
        "The firmware's server sends too slowly.",
        "Check the network and the firmware's server; the update tries again by itself.",
        transient=True,
    ),
    _firmware(
        "download-too-large",
        "The file at the url is larger than max_image_bytes.",
        "Check that the url serves an App Image, or raise max_image_bytes.",
    ),
    _firmware(
        "digest-mismatch",
        "The file at the url does not have the configured SHA-256.",
        "Correct sha256, or publish the file that it belongs to.",
    ),
    _firmware(
        "tls",
        "The certificate of the firmware's server could not be verified.",
        "For a private certificate authority set ca_file; otherwise check the server's "
        "certificate and this machine's clock.",
    ),
    _firmware(
        "clock-behind",
        "The certificate of the firmware's server is not valid yet by this machine's clock.",
        "Set this machine's clock; the update tries again by itself.",
    ),
    _firmware(
        "redirect-refused",
        "The firmware's server redirects to an address of this machine itself.",
        "Configure the final address, or correct the redirect at the firmware's server.",
    ),
    _host(
        "disk-full",
        "The disk has no room for the firmware.",
        "Free some space in the folder named, or point VIAM_MODULE_DATA at a larger disk.",
    ),
    _firmware(
        "not-an-image",
        "The file is not an ESP32 App Image.",
        "Serve the App Image at the url: `esp32-ota image ota FILE` makes and checks one.",
    ),
    _firmware(
        "image-corrupt",
        "The App Image is damaged.",
        "Build and publish the App Image again.",
    ),
    _firmware(
        "signature-missing",
        "The image carries no Secure Boot v2 signature, and this host takes signed ones only.",
        "Sign it with the owner's key (`espsecure sign-data --version 2`); `esp32-ota trust show` "
        "says which keys this host takes.",
    ),
    _firmware(
        "signature-invalid",
        "The image's signature is not valid.",
        "Build and sign the image again; what was downloaded is not what was signed.",
    ),
    _firmware(
        "signature-untrusted",
        "The image is signed by a key that is not trusted.",
        "Sign the image with a key that the board and this host trust; `esp32-ota trust show` says "
        "which ones this host does.",
    ),
    _firmware(
        "version-mismatch",
        "The manifest, or the firmware's signed metadata, names another version than the one "
        "configured.",
        "Configure the version that the firmware was published under.",
    ),
    _firmware(
        "manifest-invalid",
        "The manifest at the url is not valid.",
        "Correct it at the path that is named, and publish it again (docs/manifests.md).",
    ),
    _firmware(
        "metadata-expired",
        "The repository's signed metadata has expired, so nothing new is taken from it.",
        "Let its owner sign anew (`esp32-ota repo refresh`), and check this machine's clock.",
    ),
    _firmware(
        "metadata-invalid",
        "The repository's metadata is not what its owner's keys have signed.",
        "Look at the repository with `esp32-ota repo verify`, and at who may write to its server.",
    ),
    _firmware(
        "replayed",
        "The repository shows older metadata than it did before.",
        "Publish the newest state again, and look at who may write to the repository's server.",
    ),
    _host(
        "trust-invalid",
        "This host's policy of trust cannot be used, so no firmware is taken.",
        "`esp32-ota trust show` says what is wrong. Folder and files belong to root, and nobody "
        "else may write to them.",
    ),
    _firmware(
        "merged-binary",
        "The file is a Merged Binary (bootloader, partition table and partitions), "
        "not an App Image.",
        "Serve the App Image at the url (`esp32-ota image ota FILE`). A Merged Binary is written "
        "with `esp32-ota flash PORT FILE` or the verb flash.",
    ),
    _firmware(
        "bootloader-image",
        "The file is a bootloader, not an App Image.",
        "Serve the App Image at the url: `esp32-ota image ota FILE` makes and checks one.",
    ),
    _firmware(
        "no-app-descriptor",
        "The image has no app descriptor: it was built before ESP-IDF 3.3, or not by ESP-IDF.",
        "Build the app with ESP-IDF 3.3 or later, and serve its App Image at the url.",
    ),
    _board(
        "wrong-chip",
        "The App Image is for another chip than the board's.",
        "Configure the url of an image that was built for this board's chip.",
    ),
    _board(
        "chip-revision",
        "The App Image does not run on this revision of the chip.",
        "Build the image for this chip revision (CONFIG_ESP32_REV_MIN and _MAX).",
    ),
    _board(
        "image-too-large",
        "The App Image is larger than the board's spare slots.",
        "Make the image smaller, or give the board a partition table with larger slots: write "
        "a Merged Binary with `esp32-ota flash PORT FILE`.",
    ),
    # --- ports and the link
    _link(
        "no-board",
        "No board was found.",
        "Attach a board, list it in boards, or call update once for a board on a generic USB "
        "bridge (with probe for one on any other port).",
    ),
    _link(
        "port-missing",
        "The port does not exist.",
        "Plug the board in, or correct its port; `esp32-ota ports` lists what is there.",
    ),
    _link(
        "port-busy",
        "Another program or service is using the port.",
        "Close the program named; the update waits and then goes on by itself.",
        transient=True,
    ),
    _link(
        "permission",
        "This user may not open the port.",
        "Add the user that runs viam-server to the port's group (dialout or uucp), then log in "
        "again or restart viam-server.",
        counts=True,
    ),
    _link(
        "no-answer",
        "No ESP32 answered on the port.",
        "Check the cable and the board's power; a board without automatic reset needs its BOOT "
        "button held while the update connects.",
        transient=True,
        counts=True,
    ),
    _board(
        "no-identity",
        "The board's fuses hold no MAC address, so it cannot be told from other boards.",
        "Look at its fuses with `espefuse summary`; where they hold a MAC, attach the board "
        "again. A board without one cannot be updated by this program.",
    ),
    _board(
        "wrong-board",
        "Another board than the one known is attached to this port.",
        "Put the right board back, or call release for this name to accept the new one.",
        counts=False,
    ),
    _config(
        "duplicate-board",
        "One board is listed under two names.",
        "Leave one of the two entries out of boards.",
    ),
    _board(
        "other-project",
        "The board runs another project than the image's.",
        "List the board in boards, set adopt, or call update with override "
        '["other-project"] if it is meant.',
        counts=False,
    ),
    _link(
        "link-lost",
        "The connection to the board was lost.",
        "Check the cable and the USB hub; the update tries again by itself and starts from what "
        "it then finds on the board.",
        transient=True,
        counts=True,
    ),
    # --- what is on the board
    _board(
        "flash-size",
        "The size of the board's flash is unknown or too small for its partition table.",
        "Check the board; write a Merged Binary that fits its flash with "
        "`esp32-ota flash PORT FILE`.",
    ),
    _board(
        "flash-protected",
        "The board's flash did not accept what was written.",
        "The flash is write-protected or worn out; nothing else was changed. Clear its "
        "protection bits, or replace the board.",
    ),
    _board(
        "partition-table-invalid",
        "The board's partition table is damaged or missing.",
        "Write a Merged Binary with `esp32-ota flash PORT FILE`.",
    ),
    _board(
        "no-ota-slots",
        "The board's partition table has no two OTA slots to update between.",
        "Give the board a partition table with OTA slots: write a Merged Binary with "
        "`esp32-ota flash PORT FILE`.",
    ),
    _board(
        "otadata-invalid",
        "It cannot be told for certain which slot the board runs, so none was written.",
        "Restart the board and see whether it boots. If nothing on it does, call update with "
        "rescue, this board alone in boards and its MAC as confirm; or write a Merged Binary "
        "with `esp32-ota flash PORT FILE`.",
    ),
    _policy(
        "board-boots",
        "The board boots, so it needs no rescue, and nothing was written.",
        "Call update without rescue.",
    ),
    _board(
        "nvs-missing",
        "The board's partition table has no writable NVS partition.",
        "Give the board a partition table with an nvs partition: write a Merged Binary with "
        "`esp32-ota flash PORT FILE`.",
    ),
    _board(
        "nvs-invalid",
        "The board's NVS is in a state that cannot be changed without risk to its keys.",
        "Let the board start its firmware once, which repairs its NVS, then update again.",
    ),
    _board(
        "nvs-full",
        "The board's NVS has no room for the version.",
        "Remove keys on the board, or use a shorter version.",
    ),
    _board(
        "flash-encrypted",
        "The board encrypts its flash or its NVS, so the host cannot read what must be kept.",
        "Update this board with its own on-device OTA service.",
    ),
    _board(
        "secure-boot",
        "The board accepts signed images only, and this image is not signed.",
        "Sign the image with the board's key.",
    ),
    _board(
        "secure-version",
        "The image's secure version is lower than the running app's; "
        "the bootloader would refuse it.",
        "Configure an image with the same or a higher secure version.",
    ),
    _board(
        "secure-download",
        "The board is in secure download mode, so the host cannot read its flash.",
        "Update this board with its own on-device OTA service.",
    ),
    _policy(
        "awaiting-confirmation",
        "The board's new app has not confirmed itself yet; restarting it now would undo the "
        "update.",
        "Wait until confirm_timeout_s is over; the run goes on by itself.",
        transient=True,
    ),
    _policy(
        "not-staged",
        "Nothing is staged on the board.",
        "Call stage, which looks at what the board has and writes what is missing, or update.",
    ),
    _policy(
        "stage-stale",
        "What is staged on the board is of another target than the one that is configured.",
        "Call stage or update again, or configure the target again that is staged.",
    ),
    _board(
        "changed-elsewhere",
        "Something else changed the board's version since the last update.",
        "Remove the on-device ota_service from the board's own configuration, or keep both "
        "versions equal.",
    ),
    _policy(
        "not-allowed-now",
        "The robot (allow_restart, before_restart) does not allow boards to be restarted now.",
        'The run goes on when it is allowed; update with override ["not-allowed-now"] does not '
        "mind it.",
        transient=True,
    ),
    _host(
        "state-busy",
        "Another process uses this state folder.",
        "Stop the process named, or use a state folder of your own (--state-dir or state_dir).",
    ),
    _board(
        "verify-failed",
        "What was read back from the board is not what was written.",
        "Check the cable and the power supply; the running firmware was not touched.",
        transient=True,
    ),
    _board(
        "boot-failed",
        "The new firmware did not come up, so the board was rolled back.",
        "Look at the boot log in the history, correct the firmware, and configure a new version.",
    ),
    _board(
        "check-failed",
        "The robot's health check said no to the new firmware, so the board went back.",
        "Look at the reply of health_check's resource, correct the firmware, and configure a new "
        "version.",
    ),
    _policy(
        "check-unanswered",
        "The robot's health check was not answered, so the new firmware does not count as good.",
        "See that health_check's resource works, then call update, which has it asked again.",
    ),
    _board(
        "no-reset",
        "The board is still in download mode: no reset has started its firmware.",
        "Press the board's reset button with BOOT released, and wire DTR and RTS of its port to "
        "IO0 and EN if they are not, or say in `reset` what is wired there; then call update, "
        "which has the start watched.",
        counts=False,
    ),
    _board(
        "brown-out",
        "The board's power failed while its start was watched. That is power, not firmware.",
        "Check the power supply, the cable and the USB hub, then call update, which watches the "
        "start again.",
        counts=False,
    ),
    _policy(
        "held",
        "The board was rolled back by a person, and is held at what it went back to.",
        "Configure a new version, or call release for this board to have it taken up again.",
    ),
    _policy(
        "cancelled",
        "The update was cancelled.",
        "Call update to start it again.",
    ),
    _policy(
        "manifest-incomplete",
        "Not every board that the manifest needs first is there and good.",
        "Look at the boards that are named; when they are there and good, call update.",
    ),
    _policy(
        "stopped",
        "The run was stopped because too many boards failed with this firmware.",
        "Correct the firmware and configure a new version, or call release with stopped: true to "
        "let this one be tried again.",
    ),
    _host(
        "no-memory",
        "This computer has no memory left for it.",
        "Close other programs, or use a computer with more memory; then try again.",
    ),
    _host(
        "file-access",
        "A file or folder of this computer cannot be read or written.",
        "Check that it exists, and that this user may read and write it.",
    ),
    _host(
        "backup-invalid",
        "The folder holds no whole backup of a board.",
        "Name a folder that `esp32-ota backup` has made, or one that a flash has named.",
    ),
    _host(
        "backup-kept",
        "The folder holds a backup with keys that the board has no longer, so it was left.",
        "Name another folder.",
    ),
    _host(
        "address-in-use",
        "The address cannot be listened at.",
        "Choose another port (--port), or stop the program that uses it.",
    ),
    _link(
        "unreachable",
        "The machine cannot be reached.",
        "Check the address, the network, and that viam-server runs.",
    ),
    _link(
        "refused",
        "The machine refused what was asked.",
        "Check the key, and what was asked for.",
    ),
    _link(
        "not-found",
        "The machine has nothing of the name that was given.",
        "Check the name.",
    ),
    _link(
        "not-finished",
        "The machine goes on with what was asked, and has not replied yet.",
        "Look at its history later.",
    ),
    _host(
        "internal",
        "The updater met a state that it does not know.",
        "Please report this with the module's log; the board keeps what it had.",
        counts=True,
    ),
)

ERRORS: dict[str, ErrorKind] = {row.code: row for row in _ROWS}
"""Every row by its code, in the order of the table."""


class OtaError(Exception):
    """A failure that a person can read: what happened, to which board, what to do.

    code: a key of `ERRORS`. message: one sentence, more precise than the table's; without it
    the table's stands. board: the board's name, where one is concerned. remedy: where it can
    be more precise than the table's. baud: the speed of the link at which it happened, if known.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        board: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.kind = ERRORS[code]
        self.message = message or self.kind.message
        self.board = board
        self.remedy = remedy or self.kind.remedy
        self.baud: int | None = None
        super().__init__(f"{self.kind.code}: {self.message}")

    @property
    def code(self) -> str:
        """The error's code, a key of `ERRORS`."""
        return self.kind.code

    def __str__(self) -> str:
        where = f"{self.board}: " if self.board else ""
        return f"{where}{self.message} {self.remedy} [{self.code}]"

    @classmethod
    def unforeseen(cls, error: BaseException, *, board: str | None = None) -> OtaError:
        """What nobody foresaw, but for a computer without memory, which may meet anything."""
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return cls("no-memory", board=board)
        return cls("internal", f"{type(error).__name__}: {error}", board=board)

    def to_dict(self) -> dict[str, str]:
        """{"code", "message", "remedy"}, as the status and the replies carry it."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}
