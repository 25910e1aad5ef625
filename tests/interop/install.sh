#!/bin/sh
# The programs of others that tests and benchmarks use, from Debian. Silent when all are there.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
missing=""
for pair in smtp-source:postfix smtp-sink:postfix swaks:swaks msmtp:msmtp curl:curl strace:strace \
    systemd-analyze:systemd mkfs.ext4:e2fsprogs losetup:mount; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
# For TLS; swaks only recommends it.
perl -MNet::SSLeay -e 1 2>/dev/null || missing="$missing libnet-ssleay-perl"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing:$missing (Debian packages; as root on Debian they are installed for you)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# Postfix is wanted for its programs alone: without a configuration no service starts.
echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
# A third-party source that is down must not matter; a missing package fails the next line.
apt-get update -q >&2 || true
# shellcheck disable=SC2086  # one word each
apt-get install -q -y --no-install-recommends $missing >&2
