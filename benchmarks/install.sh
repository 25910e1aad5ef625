#!/bin/sh
# What benchmarks need besides the programs of tests/interop: Dovecot for AUTH beside Postfix, and Haraka, from npm, where
# npm and Node.js 20 are there. Silent when all are there.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
here="$(dirname "$0")"
"$here/../tests/interop/install.sh"

if ! command -v dovecot >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "missing: dovecot-core (a Debian package; as root on Debian it is installed for you)" >&2
        exit 1
    fi
    # Its service would start; it has no mailboxes to serve and is not wanted.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-upgrade --no-install-recommends dovecot-core >&2
fi

haraka="$here/../build/interop/haraka"
if ! [ -d "$haraka/node_modules/Haraka" ]; then
    if command -v npm >/dev/null; then
        mkdir -p "$haraka"
        npm install --silent --prefix "$haraka" --no-audit --no-fund --omit=optional Haraka@3.3.4 >&2
    else
        echo "Haraka is left out: there is no npm" >&2
    fi
fi
