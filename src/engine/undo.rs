//! Undo: what has been done so far, and how to take it back.
//!
//! An operation pushes the undo of each step when the step has succeeded. If a later step fails, the list is run
//! backwards; if it succeeds, the list is dropped. So the rollback follows from the steps that ran and is never written by
//! hand in an error branch.
//!
//! What lasts on disk is not always to be taken back. A device that is still in use by what could not be taken down, or that
//! a record may name which could not be overruled ([`Error::is_unsure`]), is not wiped; and an entry of the journal stays as
//! long as anything is there that it names. Then the next set-up takes it back or completes it.
//!
//! It is also run when the work panics, before the panic goes on to whoever contains it: what that could not know of would
//! stay on the machine.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::{
    engine::error::{Error, Result},
    platform::Platform,
    view::Availability,
};

type Undo = Box<dyn FnOnce(&dyn Platform) -> Result<()> + Send>;

/// When a step is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Always. For what was done to the running machine.
    Always,
    /// When it is known what is on record. For what a record may name.
    Known,
    /// When no record may name it and every step that was pushed as [`When::Always`] after it has been taken back. For what
    /// others may still need, such as what was written to a device.
    Unused,
    /// When every step after it has been taken back. For what tells the next set-up what to do about those steps, or must not
    /// come back before they have been taken back.
    Last,
}

struct Step {
    what: String,
    when: When,
    undo: Undo,
}

/// The undo steps of what has been done so far, oldest first.
#[derive(Default)]
#[must_use]
pub struct Rollback {
    steps: Vec<Step>,
}

impl Rollback {
    /// Nothing done yet.
    pub fn new() -> Rollback {
        Rollback::default()
    }

    /// Remembers how to take back what was just done, and when that may be done. `what` completes "could not …".
    pub fn push<E: Into<Error>>(
        &mut self,
        when: When,
        what: impl Into<String>,
        undo: impl FnOnce(&dyn Platform) -> std::result::Result<(), E> + Send + 'static,
    ) {
        let undo = Box::new(|platform: &dyn Platform| undo(platform).map_err(Into::into));
        self.steps.push(Step { what: what.into(), when, undo });
    }

    /// Takes over what was done by others on the same work.
    pub fn append(&mut self, mut others: Rollback) {
        self.steps.append(&mut others.steps);
    }

    /// The work is complete and stays.
    pub fn forget(mut self) {
        self.steps.clear();
    }

    /// Takes everything back, newest first, because of `cause`. A step that cannot be taken back does not keep the
    /// others from being tried, except those that must stay then.
    ///
    /// Gives `cause`, or, if something could not be taken back, an [`Error::Rollback`] that names both.
    pub fn run(mut self, platform: &dyn Platform, cause: Error) -> Error {
        let mut failures = Vec::new();
        let unsure = cause.is_unsure();
        // Others that worked on it may have left something up.
        let mut in_use = unsure || cause.leaves() > Availability::Full;
        while let Some(Step { what, when, undo }) = self.steps.pop() {
            let stays = match when {
                When::Always => false,
                When::Known => unsure,
                When::Unused => in_use,
                When::Last => in_use || !failures.is_empty(),
            };
            if stays {
                log::warn!("after an error ({}): did not {what}; the next set-up decides", cause.sentence());
                continue;
            }
            // One that panics does not keep the others from being tried either.
            let undone = catch_unwind(AssertUnwindSafe(|| undo(platform))).unwrap_or(Err(Error::Panicked));
            if let Err(error) = undone {
                log::error!("after an error ({}): could not {what}: {}", cause.sentence(), error.sentence());
                failures.push((what, error));
                in_use |= when == When::Always;
            }
        }
        match failures.is_empty() {
            true => cause,
            false => Error::Rollback { cause: Box::new(cause), failures, leaves: Availability::NoRequests },
        }
    }

    /// Runs `work`; if it fails or panics, takes everything back that was done, before it and by it.
    ///
    /// # Errors
    /// As [`Rollback::run`].
    ///
    /// # Panics
    /// If `work` does, when all has been taken back.
    pub fn guard<T>(
        mut self,
        platform: &dyn Platform,
        work: impl FnOnce(&mut Rollback) -> Result<T>,
    ) -> Result<(T, Rollback)> {
        // What work was changing is given up by whoever contains the panic; the list is only pushed to.
        match catch_unwind(AssertUnwindSafe(|| work(&mut self))) {
            Ok(Ok(value)) => Ok((value, self)),
            Ok(Err(cause)) => Err(self.run(platform, cause)),
            Err(panic) => {
                // What could not be taken back is in the log.
                drop(self.run(platform, Error::Panicked));
                resume_unwind(panic)
            }
        }
    }
}

/// Runs `work`; if it panics, `mend` is run before the panic goes on. For what must not outlast the work, such as a device held
/// still, and is set right by the work itself when it merely fails.
pub fn mended<T>(work: impl FnOnce() -> T, mend: impl FnOnce()) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if catch_unwind(AssertUnwindSafe(mend)).is_err() {
            log::error!("setting things right after a panic panicked, too");
        }
        resume_unwind(panic)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::platform::sim::Sim;

    fn failing() -> impl FnOnce(&dyn Platform) -> Result<()> + Send + 'static {
        |_| Err(Error::Panicked)
    }

    fn run(undo: Rollback, cause: Error) -> Error {
        undo.run(&Sim::builder().build(), cause)
    }

    /// Found in review: the entry of the journal went although the thin device that it named could not be removed.
    #[test]
    fn what_names_a_step_stays_with_it() {
        for fails in [false, true] {
            let (told, undone) = channel();
            let mut undo = Rollback::new();
            let entry = told.clone();
            undo.push(When::Last, "remove the entry", move |_| -> Result<()> {
                entry.send("entry").map_err(|_| Error::Panicked)
            });
            let disk = told.clone();
            undo.push(When::Unused, "wipe", move |_| -> Result<()> { disk.send("disk").map_err(|_| Error::Panicked) });
            match fails {
                true => undo.push(When::Unused, "delete", failing()),
                false => note(&mut undo, &told, "delete"),
            }
            let error = run(undo, Error::NoDevices);
            assert_eq!(error.leaves() > Availability::Full, fails);
            let expected: &[&str] = if fails { &["disk"] } else { &["delete", "disk", "entry"] };
            assert_eq!(undone.try_iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_device_in_use_is_not_wiped() {
        let (told, undone) = channel();
        let mut undo = Rollback::new();
        undo.push(When::Unused, "wipe", move |_| -> Result<()> { told.send("disk").map_err(|_| Error::Panicked) });
        undo.push(When::Always, "remove", failing());
        run(undo, Error::NoDevices);
        assert_eq!(undone.try_iter().count(), 0);
    }

    /// Found in review: devices were wiped that the record may have named, so the next start missed them.
    #[test]
    fn nothing_that_a_record_may_name_is_wiped() {
        let (told, undone) = channel();
        let mut undo = Rollback::new();
        let disk = told.clone();
        undo.push(When::Unused, "wipe", move |_| -> Result<()> { disk.send("disk").map_err(|_| Error::Panicked) });
        note(&mut undo, &told, "take down");
        let pool = crate::base::name::Name::new("p").expect("a name");
        let boxed = || Box::new(Error::NoDevices);
        let error = run(undo, Error::Unrecorded { pool, cause: boxed(), source: boxed() });
        assert!(error.is_unsure());
        assert_eq!(undone.try_iter().collect::<Vec<_>>(), ["take down"]);
    }

    #[test]
    fn an_undo_that_fails_in_part_leaves_the_doubt_about_the_record() {
        let pool = crate::base::name::Name::new("p").expect("a name");
        let boxed = || Box::new(Error::NoDevices);
        let mut undo = Rollback::new();
        undo.push(When::Always, "take down", failing());
        let error = run(undo, Error::Unrecorded { pool, cause: boxed(), source: boxed() });
        assert!(matches!(error, Error::Rollback { .. }) && error.is_unsure());
    }

    fn note(undo: &mut Rollback, told: &Sender<&'static str>, what: &'static str) {
        let told = told.clone();
        undo.push(When::Always, what, move |_| -> Result<()> {
            told.send(what).expect("the test listens");
            Ok(())
        });
    }

    /// Found in review: a panic left the thin devices of a create up, and the pool could neither be stopped nor destroyed.
    #[test]
    fn work_that_panics_is_taken_back() {
        let sim = Sim::builder().build();
        let (told, undone) = channel();
        let mut before = Rollback::new();
        note(&mut before, &told, "first");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            before.guard(&sim, |undo| -> Result<()> {
                note(undo, &told, "second");
                undo.push(When::Always, "third", |_| -> Result<()> { resume_unwind(Box::new("in the undo")) });
                resume_unwind(Box::new("in the work"))
            })
        }));
        let panic = panicked.map(drop).expect_err("the panic goes on");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the work"));
        assert_eq!(undone.try_iter().collect::<Vec<_>>(), ["second", "first"]);
    }
}
