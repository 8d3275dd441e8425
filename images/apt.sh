#!/bin/sh
# Installs packages of Debian: apt.sh PACKAGE...
# Beside it lie certificate authorities, where they were given as a secret.
set -eu
here=$(dirname "$0")
[ ! -f "$here/ca.crt" ] || echo "Acquire::https::CAInfo \"$here/ca.crt\";" >"$here/apt.conf"
[ ! -f "$here/apt.conf" ] || export APT_CONFIG="$here/apt.conf"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$@" >/dev/null
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old
find /var/log -type f -delete
