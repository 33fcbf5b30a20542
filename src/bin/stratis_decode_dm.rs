//! `stratis-decode-dm`: parses the command line, asks the daemon, prints.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use stratisd::{
    cli::{
        self,
        stratis_decode_dm::{DecodeDm, PAGE},
    },
    tools::decode_dm,
};

fn main() -> ExitCode {
    let DecodeDm { output, path } = cli::parse(&PAGE, None);
    match decode_dm::decode(&path, output) {
        Ok(line) if writeln!(io::stdout(), "{line}").is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // Programs know this form: the text in quotes.
            eprintln!("Error: {:?}", error.to_string());
            ExitCode::FAILURE
        }
    }
}
