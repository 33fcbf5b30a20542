# shellcheck shell=sh disable=SC2034
# What an initrd needs to start Stratis pools. The dracut modules and the hook of initramfs-tools read
# this file; tests/initrd_contents.rs compares it with what the daemon can run and load.

# Programs that the daemon runs.
STRATIS_PROGRAMS='mkfs.xfs xfs_db thin_check thin_repair thin_metadata_size'
# Programs that the scripts at boot run, beside the builtins of a POSIX shell.
STRATIS_SCRIPT_PROGRAMS='cat kill mkdir rm sleep udevadm'
# Kernel modules, for the device-mapper targets of a pool, and for what lies on them and in LUKS2
# headers.
STRATIS_TARGET_MODULES='dm_mod dm_thin_pool dm_cache dm_cache_smq dm_crypt'
STRATIS_OTHER_MODULES='xfs af_alg algif_hash algif_skcipher aes_generic xts cbc ecb essiv sha256_generic sha512_generic hmac crc32c_generic'

# Programs that unlock a device by Clevis.
STRATIS_CLEVIS_PROGRAMS='clevis clevis-decrypt jose'
STRATIS_CLEVIS_PROGRAMS_TANG='clevis-decrypt-tang curl'
STRATIS_CLEVIS_PROGRAMS_TPM2='clevis-decrypt-tpm2 mktemp tpm2_createprimary tpm2_load tpm2_unseal'
STRATIS_CLEVIS_PROGRAMS_SSS='clevis-decrypt-sss'
# Programs that the Clevis programs call.
STRATIS_CLEVIS_SCRIPT_PROGRAMS='bash cat mkdir rm'
STRATIS_CLEVIS_SCRIPT_PROGRAMS_TPM2='tpm2_flushcontext'
# A library that the TPM programs load by its name.
STRATIS_CLEVIS_LIBRARIES_TPM2='libtss2-tcti-device.so*'
