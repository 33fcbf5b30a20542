//! The log levels that daemons accept.

use clap::ValueEnum;
use log::LevelFilter;

/// A level of log messages.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[expect(missing_docs, reason = "the levels of the crate `log`, under their names")]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Trace => LevelFilter::Trace,
            Level::Debug => LevelFilter::Debug,
            Level::Info => LevelFilter::Info,
            Level::Warn => LevelFilter::Warn,
            Level::Error => LevelFilter::Error,
        }
    }
}
