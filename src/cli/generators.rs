//! The usage of the two systemd generators, which systemd runs with three folders. They do not use
//! the parser; these definitions are the source of their manual pages.

use clap::{Arg, Command};

use super::ManualPage;

/// Arguments of every generator of systemd.
fn folders(command: Command) -> Command {
    command
        .disable_help_flag(true)
        .arg(Arg::new("NORMAL").required(true).help("Folder of units with normal priority; not used"))
        .arg(
            Arg::new("EARLY").required(true).help("Folder of units with the highest priority; the program writes here"),
        )
        .arg(Arg::new("LATE").required(true).help("Folder of units with the lowest priority; not used"))
}

pub(super) fn setup() -> Command {
    folders(
        Command::new("stratis-setup-generator")
            .about("Write the unit that starts the pool with the root filesystem")
            .long_about(
                "systemd runs this program when it reads its units. In an initrd whose kernel command line has \
                 stratis.rootfs.pool_uuid=UUID, it writes stratis-setup.service, which starts that pool and asks for \
                 a passphrase if one is needed. Elsewhere it does nothing.\n\n\
                 It logs to the kernel log.",
            ),
    )
}

pub(super) fn clevis_setup() -> Command {
    folders(
        Command::new("stratis-clevis-setup-generator")
            .about("Write the unit that unlocks the root filesystem's pool by Clevis")
            .long_about(
                "systemd runs this program when it reads its units. In an initrd whose kernel command line has \
                 stratis.rootfs.pool_uuid=UUID, it writes stratis-clevis-setup.service, which starts that pool by \
                 its Clevis bindings before stratis-setup.service asks for a passphrase. Elsewhere it does nothing.\n\n\
                 It logs to the kernel log.",
            ),
    )
}

pub(super) static PAGE: ManualPage = ManualPage {
    examples: &[],
    exit_status: &[
        ("0", "the unit was written, or there is nothing to do"),
        ("1", "the unit could not be written; the kernel log says why"),
    ],
    files: &[("/proc/cmdline", "the kernel command line")],
    environment: &[],
    see_also: &["stratisd(8)", "systemd.generator(7)", "dracut(8)", "bootup(7)"],
};
