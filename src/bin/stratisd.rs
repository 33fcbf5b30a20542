//! `stratisd`: parses the command line and runs the daemon, and does nothing else.

use std::{process::ExitCode, sync::LazyLock};

use clap::Parser;
use stratisd::{
    base::error_chain,
    bus_front_end::BusFrontEnd,
    cli::Level,
    daemon::{
        self,
        machine::{MachineChoice, SimOptions},
    },
};

static VERSION: LazyLock<String> = LazyLock::new(daemon::version);

/// Manages pools of block devices and serves them on the system bus as org.storage.stratis3.
#[derive(Parser)]
#[command(name = "stratisd", version = VERSION.as_str())]
struct CommandLine {
    /// Work on a simulated machine: any absolute path is a disk, and nothing real is touched
    #[arg(long)]
    sim: bool,
    /// Lowest level of messages to write to standard error; default: RUST_LOG, or errors only
    #[arg(long, value_enum)]
    log_level: Option<Level>,
    /// Size of each simulated disk (also: STRATISD_SIM_DISK_GIB)
    #[arg(long, value_name = "GIB", requires = "sim")]
    sim_disk_size: Option<u64>,
    /// Delay of each step of the simulated machine (also: STRATISD_SIM_SLOW_MS)
    #[arg(long, value_name = "MILLISECONDS", requires = "sim")]
    sim_slow: Option<u64>,
    /// Random seed of the simulated machine (also: STRATISD_SIM_SEED)
    #[arg(long, value_name = "NUMBER", requires = "sim")]
    sim_seed: Option<u64>,
}

// Rust's runtime ignores SIGPIPE from the start: writing to a closed bus or log is an ordinary
// error.
fn main() -> ExitCode {
    // Before anything else: a child process has other arguments and no threads.
    if let Some(status) = daemon::machine::serve_as_child() {
        return status;
    }
    let command_line = CommandLine::parse();
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
    match daemon::run::<BusFrontEnd>(&machine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stratisd: {}", error_chain::sentence(&error));
            ExitCode::FAILURE
        }
    }
}
