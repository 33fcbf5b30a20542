#!/bin/bash
# The dracut module `stratis-clevis`: unlocks pools of Stratis by Clevis in the initrd. Only on request:
# `dracut --add stratis-clevis`. `make install` fills in @UNITGENDIR@ and @STRATISDATADIR@.
# shellcheck disable=SC2154  # dracut sets moddir, systemdutildir

# shellcheck source=boot/contents.sh
. "${dracutsysrootdir-}@STRATISDATADIR@/initrd-contents.sh"

stratis_missing() {
    local word
    for word in "$@"; do
        find_binary "$word" > /dev/null || [[ -r ${dracutsysrootdir-}$word ]] || echo "$word"
    done
}

# Without TPM programs the module unlocks by Tang only.
stratis_has_tpm2() {
    # shellcheck disable=SC2086
    [[ ! $(stratis_missing $STRATIS_CLEVIS_PROGRAMS_TPM2 $STRATIS_CLEVIS_SCRIPT_PROGRAMS_TPM2) ]]
}

check() {
    local missing
    # shellcheck disable=SC2086
    missing=$(stratis_missing $STRATIS_CLEVIS_PROGRAMS $STRATIS_CLEVIS_PROGRAMS_TANG $STRATIS_CLEVIS_SCRIPT_PROGRAMS \
        '@UNITGENDIR@/stratis-clevis-setup-generator')
    if [[ $missing ]]; then
        # The user may not want the module, so this is not an error.
        dinfo "module 'stratis-clevis' is left out: missing ${missing//$'\n'/ }"
        return 1
    fi
    return 255
}

# The module `network` brings the interfaces up if the kernel command line says rd.neednet=1. It may come
# in a package of its own, which a TPM does not need.
depends() {
    echo stratis
    ! compgen -G "${dracutbasedir-}/modules.d/[0-9][0-9]network" > /dev/null || echo network
}

installkernel() {
    hostonly='' instmods '=drivers/char/tpm'
}

install() {
    # shellcheck disable=SC2086
    inst_multiple $STRATIS_CLEVIS_PROGRAMS $STRATIS_CLEVIS_PROGRAMS_TANG $STRATIS_CLEVIS_SCRIPT_PROGRAMS ||
        dfatal "module 'stratis-clevis': cannot install its programs"
    # shellcheck disable=SC2086
    inst_multiple -o $STRATIS_CLEVIS_PROGRAMS_SSS
    if stratis_has_tpm2; then
        # shellcheck disable=SC2086
        inst_multiple $STRATIS_CLEVIS_PROGRAMS_TPM2 $STRATIS_CLEVIS_SCRIPT_PROGRAMS_TPM2
        # Clevis uses one of these to find out the version of the tools.
        inst_multiple -o tpm2_pcrread tpm2_pcrlist
        inst_libdir_file "$STRATIS_CLEVIS_LIBRARIES_TPM2" ||
            derror "module 'stratis-clevis': no $STRATIS_CLEVIS_LIBRARIES_TPM2, so the TPM cannot be used in the initrd"
    else
        dwarn "module 'stratis-clevis': without tpm2-tools, pools cannot be unlocked by a TPM in the initrd"
    fi
    dracut_module_included network ||
        derror "module 'stratis-clevis': no module 'network' (Debian: dracut-network), so Tang servers cannot be reached"
    # For Tang servers that are given by name or use https.
    inst_libdir_file 'libnss_dns.so*' 'libnss_files.so*' 'libnss_resolve.so*'
    inst_multiple -o /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/services /etc/nsswitch.conf
    inst_script "$moddir/stratis-clevis-rootfs-setup" /usr/lib/systemd/stratis-clevis-rootfs-setup
    inst '@UNITGENDIR@/stratis-clevis-setup-generator' "$systemdutildir/system-generators/stratis-clevis-setup-generator"
}
