//! The usage of the two programs that the udev rules run. They are small and do not use the parser;
//! these definitions are the source of their manual pages.

use clap::{Arg, Command};

use super::ManualPage;

pub(super) fn base32_decode() -> Command {
    Command::new("stratis-base32-decode")
        .about("Print a base32 text as a udev property")
        .long_about(
            "The udev rules of stratisd run this program. The kernel passes only letters and digits from a \
             synthetic event to udev, so names of pools and filesystems are encoded.\n\n\
             The program prints KEY=TEXT, where TEXT is what ENCODED stands for. It prints nothing if ENCODED is \
             not base32 of UTF-8 text.",
        )
        .disable_help_flag(true)
        .arg(Arg::new("KEY").required(true).help("Name of the property"))
        .arg(Arg::new("ENCODED").required(true).help("Base32 of RFC 4648, upper case, without padding"))
}

pub(super) static BASE32_DECODE_PAGE: ManualPage = ManualPage {
    examples: &[super::Example {
        about: "Print STRATIS_POOL_NAME=p1:",
        command: "/usr/lib/udev/stratis-base32-decode STRATIS_POOL_NAME OAYQ",
    }],
    exit_status: &[("0", "the text was printed"), ("1", "an argument is missing or not base32; nothing was printed")],
    files: &[("/usr/lib/udev/rules.d/61-stratisd.rules", "the rules that run the program")],
    environment: &[],
    see_also: &["stratisd(8)", "stratis-str-cmp(8)", "udev(7)"],
};

pub(super) fn str_cmp() -> Command {
    Command::new("stratis-str-cmp")
        .about("Compare two texts for a udev rule")
        .long_about(
            "The udev rules of stratisd run this program. It prints 0 if the two texts are equal, and 1 if not. \
             The UUID of a filesystem also equals the name of its device-mapper device, \
             stratis-1-POOL-thin-fs-UUID.",
        )
        .disable_help_flag(true)
        .arg(Arg::new("FIRST").required(true).help("Text, or the UUID of a filesystem"))
        .arg(Arg::new("SECOND").required(true).help("Text, or the name of a device-mapper device"))
}

pub(super) static STR_CMP_PAGE: ManualPage = ManualPage {
    examples: &[super::Example { about: "Print 1:", command: "/usr/lib/udev/stratis-str-cmp one other" }],
    exit_status: &[("0", "the texts were compared; the output is the answer"), ("1", "an argument is missing")],
    files: &[("/usr/lib/udev/rules.d/61-stratisd.rules", "the rules that run the program")],
    environment: &[],
    see_also: &["stratisd(8)", "stratis-base32-decode(8)", "udev(7)"],
};
