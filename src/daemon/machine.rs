//! Provides the machine that the daemon works on: the real one, which admits one daemon, or a
//! simulated one.
//!
//! Must never know: what is done with the machine.

use std::{env, path::Path, process::ExitCode, sync::Arc, time::Duration};

use crate::platform::{
    self, Platform,
    linux::{
        self, Linux,
        pid_file::{self, PidFile, PidFileError},
    },
    sim::Sim,
};

/// How long the early-boot daemon may take to end.
const EARLY_DAEMON_LIMIT: Duration = Duration::from_secs(30);

/// Which of the two daemons of a machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The daemon on the bus.
    Full,
}

impl Role {
    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Role::Full => "stratisd",
        }
    }
}

/// The machine to work on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MachineChoice {
    /// This machine.
    #[default]
    Real,
    /// A machine in memory.
    Simulated(SimOptions),
}

/// Options of a simulated machine. Each also has an environment variable, which
/// [`Builder::variables`](platform::sim::Builder::variables) reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimOptions {
    /// Size of each disk in GiB.
    pub disk_gib: Option<u64>,
    /// How long each step of the machine takes, in milliseconds.
    pub step_delay_ms: Option<u64>,
    /// Random seed.
    pub seed: Option<u64>,
}

/// Why there is no machine to work on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error("cannot prepare this machine for the daemon")]
    Platform(#[from] platform::Error),
    #[error("cannot use the variable {0}: its value is not a number in range; set a whole number or unset it")]
    Variable(&'static str),
}

/// A machine in use. Dropping it releases it; pools stay as they are.
pub struct Machine {
    platform: Arc<dyn Platform>,
    real: Option<(Arc<Linux>, PidFile)>,
}

/// Does the work of a child process if this program was started as one, otherwise returns `None`.
/// Call this function first of all.
pub fn serve_as_child() -> Option<ExitCode> {
    linux::run_as_child()
}

impl Machine {
    /// Prepares the machine. Prepare the real one before any thread starts: only the calling thread
    /// and its later threads enter the private mount namespace.
    ///
    /// # Errors
    /// Another daemon uses the machine, or the machine lacks something.
    pub fn start(choice: &MachineChoice, role: Role) -> Result<Machine, Error> {
        match choice {
            MachineChoice::Real => {
                let Role::Full = role;
                // The PID file comes first, because the next steps would disturb a running daemon.
                let pid_file = PidFile::take(Path::new(pid_file::DAEMON))?;
                let early = Path::new(pid_file::EARLY_DAEMON);
                pid_file::take_over(early, pid_file::EARLY_PROGRAM, EARLY_DAEMON_LIMIT)?;
                let linux = Arc::new(Linux::start()?);
                Ok(Machine { platform: Arc::clone(&linux) as Arc<dyn Platform>, real: Some((linux, pid_file)) })
            }
            MachineChoice::Simulated(options) => {
                let sim = Sim::builder()
                    .random_seed()
                    .real_clock()
                    .variables(|name| options.get(name).or_else(|| env::var(name).ok()))
                    .map_err(Error::Variable)?
                    .build();
                Ok(Machine { platform: Arc::new(sim), real: None })
            }
        }
    }

    /// The platform for the engine.
    pub fn platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform)
    }

    /// A description for people.
    pub fn description(&self) -> &'static str {
        match self.real {
            Some(_) => "this machine",
            None => "a simulated machine",
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some((linux, _)) = &self.real {
            linux.leave();
        }
    }
}

impl SimOptions {
    /// The option that corresponds to this variable.
    fn get(&self, variable: &str) -> Option<String> {
        match variable {
            "STRATISD_SIM_DISK_GIB" => self.disk_gib,
            "STRATISD_SIM_SLOW_MS" => self.step_delay_ms,
            "STRATISD_SIM_SEED" => self.seed,
            _ => None,
        }
        .map(|number| number.to_string())
    }
}
