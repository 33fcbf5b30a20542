//! Runs one function on several items in parallel, for a caller that waits for all results.
//!
//! Must never know: what `work` does. The threads live no longer than the call, so they belong to
//! no [`group`](crate::group): the caller joins them before it returns, and a panic in one of them
//! becomes the caller's panic.

use std::{
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// The name of the threads in debuggers and `ps -L`.
const NAME: &str = "side-by-side";

/// Runs `work` on each item and returns the results in the order of the items. At most `width`
/// items are processed at once, one of them by the calling thread. If the kernel refuses to start a
/// thread, the running ones do all the work.
///
/// # Panics
/// If `work` panics, after all threads have ended.
pub fn side_by_side<I: Sync, T: Send>(width: NonZeroUsize, items: &[I], work: impl Fn(&I) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            // Each index is handed out once. That needs no memory order; the joins make the results
            // visible.
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, work(item)));
        }
    };
    let mut done = thread::scope(|scope| {
        let helpers = width.get().min(items.len()).saturating_sub(1);
        let start = |_| thread::Builder::new().name(NAME.to_owned()).spawn_scoped(scope, run).ok();
        let helpers: Vec<_> = (0..helpers).map_while(start).collect();
        let mut done = run();
        for helper in helpers {
            match helper.join() {
                Ok(more) => done.extend(more),
                Err(panic) => resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, panic::catch_unwind, sync::Barrier};

    use super::side_by_side;

    fn width(width: usize) -> NonZeroUsize {
        NonZeroUsize::new(width).expect("not zero")
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [1, 3, 100, 1000] {
            assert_eq!(side_by_side(width(threads), &items, |item| item * 2), (0..200).step_by(2).collect::<Vec<_>>());
        }
        assert!(side_by_side(width(4), &[] as &[u8], |item| *item).is_empty());
    }

    /// Each call waits for all others, so the test ends only if all of them run at once.
    #[test]
    fn items_up_to_the_width_run_at_once() {
        let together = Barrier::new(8);
        side_by_side(width(8), &[(); 16], |()| together.wait());
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let panicked = catch_unwind(|| {
            side_by_side(width(4), &[1, 2, 3, 4, 5], |item| assert!(*item != 3, "the third"));
        });
        let panic = panicked.expect_err("the panic goes on");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the third"));
    }
}
