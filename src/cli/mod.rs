//! The command lines of all programs, one file for each: what a program accepts, what it does, and
//! examples. `--help`, the manual pages and the shell completions (`manual/`) are made from these
//! definitions and from nothing else.
//!
//! Must never know: how a program does what it accepts.

mod generators;
mod level;
mod page;
pub mod stratis_decode_dm;
pub mod stratis_min;
pub mod stratis_predict_usage;
pub mod stratisd;
pub mod stratisd_min;
pub mod stratisd_tools;
mod udev_helpers;

use clap::{ArgMatches, Command, CommandFactory, Parser};

pub use level::Level;
pub use page::{Example, ManualPage};

/// Lines of help are at most this long, also where the terminal is wider.
const COLUMNS: usize = 100;

/// The folder of a program, by the variable of the Makefile that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// Programs that people type.
    Bin,
    /// Daemons.
    Libexec,
    /// Programs that udev rules run.
    Udev,
    /// Programs that systemd runs when it reads its units.
    Generators,
}

/// An installed program.
pub struct InstalledProgram {
    /// Its file name.
    pub name: &'static str,
    /// Where it is installed.
    pub folder: Folder,
    /// What it accepts, without the sections of its page.
    pub command: fn() -> Command,
    /// The sections of its page and of its `--help` below the options.
    pub page: &'static ManualPage,
}

/// All installed programs.
pub const PROGRAMS: &[InstalledProgram] = &[
    InstalledProgram {
        name: "stratisd",
        folder: Folder::Libexec,
        command: stratisd::StratisdLine::command,
        page: &stratisd::PAGE,
    },
    InstalledProgram {
        name: "stratisd-min",
        folder: Folder::Libexec,
        command: stratisd_min::StratisdMinLine::command,
        page: &stratisd_min::PAGE,
    },
    InstalledProgram {
        name: "stratis-min",
        folder: Folder::Bin,
        command: stratis_min::StratisMinLine::command,
        page: &stratis_min::PAGE,
    },
    InstalledProgram {
        name: "stratis-predict-usage",
        folder: Folder::Bin,
        command: stratis_predict_usage::PredictUsage::command,
        page: &stratis_predict_usage::PAGE,
    },
    InstalledProgram {
        name: "stratis-decode-dm",
        folder: Folder::Bin,
        command: stratis_decode_dm::DecodeDm::command,
        page: &stratis_decode_dm::PAGE,
    },
    InstalledProgram {
        name: "stratisd-tools",
        folder: Folder::Bin,
        command: stratisd_tools::Tools::command,
        page: &stratisd_tools::PAGE,
    },
    InstalledProgram {
        name: "stratis-dumpmetadata",
        folder: Folder::Bin,
        command: stratisd_tools::DumpMetadata::command,
        page: &stratisd_tools::DUMP_PAGE,
    },
    InstalledProgram {
        name: "stratis-doctor",
        folder: Folder::Bin,
        command: stratisd_tools::Doctor::command,
        page: &stratisd_tools::DOCTOR_PAGE,
    },
    InstalledProgram {
        name: "stratis-base32-decode",
        folder: Folder::Udev,
        command: udev_helpers::base32_decode,
        page: &udev_helpers::BASE32_DECODE_PAGE,
    },
    InstalledProgram {
        name: "stratis-str-cmp",
        folder: Folder::Udev,
        command: udev_helpers::str_cmp,
        page: &udev_helpers::STR_CMP_PAGE,
    },
    InstalledProgram {
        name: "stratis-setup-generator",
        folder: Folder::Generators,
        command: generators::setup,
        page: &generators::PAGE,
    },
    InstalledProgram {
        name: "stratis-clevis-setup-generator",
        folder: Folder::Generators,
        command: generators::clevis_setup,
        page: &generators::PAGE,
    },
];

/// The definition as a program uses it: with the sections of its page below the options of
/// `--help`.
pub fn with_page(command: Command, page: &ManualPage) -> Command {
    command.max_term_width(COLUMNS).after_long_help(page.help())
}

/// Reads the command line of this process; `version` replaces that of the package. After a usage error, and for `--help` and `--version`,
/// this prints and ends the process, as clap does.
pub fn parse<T: Parser>(page: &ManualPage, version: Option<String>) -> T {
    let mut command = with_page(T::command(), page);
    if let Some(version) = version {
        command = command.version(version);
    }
    let matches: ArgMatches = command.get_matches_mut();
    T::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_definition_is_sound() {
        for program in PROGRAMS {
            let command = (program.command)();
            assert_eq!(command.get_name(), program.name);
            assert!(command.get_about().is_some(), "{}: no description", program.name);
            with_page(command, program.page).debug_assert();
        }
    }

    #[test]
    fn help_has_every_section() {
        for program in PROGRAMS {
            let help = with_page((program.command)(), program.page).render_long_help().to_string();
            for heading in ["Exit status:", "See also:"] {
                assert!(help.contains(heading), "{}: no {heading}\n{help}", program.name);
            }
            let long: Vec<&str> = help.lines().filter(|line| line.chars().count() > COLUMNS).collect();
            assert!(long.is_empty(), "{}: too long for a terminal: {long:?}", program.name);
        }
    }
}
