#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Sets up the one Python environment that run.sh and every Make target use, where it is not
# there yet or no longer fits, and then runs Python in it.
#
#   ./setup.sh                   set up what the module needs
#   ./setup.sh --dev             and what the tests and checks need
#   ./setup.sh [--dev] -- ARGS   then become `python ARGS` (exec: the process stays the same)
#
# The environment is `.venv` in the checkout; where the checkout cannot be written, a folder
# under VIAM_HOME (without VIAM_HOME: the user's cache folder). It is made once, and again when
# the pinned requirements, the place of the checkout or the version of Python change, or when an
# earlier set-up was interrupted. Any number of copies may start at once: one works, the others
# wait for it. PYTHON=... names the Python to use for making it.
set -euo pipefail

case "$OSTYPE" in
linux*) ;;
*)
    echo "ota_service runs on Linux alone, and this system is $OSTYPE: install it on the Linux" \
        "computer that the boards are attached to." >&2
    exit 1
    ;;
esac

self="${BASH_SOURCE[0]}"
while [ -L "$self" ]; do # through any chain of symlinks to the checkout itself
    target="$(readlink -- "$self")"
    case "$target" in /*) self="$target" ;; *) self="$(dirname -- "$self")/$target" ;; esac
done
here="$(cd -- "$(dirname -- "$self")" && pwd -P)"

dev=""
if [ "${1:-}" = "--dev" ]; then
    dev=1
    shift
fi
if [ $# -gt 0 ]; then
    if [ "$1" != "--" ]; then
        echo "usage: $0 [--dev] [-- PYTHON_ARGUMENTS...]" >&2
        exit 2
    fi
    shift
fi

venv="$here/.venv"

# What a finished environment was made from. Whoever reads another text makes it again.
pins() {
    printf 'checkout %s\nenvironment %s\n' "$here" "$venv"
    cat -- "$here/requirements-build.txt" "$here/requirements.txt"
    if [ -n "$dev" ]; then cat -- "$here/requirements-dev.txt"; fi
}

# The python of an environment whose base was removed or replaced by another version does not
# start, or looks for its packages in the wrong folder.
python_works() {
    [ -f "$venv/.python" ] &&
        [ "$("$venv/bin/python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' \
            2>/dev/null)" = "$(<"$venv/.python")" ]
}
is_ready() {
    local stamp="$venv/.installed${dev:+-dev}"
    [ -f "$stamp" ] && [ "$(<"$stamp")" = "$(pins)" ] && python_works
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        # A name that exists may still be a launcher for a version that is not installed.
        if "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    echo "ota_service: no Python 3.11 or newer was found. Install one, or name it:" \
        "PYTHON=/path/to/python3 $0" >&2
    return 1
}

make_environment() {
    local python
    python="$(find_python)"
    if ! "$python" -m venv --clear -- "$venv" >"$log" 2>&1; then
        cat -- "$log" >&2
        echo "ota_service: $python cannot make a virtual environment in $venv." \
            "On Debian and Ubuntu install python3-venv." >&2
        return 1
    fi
    "$venv/bin/python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' >"$venv/.python"
}

pip_install() {
    "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input -q \
        --require-hashes "$@" >"$log" 2>&1
}

install_packages() {
    local files=(-r "$here/requirements.txt") from
    if [ -n "$dev" ]; then files+=(-r "$here/requirements-dev.txt"); fi
    # What comes as source is built with the pinned setuptools, not with what the index has today.
    # An archive may carry its packages along, for machines without a package index.
    for from in "$here/wheels" ""; do
        if [ -n "$from" ] && [ ! -d "$from" ]; then continue; fi
        if pip_install ${from:+--no-index --find-links "$from"} \
            -r "$here/requirements-build.txt" &&
            pip_install ${from:+--no-index --find-links "$from"} --no-build-isolation \
                "${files[@]}"; then
            return 0
        fi
        if [ -n "$from" ]; then
            echo "ota_service: the packages in $from are not all that this Python needs;" \
                "asking the package index"
        fi
    done
    cat -- "$log" >&2
    echo "ota_service: the pinned packages could not be installed; pip's words stand above." \
        "Set-up needs a Python package index: the internet, or a mirror named in" \
        "PIP_INDEX_URL. The next start tries again." >&2
    return 1
}

# Our own code is found where it stands: no build, and an edit counts at once.
link_checkout() {
    local packages
    packages="$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    printf '%s\n' "$here/src" >"$packages/ota_service.pth"
    printf '#!/usr/bin/env bash\nexec %q -m ota_service.cli.main "$@"\n' "$venv/bin/python" \
        >"$venv/bin/esp32-ota"
    chmod +x -- "$venv/bin/esp32-ota"
}

# Fits: this checkout, this place, a Python that starts, and no set-up that broke off.
is_sound() {
    [ ! -e "$venv/.unfinished" ] && python_works &&
        [ "$(head -n 2 "$venv/.installed" 2>/dev/null)" = "$(pins | head -n 2)" ]
}

set_up() {
    if is_sound; then
        echo "ota_service: installing the pinned packages into $venv"
    else
        echo "ota_service: setting up its Python environment in $venv (once; about a minute)"
        # Gone first, so that an interruption in the middle leaves nothing that looks finished.
        rm -f -- "$venv/.installed" "$venv/.installed-dev" "$venv/.python"
        make_environment
    fi
    : >"$venv/.unfinished"
    # The packages of the tests leave those of the module as they are: while they are added,
    # the module may start.
    if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$(dev="" pins)" ]; then
        rm -f -- "$venv/.installed" "$venv/.installed-dev"
    fi
    install_packages
    link_checkout
    if [ -n "$dev" ]; then pins >"$venv/.installed-dev"; fi
    dev="" pins >"$venv/.installed"
    rm -f -- "$venv/.unfinished"
    echo "ota_service: the environment is ready"
}

if ! is_ready && [ ! -w "$here" ]; then
    # Two checkouts must not share a folder, so its name carries the checkout's path.
    base="${VIAM_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}}/ota-service-env"
    venv="$base/$(printf '%s' "$here" | cksum | cut -d' ' -f1)"
fi

if ! is_ready; then
    mkdir -p -- "$(dirname -- "$venv")"
    # The lock stands beside the environment, which may be removed and made again. Python takes
    # it on our descriptor 9, so no further program is needed; it ends with this process.
    exec 9>"$venv.lock"
    locker="$(find_python)"
    "$locker" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    log="$(mktemp)"
    trap 'rm -f -- "$log"' EXIT
    if ! is_ready; then set_up; fi
    rm -f -- "$log"
    trap - EXIT
    exec 9>&-
fi

if [ $# -gt 0 ]; then exec "$venv/bin/python" "$@"; fi
