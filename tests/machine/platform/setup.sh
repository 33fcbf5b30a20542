#!/bin/bash
# In the machine: installs what makes the links under /dev/stratis.
set -e
install -m 755 udev/stratis-base32-decode udev/stratis-str-cmp /usr/lib/udev/
install -m 644 udev/61-stratisd.rules /usr/lib/udev/rules.d/
udevadm control --reload
if ldd ./platform_machine | grep 'not found'; then exit 1; fi
