//! The lock's shell under loom: every schedule of a few threads, up to a number of preemptions.
//!
//! Three preemptions on each run, which finds nearly all that can be found; all schedules with `LOCK_UNBOUNDED=1`, see the
//! README.

use loom as checker;

mod scenarios;

/// Runs `body` with a new table, or whatever it is about, in each schedule.
fn model<T>(body: impl Fn(T) + Send + Sync + 'static, table: impl Fn() -> T + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    if std::env::var_os("LOCK_UNBOUNDED").is_none() {
        // A new builder has what `LOOM_MAX_PREEMPTIONS` says.
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
    }
    let schedules = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&schedules);
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        body(table());
    });
    println!("{} schedules", schedules.load(std::sync::atomic::Ordering::Relaxed));
}
