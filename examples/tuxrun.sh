#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Run the suite in tuxrun's QEMU: tuxrun.sh BZIMAGE MODULES.tar.xz ROOTFS.ext4.xz
# The root file system needs g++, python3 with the packages of requirements.txt, and the suite in
# /suite. The guest needs KVM in its turn: a host that nests.
set -eu
: "${3:?usage: tuxrun.sh BZIMAGE MODULES.tar.xz ROOTFS.ext4.xz}"
exec tuxrun --device qemu-x86_64 --kernel "$1" --modules "$2" --rootfs "$3" \
    --timeouts commands=30 -- \
    "cd /suite && python3 -m pytest suites/ -n auto --ktap=-"
