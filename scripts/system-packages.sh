#!/bin/sh
# Install the programs for the tests that pip does not provide, or print the command to do so. With `tools` or
# `bench-page`: also those of that make target.
set -eu

missing=

need() {
    command -v "$1" >/dev/null || missing="$missing $2"
}

need chromium-headless-shell chromium-headless-shell
need tesseract tesseract-ocr
need systemctl systemd
need nsenter util-linux
need ip iproute2
need sqlite3 sqlite3
need nginx nginx
need caddy caddy
need apache2 apache2-bin
need rsync rsync
need git git
need node nodejs
need progress progress
need valkey-server valkey-server
if [ "${1-}" = tools ]; then
    need aria2c aria2
    need cmake cmake
    need curl curl
    need make make
    need ninja ninja-build
    need npm npm
    need ocrmypdf ocrmypdf
    need pv pv
    need restic restic
    need tmux tmux
    need wget wget
    need xz xz-utils
    need zstd zstd
    need qemu-img qemu-utils
    need rclone rclone
    need ffmpeg ffmpeg
    need gpg gnupg
    need e2fsck e2fsprogs
    need borg borgbackup
    need borgmatic borgmatic
elif [ "${1-}" = bench-page ]; then
    need chromium chromium  # as users have it
fi

[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing$missing …"
    export DEBIAN_FRONTEND=noninteractive
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then  # the packages must not start services; the tests start the proxies
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    if log=$({ apt-get update && apt-get install --yes --no-install-recommends $missing; } 2>&1); then
        exit 0
    fi
    printf '%s\n' "$log" >&2
    exit 1
fi

echo "The tests need programs that are not installed. On Debian run: sudo apt install$missing" >&2
exit 1
