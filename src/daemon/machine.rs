//! Provides the machine that the daemon works on: the real one, which admits one daemon, or a
//! simulated one.
//!
//! Must never know: what is done with the machine.

use std::{env, path::PathBuf, process::ExitCode, sync::Arc};

use crate::{
    platform::{
        self, Platform,
        linux::{
            self, Linux,
            pid_file::{self, PidFile, PidFileError},
        },
        sim::Sim,
    },
    rpc,
};

/// Which of the two daemons of a machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonRole {
    /// The daemon on the bus.
    Full,
    /// The daemon of early boot.
    Early,
}

impl DaemonRole {
    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            DaemonRole::Full => "stratisd",
            DaemonRole::Early => pid_file::EARLY_PROGRAM,
        }
    }
}

/// What a daemon of early boot does if another one runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Predecessor {
    /// It does not start.
    #[default]
    Stays,
    /// It ends the other one and takes over, as stratisd always does.
    Leaves,
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

/// The files that daemons and clients share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    directory: PathBuf,
}

impl RunPaths {
    /// The files in this directory.
    pub fn below(directory: impl Into<PathBuf>) -> RunPaths {
        RunPaths { directory: directory.into() }
    }

    /// Locked by stratisd.
    pub fn daemon_lock(&self) -> PathBuf {
        self.directory.join(pid_file::DAEMON)
    }

    /// Locked by stratisd-min.
    pub fn early_daemon_lock(&self) -> PathBuf {
        self.directory.join(pid_file::EARLY_DAEMON)
    }

    /// The socket of stratisd-min.
    pub fn socket(&self) -> PathBuf {
        self.directory.join(rpc::SOCKET)
    }
}

impl Default for RunPaths {
    fn default() -> RunPaths {
        RunPaths::below(rpc::RUNTIME_DIRECTORY)
    }
}

/// A machine in use. Dropping it releases it; pools stay as they are.
pub struct Machine {
    platform: Arc<dyn Platform>,
    linux: Option<Arc<Linux>>,
    paths: RunPaths,
    /// The role of this daemon, and what becomes of another one; `None` on a simulated machine,
    /// which no other daemon uses.
    admission: Option<(DaemonRole, Predecessor)>,
    /// The lock of this daemon. Dropped last.
    lock: Option<PidFile>,
}

/// Does the work of a child process if this program was started as one, otherwise returns `None`.
/// Call this function first of all.
pub fn serve_as_child() -> Option<ExitCode> {
    linux::run_as_child()
}

/// Takes the lock of this daemon. The early-boot daemon then also checks that stratisd does not
/// run. Each daemon looks at the other's lock after it has taken its own. So if both start at once,
/// at least one sees the other, and stratisd stays.
///
/// `None`: the predecessor holds the lock, which is taken when it has left.
fn lock(paths: &RunPaths, role: DaemonRole, predecessor: Predecessor) -> Result<Option<PidFile>, PidFileError> {
    match (role, predecessor) {
        (DaemonRole::Full, _) => PidFile::take(&paths.daemon_lock()).map(Some),
        (DaemonRole::Early, Predecessor::Stays) => {
            let lock = PidFile::take(&paths.early_daemon_lock())?;
            pid_file::check_free(&paths.daemon_lock())?;
            Ok(Some(lock))
        }
        (DaemonRole::Early, Predecessor::Leaves) => pid_file::check_free(&paths.daemon_lock()).map(|()| None),
    }
}

impl Machine {
    /// Takes the lock of this daemon and prepares the machine, as far as this does not disturb the
    /// other daemon, which may still run. Prepare the real machine before any thread starts: only
    /// the calling thread and its later threads enter the private mount namespace.
    ///
    /// # Errors
    /// The same daemon uses the machine, or stratisd does, or the machine lacks something.
    pub fn start(choice: &MachineChoice, role: DaemonRole, predecessor: Predecessor) -> Result<Machine, Error> {
        let admission = Some((role, predecessor));
        match choice {
            MachineChoice::Real => {
                let paths = RunPaths::default();
                let lock = lock(&paths, role, predecessor)?;
                let linux = Arc::new(Linux::start()?);
                let platform = Arc::clone(&linux) as Arc<dyn Platform>;
                Ok(Machine { platform, linux: Some(linux), paths, admission, lock })
            }
            MachineChoice::Simulated(options) => {
                let directory = env::var_os(rpc::RUN_DIRECTORY_VARIABLE).map(PathBuf::from);
                // Simulated daemons on the bus do not share their machines, and may run side by side.
                let is_shared = directory.is_some() || role == DaemonRole::Early;
                let paths = directory.map_or_else(RunPaths::default, RunPaths::below);
                let admission = admission.filter(|_| is_shared);
                let lock = if is_shared { lock(&paths, role, predecessor)? } else { None };
                let sim = Sim::builder()
                    .random_seed()
                    .real_clock()
                    .variables(|name| options.get(name).or_else(|| env::var(name).ok()))
                    .map_err(Error::Variable)?
                    .build();
                Ok(Machine { platform: Arc::new(sim), linux: None, paths, admission, lock })
            }
        }
    }

    /// Waits until no other daemon works on the machine. stratisd tells the early-boot daemon to
    /// end and waits without a limit, since that daemon completes what it has begun, such as the
    /// start of a large pool. An early-boot daemon whose predecessor is to leave does the same.
    /// `go_on` is called repeatedly; if it returns `false`, so does this function.
    ///
    /// # Errors
    /// The lock of the early-boot daemon is held by something else, or stratisd has started.
    pub fn take_over(&mut self, go_on: impl FnMut() -> bool) -> Result<bool, Error> {
        if let Some((role, Predecessor::Leaves)) = self.admission {
            let early = self.paths.early_daemon_lock();
            if !pid_file::take_over(&early, pid_file::EARLY_PROGRAM, go_on)? {
                return Ok(false);
            }
            if self.lock.is_none() {
                self.lock = lock(&self.paths, role, Predecessor::Stays)?;
            }
        }
        if let Some(linux) = &self.linux {
            linux.wait_for_orphans();
        }
        Ok(true)
    }

    /// The files that daemons and clients share.
    pub fn paths(&self) -> &RunPaths {
        &self.paths
    }

    /// The platform for the engine.
    pub fn platform(&self) -> Arc<dyn Platform> {
        Arc::clone(&self.platform)
    }

    /// A description for people.
    pub fn description(&self) -> &'static str {
        match self.linux {
            Some(_) => "this machine",
            None => "a simulated machine",
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(linux) = &self.linux {
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
