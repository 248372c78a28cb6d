# SPDX-License-Identifier: GPL-3.0-or-later
"""The list: what would be wrong, where, and which tests are meant to notice.

Kept by hand: each is a slip that could cost a board, a key, or the truth of a report. Where code
changes, its mutants change with it (`test_mutants.py` says which).
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

OTADATA = "tests/formats/test_otadata.py"
IMAGE = "tests/formats/test_image.py"
SUPPLY = "tests/firmware/test_supply.py"
GUARD = "tests/dashboard/test_guard.py"
REGISTERS = "tests/link/test_spi.py"
JOURNAL = "tests/journal"
BOOT = "tests/board/test_boot.py"

_OTADATA = (
    Mutant(
        "an entry's CRC is written before the entry",
        "formats/otadata.py",
        'self.add([Program(offset, head, reason), Program(offset + _CRC_AT, crc, "its CRC")])',
        'self.add([Program(offset + _CRC_AT, crc, "its CRC"), Program(offset, head, reason)])',
        OTADATA,
    ),
    Mutant(
        "a torn entry's CRC goes to zero in one program",
        "formats/otadata.py",
        "if crc != (right := _crc(seq)) and crc & right == right:",
        "if crc == (right := _crc(seq)) and crc & right != right:",
        OTADATA,
    ),
    Mutant(
        "the number whose CRC is zero is left alone",
        "formats/otadata.py",
        "if not _crc(seq):",
        "if not seq:",
        OTADATA,
    ),
    Mutant(
        "a rejected entry is not taken away before its sector is erased",
        "formats/otadata.py",
        "if not entry.counts and entry.seq != SEQ_BLANK:",
        "if not entry.counts and entry.seq == SEQ_BLANK:",
        OTADATA,
    ),
    Mutant(
        "of two equal numbers the second entry decides",
        "formats/otadata.py",
        "return OtaData(entries, max(counting, key=lambda i: (entries[i].seq, -i), default=None))",
        "return OtaData(entries, max(counting, key=lambda i: (entries[i].seq, i), default=None))",
        OTADATA,
    ),
    Mutant(
        "an ABORTED entry counts",
        "formats/otadata.py",
        "_REJECTED = (OtaState.INVALID, OtaState.ABORTED)",
        "_REJECTED = (OtaState.INVALID,)",
        OTADATA,
    ),
    Mutant(
        "an entry without its number counts",
        "formats/otadata.py",
        "return self.crc_ok and self.seq != SEQ_BLANK",
        "return self.crc_ok",
        OTADATA,
    ),
    Mutant(
        "a pending entry in the sector that does not decide is overlooked",
        "formats/otadata.py",
        "return any(e.counts and e.state == OtaState.PENDING_VERIFY for e in self.entries)",
        "return self.active is not None "
        "and self.entries[self.active].state == OtaState.PENDING_VERIFY",
        OTADATA,
    ),
    Mutant(
        "the entry of the running slot is written over",
        "formats/otadata.py",
        "free = 1 - (otadata.active if otadata.active in vouching else vouching[0])",
        "free = otadata.active if otadata.active in vouching else vouching[0]",
        OTADATA,
    ),
    Mutant(
        "the number of a new entry may be the highest possible one",
        "formats/otadata.py",
        "return seq if seq < SEQ_BLANK else None",
        "return seq if seq <= SEQ_BLANK else None",
        OTADATA,
    ),
    Mutant(
        "slots are tried upwards before factory",
        "formats/otadata.py",
        "return down + ([None] if has_factory else []) + list(range(named + 1, n_slots))",
        "return down + list(range(named + 1, n_slots)) + ([None] if has_factory else [])",
        OTADATA,
    ),
    Mutant(
        "VALID that the bootloader writes by itself counts as rollback",
        "formats/otadata.py",
        "own = sector == 0 and 1 <= entry.seq <= n_slots and not has_factory",
        "own = sector == 0 and 1 < entry.seq <= n_slots and not has_factory",
        OTADATA,
    ),
    Mutant(
        "an entry that names the right slot in another state is taken for the wanted one",
        "formats/otadata.py",
        "return otadata.entries[otadata.active].state == state and back == running_slot",
        "return back == running_slot",
        OTADATA,
    ),
)

_IMAGE = (
    Mutant(
        "an image's checksum is not looked at",
        "formats/image.py",
        "if checksum != data[length - 1]:",
        "if checksum != data[length - 1] and hash_appended:",
        IMAGE,
    ),
    Mutant(
        "an image's appended SHA-256 is not looked at",
        "formats/image.py",
        "if hash_appended and hashlib.sha256(view[:length]).digest() != data[length:size_bytes]:",
        "if hash_appended and not data[length:size_bytes]:",
        IMAGE,
    ),
    Mutant(
        "any other value of the hash flag means no hash",
        "formats/image.py",
        "hash_appended = data[23] != 0  # as the bootloader reads it",
        "hash_appended = data[23] == 1",
        IMAGE,
    ),
    Mutant(
        "an app's mapped segments may stand anywhere",
        "formats/image.py",
        "if chip.maps(seg.load_address) and (seg.load_address - seg.file_offset) % page:",
        "if chip.maps(seg.load_address) and (seg.load_address - seg.file_offset) % 4:",
        IMAGE,
    ),
    Mutant(
        "a Merged Binary passes for an App Image",
        "formats/image.py",
        '    if find_partition_table(data) is not None:\n        raise OtaError("merged-binary")\n',
        "",
        IMAGE,
    ),
    Mutant(
        "the least revision is compared the wrong way round at equality",
        "formats/image.py",
        "return least <= revision and not (limited and revision > highest)",
        "return least < revision and not (limited and revision > highest)",
        IMAGE,
    ),
    Mutant(
        "what follows an image in a file is ignored",
        "formats/image.py",
        'if not trailing and data[total_bytes:].strip(b"\\xff\\0"):',
        "if not trailing and not data[:total_bytes]:",
        IMAGE,
    ),
)

_FIRMWARE = (
    Mutant(
        "a file of just the largest size is too large",
        "firmware/download.py",
        "if part.size_bytes + len(chunk) > self.max_bytes:",
        "if part.size_bytes + len(chunk) >= self.max_bytes:",
        SUPPLY,
    ),
    Mutant(
        "a file whose announced size is just the limit is too large",
        "firmware/download.py",
        "if total is not None and total > self.max_bytes:",
        "if total is not None and total >= self.max_bytes:",
        SUPPLY,
    ),
    Mutant(
        "two parts are joined by a weak ETag",
        "firmware/download.py",
        'weak = self.etag is None or self.etag.startswith("W/")',
        "weak = self.etag is None",
        SUPPLY,
    ),
    Mutant(
        "a further part may begin anywhere",
        "firmware/download.py",
        "if self.part is None or match is None or int(match[1]) != self.part.size_bytes:",
        "if self.part is None or match is None:",
        SUPPLY,
    ),
    Mutant(
        "a download that ends too early is whole",
        "firmware/download.py",
        "if total_bytes is not None and part.size_bytes != total_bytes:",
        "if total_bytes is not None and part.size_bytes > total_bytes:",
        SUPPLY,
    ),
    Mutant(
        "user and password go along to another server",
        "firmware/download.py",
        "        return target.with_user(None)\n",
        "        return target.with_user(url.user).with_password(url.password)\n",
        SUPPLY,
    ),
    Mutant(
        "a redirect from https to http is followed",
        "firmware/download.py",
        'if url.scheme == "https" and target.scheme == "http":',
        'if url.scheme == "http" and target.scheme == "https":',
        SUPPLY,
    ),
    Mutant(
        "a file of another digest than the configured one is taken",
        "firmware/check.py",
        "if sha256 is not None and digest != sha256.lower():",
        "if sha256 is not None and len(digest) != len(sha256):",
        SUPPLY,
    ),
    Mutant(
        "a damaged file of the cache is taken",
        "firmware/cache.py",
        "if hashlib.sha256(data).hexdigest() != sha256:",
        "if not data:",
        SUPPLY,
    ),
    Mutant(
        "an old file stands in for another version while its server is away",
        "firmware/supply.py",
        "if not download.gave_up or known is None or known.version != target.version:",
        "if not download.gave_up or known is None:",
        SUPPLY,
    ),
    Mutant(
        "the values of a query are shown",
        "firmware/urls.py",
        'return f"{name}={HIDDEN}" if value else pair',
        "return pair",
        "tests/firmware/test_urls.py",
    ),
    Mutant(
        "a password with a slash in it is shown as a part of the path",
        "firmware/urls.py",
        "        _ = parts.port\n",
        "        _ = parts.netloc\n",
        "tests/firmware/test_urls.py",
    ),
)

_DASHBOARD = (
    Mutant(
        "another site's page may ask",
        "dashboard/guard.py",
        "if origin is not None and urlsplit(origin).netloc.lower() != host.lower():",
        "if origin is not None and not urlsplit(origin).netloc:",
        GUARD,
    ),
    Mutant(
        "a name that resolves to this computer is its own",
        "dashboard/guard.py",
        "        except ValueError:\n            return False\n        return not self._loopback",
        "        except ValueError:\n            return True\n        return not self._loopback",
        GUARD,
    ),
)

_LINK = (
    Mutant(
        "an operation is not read back",
        "board/flash.py",
        "if flash.md5(op.offset, len(op.data)) == _md5(wanted):",
        "if flash.md5(op.offset, len(op.data)):",
        "tests/board/test_flash.py",
    ),
    Mutant(
        "an erase is not read back",
        "board/flash.py",
        'if flash.md5(op.offset, op.size_bytes) != _md5(b"\\xff" * op.size_bytes):',
        "if not flash.md5(op.offset, op.size_bytes):",
        "tests/board/test_flash.py",
    ),
    Mutant(
        "registers are not looked at before a command starts",
        "board/spi.py",
        "if found != [value for _, value, _, _ in looked_at]:",
        "if len(found) != len(looked_at):",
        REGISTERS,
    ),
    Mutant(
        "short programs are not looked at in the controller",
        "board/spi.py",
        "if len(data) <= CHECKED_BYTES and not blank:",
        "if len(data) < 1 and not blank:",
        REGISTERS,
    ),
    Mutant(
        "a program is taken for done while the flash is busy",
        "board/spi.py",
        "        while busy:\n",
        "        while busy and time.monotonic() > limit_s:\n",
        REGISTERS,
    ),
    Mutant(
        "an answer of the chip is believed at once",
        "board/identify.py",
        "if first != expected and read() != first:",
        "if first != expected and read() is None:",
        "tests/board/test_identify.py",
    ),
    Mutant(
        "other chips' MACs are read as the ESP32's",
        "board/identify.py",
        "mac = _checked_mac(esp) if esp.CHIP_NAME == ESP32ROM.CHIP_NAME else None",
        "mac = _checked_mac(esp) if isinstance(esp, ESP32ROM) else None",
        "tests/board/test_identify.py",
    ),
    Mutant(
        "zeros are a MAC",
        "board/identify.py",
        "if set(mac) in ({0x00}, {0xFF}):",
        "if set(mac) in ({0xFF},):",
        "tests/board/test_identify.py",
    ),
    Mutant(
        "a protected part of the flash is one too small",
        "board/protection.py",
        "return offset + size_bytes > self.flash_bytes - covered",
        "return offset > self.flash_bytes - covered",
        "tests/board",
    ),
    Mutant(
        "secrets of four bytes are shown",
        "board/secrets.py",
        "if len(secret) >= MIN_SECRET_BYTES\n            for form",
        "if len(secret) > MIN_SECRET_BYTES\n            for form",
        "tests/firmware/test_run_secrets.py tests/firmware/test_secrets.py tests/board",
    ),
    Mutant(
        "a secret within another leaves its rest",
        "board/secrets.py",
        "self._secrets = sorted(texts, key=len, reverse=True)",
        "self._secrets = sorted(texts, key=len)",
        "tests/firmware/test_run_secrets.py tests/firmware/test_secrets.py tests/board",
    ),
)

_BOOT = (
    Mutant(
        "what boot_expect found is kept across a power-on reset",
        "board/boot.py",
        "self.loaded_offset = None\n        self.expectation_met = False",
        "self.loaded_offset = None",
        BOOT,
    ),
    Mutant(
        "a panic in the middle of a line counts",
        "board/boot.py",
        "starts = _PANIC.match(text) or",
        "starts = _PANIC.search(text) or",
        BOOT,
    ),
    Mutant(
        "a reset line in the middle of a line counts",
        "board/boot.py",
        "if match := _RESET.match(text):",
        "if match := _RESET.search(text):",
        BOOT,
    ),
    Mutant(
        "an app that goes on has panicked all the same",
        "board/boot.py",
        'self._panic, self._panic_at_s, self._decisive = "", None, None\n            return False',
        "return False",
        BOOT,
    ),
    Mutant(
        "a panic is a planned restart",
        "board/boot.py",
        "elif self._panic:\n            self._panicked(now_s)\n        elif cause",
        "elif cause",
        BOOT,
    ),
    Mutant(
        "a watchdog's reset is a planned restart",
        "board/boot.py",
        "elif cause is ResetCause.SOFTWARE and self._restarted < self.restarts:",
        "elif self._restarted < self.restarts:",
        BOOT,
    ),
    Mutant(
        "a wake from sleep starts the watch over",
        "board/boot.py",
        "self.loaded_offset = None  # the bootloader runs again; the app's time goes on",
        "self._start_over(now_s)",
        BOOT,
    ),
    Mutant(
        "the brown-out detector's words are forgotten before the reset",
        "board/boot.py",
        "elif _ROM_HEAD.match(text):\n            self._brown_out = brown_out",
        "elif _ROM_HEAD.match(text):\n            pass",
        BOOT,
    ),
    Mutant(
        "a bootloader that goes back after a power failure speaks against the firmware",
        "board/boot.py",
        "if self.outside_resets and not self._why_not:",
        "if not self.outside_resets and self._why_not:",
        BOOT,
    ),
    Mutant(
        "a board in download mode is merely silent",
        "board/boot.py",
        "if self.in_download and self.shown_at_s is None:",
        "if self.in_download and self.shown_at_s is not None:",
        BOOT,
    ),
    Mutant(
        "what is kept of a failed start is its end",
        "board/boot.py",
        "at = max(0, self._decisive - self._dropped)",
        "at = len(self.lines)",
        BOOT,
    ),
)

MUTANTS: tuple[Mutant, ...] = (*_OTADATA, *_IMAGE, *_FIRMWARE, *_DASHBOARD, *_LINK, *_BOOT)
