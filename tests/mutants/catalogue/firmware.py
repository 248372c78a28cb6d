# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a firmware comes from, and who may ask for one."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

MANIFEST = "tests/firmware/test_manifest.py"
SUPPLY = "tests/firmware/test_supply.py"
ODD_SERVERS = "tests/firmware/test_odd_servers.py"
GUARD = "tests/dashboard/test_guard.py"

MUTANTS = (
    Mutant(
        "a file of just the largest size is too large",
        "firmware/download.py",
        "if len(arrived) + len(chunk) > self.max_bytes:",
        "if len(arrived) + len(chunk) >= self.max_bytes:",
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
        "                own = {}\n",
        "                own = dict(own)\n",
        SUPPLY,
    ),
    Mutant(
        "a redirect may lead into this machine",
        "firmware/download.py",
        "near = resolver.any_place = await _is_local(url.host, timeout_s=patience.lookup_s)",
        "near = resolver.any_place = True",
        ODD_SERVERS + "::test_no_redirect_leads_into_this_machine",
    ),
    Mutant(
        "a library's words of a url are repeated",
        "firmware/download.py",
        "        except Exception as error:\n            raise explained(",
        "        except OSError as error:\n            raise explained(",
        ODD_SERVERS + "::test_an_odd_answer",
    ),
    Mutant(
        "a reply keeps a password that a library repeated",
        "module/plain.py",
        "visible(hide(str(value)))",
        "visible(str(value))",
        "tests/module/test_plain.py",
    ),
    Mutant(
        "a text from outside may forge a line",
        "module/plain.py",
        "visible(hide(str(value)))",
        "hide(str(value))",
        "tests/module/test_plain.py",
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
        "a file may be sent by another site's form",
        "dashboard/guard.py",
        'if request.method == "POST" and request.content_type != kind:',
        'if request.method == "POST" and kind not in (request.content_type, BODIES[UPLOAD]):',
        GUARD,
    ),
    Mutant(
        "a manifest that is dropped reads what lies on this computer",
        "dashboard/bench.py",
        "if image.sha256 not in here and not urlsplit(image.url).scheme",
        "if image.sha256 not in here and urlsplit(image.url).path.count('/') == 1",
        "tests/dashboard/test_bench.py::test_a_manifests_paths_lead_nowhere",
    ),
    Mutant(
        "a name that resolves to this computer is its own",
        "dashboard/guard.py",
        "        except ValueError:\n            return False\n        return not self.loopback",
        "        except ValueError:\n            return True\n        return not self.loopback",
        GUARD,
    ),
    Mutant(
        "a device is read for a file",
        "firmware/files.py",
        "if not stat.S_ISREG(status.st_mode):",
        "if stat.S_ISDIR(status.st_mode):",
        "tests/cli/test_odd_files.py",
    ),
    Mutant(
        "a file without end is read",
        "firmware/files.py",
        "if max(status.st_size, len(data)) > max_bytes:",
        "if status.st_size > max_bytes:",
        "tests/cli/test_odd_files.py",
    ),
    Mutant(
        "what opens one server is sent to another one",
        "firmware/manifest.py",
        "== (parts.scheme, parts.hostname, parts.port):",
        "!= (parts.scheme, '', parts.port):",
        f"{MANIFEST}::test_where_an_image_is",
    ),
    Mutant(
        "a step beside a group does not wait for it",
        "firmware/manifest.py",
        "*(end for begin, end in spans if begin <= last <= end)])",
        "*(end for begin, end in spans if begin == first <= end)])",
        f"{MANIFEST}::test_groups_make_blocks_of_the_steps_they_span",
    ),
    Mutant(
        "a key that stands twice is taken as it stands last",
        "firmware/manifest.py",
        "        if key in made:\n            raise",
        "        if key is made:\n            raise",
        f"{MANIFEST}::test_what_is_wrong_is_named_by_its_path",
    ),
    Mutant(
        "an image goes to boards of another chip",
        "firmware/manifest.py",
        "self.chip is not None and same_chip(self.chip, chip)",
        "self.chip is not None",
        f"{MANIFEST}::test_what_is_left_out_the_images_say",
    ),
    Mutant(
        "of two images that fit a board it gets the first",
        "fleet/assignment.py",
        "if len(fits) == 1:",
        "if fits:",
        "tests/fleet/test_assignment.py::test_an_image_goes_to_boards_of_its_project_and_chip",
    ),
)
