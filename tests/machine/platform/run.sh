#!/bin/bash
# Runs the checks of the platform in a throw-away machine: udev rule and helpers, three scratch disks.
# VMTEST names the tool if it is not found beside this directory. Arguments are for the tool; CHECKS, if set, holds
# (quoted) beginnings of the names of the checks to run.
set -e
here=$(dirname "$(realpath "$0")")
top=$(realpath "$here/../../..")
vmtest=${VMTEST:-$top/tests/machine/vmtest}
[ -x "$vmtest" ] || vmtest=/tmp/vm/vmtest
cd "$top"
cargo build --example platform_machine
share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
cp "${CARGO_TARGET_DIR:-target}/debug/examples/platform_machine" "$share/"
cp -r "$here/udev" "$here/setup.sh" "$share/"
"$vmtest" --share "$share" --disk 4G --disk 4G --disk 4G "$@" -- \
    "STRATISD_MACHINE=1 RUST_BACKTRACE=0 ./platform_machine $CHECKS"
