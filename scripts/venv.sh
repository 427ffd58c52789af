#!/bin/sh
# Create a virtual environment, or print what is missing and how to install it.
#
#     scripts/venv.sh DIRECTORY [PYTHON]
#
# Without PYTHON it searches for a version that is new enough. It never installs Python.
set -eu

directory=$1
wanted=${2-}

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

[ ! -e "$directory/bin/python" ] || exit 0

if [ -n "$wanted" ]; then
    fits "$wanted" || fail "$wanted is not Python 3.11 or newer: name another one, such as: make run PYTHON=python3.12"
    python=$wanted
else
    for python in python3 python3.14 python3.13 python3.12 python3.11 ''; do
        [ -n "$python" ] || fail \
            "progressd needs Python 3.11 or newer, which is not on the PATH." \
            "On Debian and Ubuntu run: sudo apt install python3 python3-venv" \
            "If it is elsewhere, name it: make run PYTHON=/path/to/python3"
        ! fits "$python" || break
    done
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    fail "Python $version has no module to make virtual environments." \
        "On Debian and Ubuntu run: sudo apt install python$version-venv"
fi

"$python" -m venv "$directory" || { rm -rf "$directory"; exit 1; }
