# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a firmware comes from, and who may ask for one."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SUPPLY = "tests/firmware/test_supply.py"
GUARD = "tests/dashboard/test_guard.py"

MUTANTS = (
    Mutant(
        "a file of just the largest size is too large",
        "firmware/download.py",
        "if part.size_bytes + len(chunk) > self.max_bytes:",
        "if part.size_bytes + len(chunk) >= self.max_bytes:",
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
        "user and password go along to another server",
        "firmware/download.py",
        "        return target.with_user(None)\n",
        "        return target.with_user(url.user).with_password(url.password)\n",
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
