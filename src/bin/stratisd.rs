//! `stratisd`: parses the command line and runs the daemon, and does nothing else.

use std::process::ExitCode;

use stratisd::{
    base::error_chain,
    bus_front_end::BusFrontEnd,
    cli,
    daemon::{
        self,
        machine::{MachineChoice, Predecessor, SimOptions},
    },
};

// Rust's runtime ignores SIGPIPE from the start: writing to a closed bus or log is an ordinary
// error.
fn main() -> ExitCode {
    // Before anything else: a child process has other arguments and no threads.
    if let Some(status) = daemon::machine::serve_as_child() {
        return status;
    }
    let command_line: cli::stratisd::StratisdLine = cli::parse(&cli::stratisd::PAGE, Some(daemon::version()));
    daemon::logging::init(command_line.log_level.map(Into::into));
    let machine = if command_line.sim {
        MachineChoice::Simulated(SimOptions {
            disk_gib: command_line.sim_disk_size,
            step_delay_ms: command_line.sim_slow,
            seed: command_line.sim_seed,
        })
    } else {
        MachineChoice::Real
    };
    match daemon::run::<BusFrontEnd>(&machine, Predecessor::Leaves) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stratisd: {}", error_chain::sentence(&error));
            ExitCode::FAILURE
        }
    }
}
