#!/bin/sh
# A stand-in for python:3.11-slim-bookworm where no image registry can be reached: Debian by debootstrap, and a
# Python 3.11 that lies on this machine. Prints nothing but the image's name; needs root, debootstrap and buildah.
#   sh containers/base.sh /path/of/python3.11-prefix [NAME]     e.g. NAME = localhost/python:3.11-slim-bookworm
set -eu
PREFIX=$1
NAME=${2:-localhost/python:3.11-slim-bookworm}
MIRROR=${MIRROR:-http://deb.debian.org/debian}

ROOT=$(mktemp -d)
trap 'rm -rf "$ROOT"' EXIT
debootstrap --variant=minbase --include=ca-certificates,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,libreadline8,zlib1g,libncursesw6,libexpat1,libuuid1 \
  bookworm "$ROOT" "$MIRROR" >&2
cp -a "$PREFIX"/bin/python3.11 "$ROOT"/usr/local/bin/
cp -a "$PREFIX"/lib/. "$ROOT"/usr/local/lib/
cp -a "$PREFIX"/include/. "$ROOT"/usr/local/include/
# the packages of this machine's Python stay here: only the standard library and pip go along
find "$ROOT"/usr/local/lib/python3.11/site-packages -mindepth 1 -maxdepth 1 ! -name 'pip*' ! -name 'setuptools*' -exec rm -rf {} +
ln -s python3.11 "$ROOT"/usr/local/bin/python3
ln -s python3.11 "$ROOT"/usr/local/bin/python
chroot "$ROOT" ldconfig
chroot "$ROOT" python -c 'import ssl, sqlite3, ctypes, bz2, lzma, readline, pip' >&2

CONTAINER=$(buildah from scratch)
buildah add --quiet "$CONTAINER" "$ROOT" / >&2
buildah config --cmd python3 --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$CONTAINER"
buildah commit --quiet --rm "$CONTAINER" "$NAME" >&2
echo "$NAME"
