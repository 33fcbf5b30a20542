//! `stratisd-tools`, also under the names of its commands: parses the command line, runs the
//! command, prints.

use std::{
    env,
    ffi::OsStr,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::Parser;
use stratisd::{
    base::error_chain,
    cli::{
        self,
        stratisd_tools::{
            CheckMetadata, DOCTOR_PAGE, DUMP_PAGE, Doctor, DumpMetadata, LegacyPool, PAGE, PrintMetadata, Tool, Tools,
        },
    },
    daemon::{logging, machine},
    tools::{
        check_metadata,
        doctor::{self, Scope},
        dump_metadata::{self, Dump},
        legacy_pool, print_metadata,
    },
};

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    // Before anything else: a child process has other arguments and no threads.
    if let Some(status) = machine::serve_as_child() {
        return status;
    }
    logging::init(None);
    let called = env::args_os().next().unwrap_or_default();
    let tool = match Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default() {
        "stratisd-tools" => cli::parse::<Tools>(&PAGE, None).command,
        "stratis-dumpmetadata" => Tool::Dump(cli::parse(&DUMP_PAGE, None)),
        "stratis-checkmetadata" => Tool::Check(CheckMetadata::parse()),
        "stratis-printmetadata" => Tool::Print(PrintMetadata::parse()),
        "stratis-legacy-pool" => Tool::LegacyPool(LegacyPool::parse()),
        "stratis-doctor" => Tool::Doctor(cli::parse(&DOCTOR_PAGE, None)),
        unknown => {
            eprintln!("Unknown executable name {unknown}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let (text, status) = run(tool);
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::from(status),
        Err(_) => ExitCode::from(FAILED),
    }
}

/// Runs a command: what it prints, and its exit status. Errors are printed at once.
fn run(tool: Tool) -> (String, u8) {
    let failed = |error: &dyn std::error::Error| {
        eprintln!("{}", error_chain::sentence(error));
        FAILED
    };
    match tool {
        Tool::Dump(DumpMetadata { print_bytes, only, device }) => {
            let dumped = dump_metadata::dump(&Dump { device, bytes: print_bytes, pool_only: only.is_some() });
            (dumped.text, dumped.end.map_or_else(|error| failed(&error), |()| 0))
        }
        Tool::Check(CheckMetadata { file }) => {
            (String::new(), check_metadata::check_file(&file).map_or_else(|error| failed(&error), |()| 0))
        }
        Tool::Print(PrintMetadata { file }) => match print_metadata::print_file(&file) {
            Ok(text) => (text, 0),
            Err(error) => (String::new(), failed(&error)),
        },
        Tool::LegacyPool(arguments) => {
            (String::new(), legacy_pool::run(&arguments).map_or_else(|error| failed(&error), |()| 0))
        }
        Tool::Doctor(Doctor { json, root, device }) => {
            let report = doctor::examine(&Scope { root, devices: device });
            (if json { report.json() } else { report.text() }, report.exit_status())
        }
    }
}
