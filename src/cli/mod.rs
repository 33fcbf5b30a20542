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

/// The longest line of help, even if the terminal is wider.
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
    /// Its options and arguments, without the sections of its page.
    pub command: fn() -> Command,
    /// The sections of its page and of its `--help` below the options.
    pub page: &'static ManualPage,
}

/// A row of the table below.
const fn installed(
    name: &'static str,
    folder: Folder,
    command: fn() -> Command,
    page: &'static ManualPage,
) -> InstalledProgram {
    InstalledProgram { name, folder, command, page }
}

/// All installed programs.
pub const PROGRAMS: &[InstalledProgram] = &[
    installed("stratisd", Folder::Libexec, stratisd::StratisdLine::command, &stratisd::PAGE),
    installed("stratisd-min", Folder::Libexec, stratisd_min::StratisdMinLine::command, &stratisd_min::PAGE),
    installed("stratis-min", Folder::Bin, stratis_min::StratisMinLine::command, &stratis_min::PAGE),
    installed(
        "stratis-predict-usage",
        Folder::Bin,
        stratis_predict_usage::PredictUsage::command,
        &stratis_predict_usage::PAGE,
    ),
    installed("stratis-decode-dm", Folder::Bin, stratis_decode_dm::DecodeDm::command, &stratis_decode_dm::PAGE),
    installed("stratisd-tools", Folder::Bin, stratisd_tools::Tools::command, &stratisd_tools::PAGE),
    installed("stratis-dumpmetadata", Folder::Bin, stratisd_tools::DumpMetadata::command, &stratisd_tools::DUMP_PAGE),
    installed("stratis-doctor", Folder::Bin, stratisd_tools::Doctor::command, &stratisd_tools::DOCTOR_PAGE),
    installed("stratis-base32-decode", Folder::Udev, udev_helpers::base32_decode, &udev_helpers::BASE32_DECODE_PAGE),
    installed("stratis-str-cmp", Folder::Udev, udev_helpers::str_cmp, &udev_helpers::STR_CMP_PAGE),
    installed("stratis-setup-generator", Folder::Generators, generators::setup, &generators::PAGE),
    installed("stratis-clevis-setup-generator", Folder::Generators, generators::clevis_setup, &generators::PAGE),
];

/// The definition that a program uses: `--help` shows the sections of its page below the options.
pub fn with_page(command: Command, page: &ManualPage) -> Command {
    command.max_term_width(COLUMNS).after_long_help(page.help())
}

/// Reads the command line of this process; `version` replaces that of the package. After a usage
/// error, and for `--help` and `--version`, this prints and ends the process, as clap does.
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
