//! Reports to the service manager's watchdog as long as every thread of the daemon makes progress.
//!
//! The service manager sets `$WATCHDOG_USEC` (sd_watchdog_enabled(3)) and ends a daemon that does
//! not report within that time. `main` asks every dedicated thread once per half of the time, and
//! gives one job to the workers. When all have answered, it sends `WATCHDOG=1`. A thread that has
//! not answered after half the time is named in the log, before the other half is over.
//!
//! A step that hangs on a device is no reason to end the daemon: the next daemon would hang on the
//! same device. So the job waits for no other job; it only takes the mutexes that every request
//! takes (`Dispatcher::pass`).
//!
//! Without `$WATCHDOG_USEC`, `main` asks no thread. It asks none during a stop either: the stop has
//! its own limits, and systemd ends its watchdog at `STOPPING=1`.
//!
//! Must never know: what a thread does.

use std::{
    env,
    ffi::OsString,
    process,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, at, never};
use threads::pulse::{Pulse, Round};

use super::readiness;

/// The variables of sd_watchdog_enabled(3): the time in microseconds, and the process that is to
/// report.
const TIME: &str = "WATCHDOG_USEC";
const PROCESS: &str = "WATCHDOG_PID";

/// Asks the threads, if the service manager wants reports.
pub(super) struct Watchdog {
    half: Option<Duration>,
    round: Round,
    /// When to check the answers, and to ask again.
    next: Option<Instant>,
    /// A thread has been named in the log since all answered last.
    named: bool,
}

impl Watchdog {
    /// Reads the settings from the environment variables.
    pub(super) fn new() -> Watchdog {
        Watchdog::every(half(env::var_os(TIME), env::var_os(PROCESS), process::id()))
    }

    fn every(half: Option<Duration>) -> Watchdog {
        Watchdog { half, round: Round::new(), next: None, named: false }
    }

    /// Whether the service manager wants reports.
    pub(super) fn is_wanted(&self) -> bool {
        self.half.is_some()
    }

    /// Adds a thread; for `ask` see [`Round::member`]. It is kept even if no thread is ever asked:
    /// a thread that ends with its source, such as the lister with the reader, ends only when `ask`
    /// has been dropped. So of a reader that fails and the lister, the reader is reported as the
    /// first that ended. Drop the watchdog before the threads are joined.
    pub(super) fn member(&mut self, name: &'static str, ask: impl Fn(&Pulse) + Send + 'static) -> Pulse {
        self.round.member(name, Box::new(ask))
    }

    /// Begins to ask. Call this when the daemon is up.
    pub(super) fn begin(&mut self) {
        self.next = self.half.map(|half| {
            self.round.ask();
            Instant::now() + half
        });
    }

    /// Gets a message when all have answered; then call [`Watchdog::feed`].
    pub(super) fn answered(&self) -> Receiver<()> {
        self.round.answered().clone()
    }

    /// Gets a message when it is time to call [`Watchdog::look`].
    pub(super) fn due(&self) -> Receiver<Instant> {
        self.next.map_or_else(never, at)
    }

    /// Reports that all threads make progress.
    pub(super) fn feed(&mut self) {
        if std::mem::take(&mut self.named) {
            log::info!("all threads respond again");
        }
        readiness::tell(readiness::WATCHDOG);
    }

    /// Half the time is over: names the threads that have not answered, or asks all again.
    pub(super) fn look(&mut self) {
        let Some(half) = self.half else { return };
        self.next = Some(Instant::now() + half);
        let silent = self.round.silent();
        if silent.is_empty() {
            return self.round.ask();
        }
        self.named = true;
        log::error!(
            "thread {} has not answered for {half:?}; the service manager will end the daemon unless it does",
            silent.join(", ")
        );
    }
}

/// Half the time that the service manager allows, if this process is to report.
fn half(time: Option<OsString>, meant: Option<OsString>, own: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    let is_meant = meant.is_none_or(|process| number(process) == Some(own.into()));
    let half = Duration::from_micros(number(time?)?) / 2;
    (is_meant && !half.is_zero()).then_some(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_time_if_this_process_is_meant() {
        let check = |time: Option<&str>, meant: Option<&str>, expected: Option<u64>| {
            let given = half(time.map(Into::into), meant.map(Into::into), 17);
            assert_eq!(given, expected.map(Duration::from_micros), "{time:?} {meant:?}");
        };
        check(Some("3000000"), None, Some(1_500_000));
        check(Some("3000000"), Some("17"), Some(1_500_000));
        check(Some("3000000"), Some("18"), None);
        check(Some("3000000"), Some("nobody"), None);
        check(Some("0"), None, None);
        check(Some("soon"), None, None);
        check(None, Some("17"), None);
    }

    #[test]
    fn no_thread_is_asked_without_a_watchdog() {
        let mut watchdog = Watchdog::every(None);
        let (ask, asked) = crossbeam_channel::unbounded();
        watchdog.member("lister", move |_| ask.send(()).unwrap());
        watchdog.begin();
        watchdog.look();
        assert!(asked.is_empty() && watchdog.due().is_empty() && watchdog.answered().is_empty());
    }

    #[test]
    fn a_silent_thread_is_not_asked_again() {
        let mut watchdog = Watchdog::every(Some(Duration::from_millis(1)));
        let (ask, asked) = crossbeam_channel::unbounded();
        let (tell, told) = crossbeam_channel::unbounded();
        let lister = watchdog.member("lister", move |_| ask.send(()).unwrap());
        watchdog.member("workers", move |pulse| tell.send(pulse.clone()).unwrap());
        watchdog.begin();
        assert_eq!((asked.len(), told.len()), (1, 1));
        watchdog.due().recv().unwrap();
        lister.beat();
        watchdog.look();
        assert!(watchdog.named && watchdog.answered().is_empty());
        assert_eq!((asked.len(), told.len()), (1, 1));
        told.recv().unwrap().beat();
        watchdog.answered().recv().unwrap();
        watchdog.feed();
        assert!(!watchdog.named);
        watchdog.due().recv().unwrap();
        watchdog.look();
        assert_eq!((asked.len(), told.len()), (2, 1), "all are asked");
    }
}
