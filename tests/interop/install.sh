#!/bin/sh
# The programs of others that tests and benchmarks use, from Debian. Silent when all are there.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
unpacked="$(dirname "$0")/../../build/interop"
missing=""
for pair in smtp-source:postfix smtp-sink:postfix swaks:swaks msmtp:msmtp curl:curl strace:strace \
    systemd-analyze:systemd mkfs.ext4:e2fsprogs losetup:mount unshare:util-linux; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
# For TLS; swaks only recommends it.
perl -MNet::SSLeay -e 1 2>/dev/null || missing="$missing libnet-ssleay-perl"

# As packages mail servers exclude one another: all but Postfix are only unpacked, and the libraries they need installed.
to_unpack=""
for pair in exim4-daemon-light:exim4 opensmtpd:smtpd; do
    if ! needs=$(ldd "$unpacked/${pair%%:*}/usr/sbin/${pair#*:}" 2>/dev/null) || echo "$needs" | grep -q "not found"; then
        to_unpack="$to_unpack ${pair%%:*}"
    fi
done
[ -n "$missing$to_unpack" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing:$missing$to_unpack (Debian packages; as root on Debian they are installed for you)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# Postfix is wanted for its programs alone: without a configuration no service starts.
echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
# A third-party source that is down must not matter; a missing package fails the next line.
apt-get update -q >&2 || true
for package in $to_unpack; do
    rm -rf "${unpacked:?}/$package"
    mkdir -p "$unpacked/$package"
    (cd "$unpacked/$package" && apt-get download -q "$package" >&2 && dpkg -x "$package"_*.deb .)
    for library in $(dpkg-deb -f "$unpacked/$package/$package"_*.deb Depends | grep -o '\blib[^ ,]*'); do
        dpkg -s "$library" >/dev/null 2>&1 || missing="$missing $library"
    done
done
[ -n "$missing" ] || exit 0
# shellcheck disable=SC2086  # one word each
apt-get install -q -y --no-upgrade --no-install-recommends $missing >&2
