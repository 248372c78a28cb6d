# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that a publisher gave our models, as the archive's meta.json has them.

Viam's registry takes models only in the namespace of the organisation that publishes them
(`make module NAMESPACE=acme`), and a machine's configuration then says `acme:generic:...`.
"""

from __future__ import annotations

import json
from pathlib import Path

from viam.resource.types import Model

META = Path(__file__).parents[3] / "meta.json"
"""Beside run.sh; a package that was installed by itself has none."""

OWN_NAMESPACE = "rdk"


def published_models(name: str, meta: Path = META) -> list[Model]:
    """The models called `name` that meta.json has in a namespace other than our own."""
    try:
        listed = json.loads(meta.read_text("utf-8"))["models"]
        found = [Model.from_string(entry["model"]) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [m for m in found if m.name == name and m.model_family.namespace != OWN_NAMESPACE]
