#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# The module's executable for viam-server. Sets up its environment at the first start, then
# becomes Python itself (exec), so that viam-server's signals reach the module.
set -euo pipefail
self="${BASH_SOURCE[0]}"
while [ -L "$self" ]; do
    target="$(readlink -- "$self")"
    case "$target" in /*) self="$target" ;; *) self="$(dirname -- "$self")/$target" ;; esac
done
here="$(cd -- "$(dirname -- "$self")" && pwd -P)"
exec "$here/setup.sh" -- "$here/src/main.py" "$@"
