# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota trust`: this host's policy, whose firmware it takes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.text import Text

from ota_service.cli.output import files, json_option, out, print_json
from ota_service.errors import OtaError
from ota_service.firmware import trust as policy
from ota_service.firmware.files import read_file, write_file
from ota_service.firmware.supply import Supply
from ota_service.firmware.urls import check_url, is_path
from ota_service.formats.signature import public_key_digest
from ota_service.module.folders import default_cache_dir


@click.group()
def trust() -> None:
    """Whose firmware this host takes: show it, and add to it.

    The policy is in /etc/ota-service/trust and belongs to root. Without one, any firmware that a
    configuration names is taken.
    """


@trust.command(short_help="Show whose firmware this host takes.")
@json_option
def show(as_json: bool) -> None:
    """Show each policy of this host: its keys and its repositories. Exit code 1: it is not valid.

    One that a module's configuration adds (OTA_SERVICE_TRUST) is shown where that is set here.
    """
    shown: dict[str, Any] = {"policies": []}
    try:
        for one in policy.policies():
            keys = {name: digest.hex() for digest, name in (one.keys or {}).items()}
            rows = [{"url": r.url, **_facts(r.root)} for r in one.repositories or ()]
            shown["policies"].append({
                "folder": str(one.folder),
                **({} if one.keys is None else {"keys": keys}),
                **({} if one.repositories is None else {"repositories": rows}),
            })  # fmt: skip
    except OtaError as error:
        if not as_json:
            raise
        shown["error"] = error.to_dict()
    if as_json:
        print_json({"ok": "error" not in shown, **shown})
        if "error" in shown:
            raise SystemExit(1)
    else:
        _print(shown["policies"])


def _print(policies: list[dict[str, Any]]) -> None:
    from ota_service.cli.repo import show_root

    console = out()
    if not policies:
        console.print("This host has no policy: it takes any firmware that a configuration names.")
    for row in policies:
        console.print(Text(row["folder"], "bold"), soft_wrap=True)
        if "keys" in row:
            console.print("  Each image must be signed by one of these keys (Secure Boot v2):")
            for name, digest in row["keys"].items():
                console.print(Text(f"    {name}  {digest}"), soft_wrap=True)
        if "repositories" in row:
            console.print("  Firmware comes from these repositories only:")
            for one in row["repositories"]:
                console.print(Text(f"    {one['url']}"), soft_wrap=True)
                show_root(console, one, indent=6)


def _facts(root: bytes) -> dict[str, Any]:
    from ota_service.building.repository import root_facts

    try:
        return root_facts(root)
    except OtaError as error:
        raise OtaError("trust-invalid", f"A root of this host is none: {error.message}") from None


@trust.command(short_help="Have this host take a key's or a repository's firmware only.")
@click.argument("source", metavar="URL|root.json|KEY.pem")
@click.option("--url", help="With root.json: the repository's base, an address or a path.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False),
              help="A further certificate authority for https.")  # fmt: skip
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def install(
    source: str, url: str | None, ca_file: str | None, yes: bool, as_json: bool
) -> None:  # fmt: skip
    """Have this host take firmware of a key or of a repository only. As root.

    A public key of Secure Boot v2 (PEM): each image must then be signed by it, or by another key
    that is installed. A repository (its base's address or path, or its root.json with --url):
    firmware must then come from there, or from another one that is installed. Compare the
    fingerprint that is shown with the owner's before you say yes.
    """
    with files():
        data, base = _found(source, url, ca_file)
        if base is None:
            try:
                about: dict[str, Any] = {"key": public_key_digest(data).hex()}
            except ValueError as error:
                raise OtaError("trust-invalid", f"{source} {error}.",
                               remedy="Give a public key in PEM form (`espsecure "
                               "extract-public-key`).") from None  # fmt: skip
        else:
            from ota_service.building.repository import root_facts

            about = {"repository": base, **root_facts(data)}
        if not yes:
            _ask(about)
        if os.geteuid() not in policy.HOST_OWNERS:
            raise OtaError("file-access", f"Only root may write to {policy.HOST}.",
                           remedy="Call this as root (sudo).")  # fmt: skip
        made = _add_key(source, data) if base is None else _add_root(base, data)
        policy.policies()  # it counts from now on: say so if it cannot
    if as_json:
        print_json({"ok": True, "installed": str(made), **about})
    else:
        out().print(f"Installed as {made}; it counts from now on.", soft_wrap=True)


def _found(source: str, url: str | None, ca_file: str | None) -> tuple[bytes, str | None]:
    """(a key, None), or (a root, its repository's base)."""
    if ":/" in source and not is_path(source):
        if (why := check_url(source)) is not None:  # words that show no password of it
            raise click.UsageError(f"The address {why}.")
        parts = urlsplit(source)
        base = _base(policy.place_of(source))  # what opens the door comes with the configuration
        path = parts.path.removesuffix("/") + "/metadata/1.root.json"
        place = parts._replace(path=path, fragment="").geturl()
        supply = Supply(default_cache_dir(), trusting=True)
        fetch = supply.fetch(place, ca_file=ca_file, max_bytes=policy.MAX_FILE_BYTES)
        return asyncio.run(fetch), base
    if os.path.isdir(source):
        root = Path(source, "metadata", "1.root.json")
        return read_file(root, policy.MAX_FILE_BYTES), _base(os.path.abspath(source))
    data = read_file(source, policy.MAX_FILE_BYTES)
    if not data.lstrip().startswith(b"{"):
        return data, None
    return data, _base(url or "")


def _base(url: str) -> str:
    """As a policy has it. Raises UsageError, which shows no password."""
    if check_url(url) is not None or not policy.is_base(url):
        words = "an http or https address without user, query and @, or a whole path"
        raise click.UsageError(f"Give the repository's base (--url, with root.json): {words}.")
    return policy.base_of(url)


def _ask(about: dict[str, Any]) -> None:
    from ota_service.cli.repo import show_root

    console = out()
    if "key" in about:
        console.print(Text(f"  key's digest: {about['key']}"), soft_wrap=True)
        question = "Take only images that this key, or another one of this host, has signed?"
    else:
        console.print(Text(f"  {about['repository']}"), soft_wrap=True)
        show_root(console, about)
        question = "Take firmware only from here, or another repository of this host?"
    if not click.confirm(question, err=True):
        raise OtaError(
            "cancelled", "Nothing was installed.", remedy="Call it again if it is meant."
        )


def _add_key(source: str, data: bytes) -> Path:
    path = policy.HOST / policy.KEYS / f"{Path(source).stem}.pem"
    if path.exists() and policy.read(path) != data:
        path = path.with_name(f"{path.stem}-{public_key_digest(data).hex()[:8]}.pem")
    return _write(path, data)


def _add_root(base: str, data: bytes) -> Path:
    path = policy.HOST / policy.REPOSITORIES
    root = f"root-{hashlib.sha256(data).hexdigest()[:16]}.json"
    try:
        rows = json.loads(policy.read(path)) if path.exists() else []
        rows = [row for row in rows if policy.base_of(row["url"]) != base]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise OtaError("trust-invalid", f"{path} cannot be added to: correct it first.") from None
    rows.append({"url": base, "root": root})
    _write(policy.HOST / root, data)
    return _write(path, json.dumps(rows, indent=2).encode())


def _write(path: Path, data: bytes) -> Path:
    """Whole or not at all, for all to read and its owner to write."""
    before = os.umask(0o022)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(path, data, mode=0o644)
    finally:
        os.umask(before)
    return path
