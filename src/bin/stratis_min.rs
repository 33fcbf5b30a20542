//! `stratis-min`: parses the command line and runs the command, and does nothing else.

use std::process::ExitCode;

use stratis_core::{
    cli::{self, stratis_min},
    min_client,
};

fn main() -> ExitCode {
    match min_client::run(cli::parse(&stratis_min::PAGE, None)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", min_client::error_line(&error));
            ExitCode::FAILURE
        }
    }
}
