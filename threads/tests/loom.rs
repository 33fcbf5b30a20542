//! The lock's shell under loom: every schedule of a few threads, up to a number of preemptions.
//!
//! Each run allows three preemptions, which finds nearly every fault. `LOCK_UNBOUNDED=1` runs all
//! schedules; see the README.

use loom as checker;

mod scenarios;

/// Runs `body` with a new subject in each schedule.
fn model<T>(body: impl Fn(T) + Send + Sync + 'static, table: impl Fn() -> T + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    if std::env::var_os("LOCK_UNBOUNDED").is_none() {
        // A new builder takes its bound from `LOOM_MAX_PREEMPTIONS`.
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
