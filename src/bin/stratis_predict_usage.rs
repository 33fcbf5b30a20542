//! `stratis-predict-usage`: parses the command line, predicts, prints.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use stratisd::{
    cli::{
        self,
        stratis_predict_usage::{PAGE, PredictUsage},
    },
    daemon::logging,
    tools::predict_usage,
};

fn main() -> ExitCode {
    let command_line: PredictUsage = cli::parse(&PAGE, None);
    logging::init(Some(command_line.log_level.into()));
    let said = predict_usage::predict(&command_line.what, predict_usage::run_thin_metadata_size);
    let written = match said {
        Ok(line) => writeln!(io::stdout(), "{line}"),
        Err(error) => writeln!(io::stderr(), "Error: {error}").and(Err(io::ErrorKind::Other.into())),
    };
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
