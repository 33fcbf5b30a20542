//! `stratis-min`: parses the command line, has the request made and its answer printed, and does
//! nothing else.

use std::process::ExitCode;

use clap::Parser;
use stratis_core::{cli::stratis_min::StratisMinLine, min_client};

fn main() -> ExitCode {
    match min_client::run(StratisMinLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", min_client::error_line(&error));
            ExitCode::FAILURE
        }
    }
}
