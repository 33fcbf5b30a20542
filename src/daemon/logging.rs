//! Writes log messages to standard error. If the journal is at the other end, each line carries its
//! level.
//!
//! Must never know: the content of messages.

use std::{
    env,
    io::{self, Write},
    os::fd::AsFd,
};

use env_logger::Builder;
use log::{Level, LevelFilter, Record};

/// Modules whose messages are the daemon's own.
const OWN: [&str; 3] = ["stratisd", CORE, "threads"];
/// The library under both daemons.
const CORE: &str = "stratis_core";

/// Starts logging: the daemon's own messages of at least `level`. Without `level`, `RUST_LOG`
/// decides; without both, only errors are logged.
pub fn init(level: Option<LevelFilter>) {
    let mut builder = match level {
        Some(level) => {
            let mut builder = Builder::new();
            OWN.iter().for_each(|module| {
                builder.filter_module(module, level);
            });
            builder
        }
        None => {
            let mut builder = Builder::new();
            builder.parse_filters(&env::var("RUST_LOG").map_or_else(|_| "error".to_owned(), |text| with_core(&text)));
            builder
        }
    };
    if stderr_is_the_journal() {
        builder.format(write_for_journal);
    }
    // This fails only if another logger is installed, which is then used.
    let _ = builder.try_init();
}

/// The filters of `RUST_LOG`, such as `stratisd=debug`, with those for the daemon also for the library
/// under it.
fn with_core(filters: &str) -> String {
    let (modules, rest) = filters.split_at(filters.find('/').unwrap_or(filters.len()));
    let both = modules.split(',').flat_map(|one| {
        let of_core = one.trim().strip_prefix("stratisd").map(|level| format!("{CORE}{level}"));
        [Some(one.to_owned()), of_core].into_iter().flatten()
    });
    both.collect::<Vec<_>>().join(",") + rest
}

/// Whether standard error is the socket that systemd named in `$JOURNAL_STREAM` (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr().as_fd()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes one line per line of text, since the journal takes each line as a message:
/// `<3>stratisd::bus: text`. The journal records the time itself.
fn write_for_journal(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let priority = priority(record.level());
    let text = record.args().to_string();
    text.lines().try_for_each(|line| writeln!(out, "<{priority}>{}: {line}", record.target()))
}

/// The syslog priority of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_for_the_daemon_count_for_its_library() {
        assert_eq!(with_core("info"), "info");
        assert_eq!(with_core("stratisd=debug,threads=info"), "stratisd=debug,stratis_core=debug,threads=info");
        assert_eq!(with_core("stratisd::bus/a,b"), "stratisd::bus,stratis_core::bus/a,b");
    }

    #[test]
    fn every_line_for_the_journal_has_its_priority() {
        let mut out = Vec::new();
        let record = Record::builder().level(Level::Warn).target("t").args(format_args!("a\nb")).build();
        write_for_journal(&mut out, &record).unwrap();
        assert_eq!(out, b"<4>t: a\n<4>t: b\n");
    }
}
