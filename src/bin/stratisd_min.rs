//! `stratisd-min`: parses the command line and runs the daemon with its socket, and does nothing
//! else.

use std::process::ExitCode;

use stratis_core::{
    base::error_chain,
    cli::{self, stratisd_min},
    daemon::{
        self,
        machine::{MachineChoice, Predecessor, SimOptions},
    },
    rpc_front_end::RpcFrontEnd,
};

fn main() -> ExitCode {
    // Before anything else: a child process has other arguments and no threads.
    if let Some(status) = daemon::machine::serve_as_child() {
        return status;
    }
    let command_line: stratisd_min::StratisdMinLine = cli::parse(&stratisd_min::PAGE, None);
    daemon::logging::init(command_line.log_level.map(Into::into));
    let machine = if command_line.sim { MachineChoice::Simulated(SimOptions::default()) } else { MachineChoice::Real };
    let predecessor = if command_line.replace { Predecessor::Leaves } else { Predecessor::Stays };
    match daemon::run::<RpcFrontEnd>(&machine, predecessor) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {:?}", error_chain::sentence(&error));
            ExitCode::FAILURE
        }
    }
}
