//! Checks the checkers: they must find each planted fault and report it as what it is.
//!
//! Each test runs itself again in a process of its own: after a deadlock or a panic, a checker may
//! panic again while guards are dropped, and so abort.

#![allow(clippy::unwrap_used, reason = "part of the tests, without their attribute")]

use std::fmt::Debug;

use super::{Table, parking::Lot};
use threads::{lock::LockFault, parking::ParkingFault};

const INSIDE: &str = "LOCK_PLANTED";

fn check_finds<T>(
    test: &str,
    fault: impl Debug,
    scenario: fn(T),
    faulty: impl Fn() -> T + Send + Sync + 'static,
    cause: &str,
) where
    T: 'static,
{
    if std::env::var_os(INSIDE).is_some() {
        return crate::model(scenario, faulty);
    }
    let program = std::env::current_exe().unwrap();
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    // The program that runs here is this test itself.
    #[allow(clippy::disallowed_methods)]
    let mut command = std::process::Command::new(program);
    let run = command.args(["--exact", &test, "--nocapture"]).env(INSIDE, "").output().unwrap();
    let told = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(told.contains("running 1 test"), "{told}");
    assert!(!run.status.success(), "{fault:?} must be found");
    assert!(told.contains(cause), "{fault:?} is found as: {told}");
}

macro_rules! planted {
    ($subject:ident, $faults:ident, $($(#[$only:meta])? $name:ident: $fault:ident in $scenario:path as $cause:expr;)*) => {
        $(
            $(#[$only])?
            #[test]
            fn $name() {
                let fault = $faults::$fault;
                check_finds(stringify!($name), fault, $scenario, move || $subject::with_fault(fault), $cause);
            }
        )*
    };
}

planted! {
    Table, LockFault,
    // Shuttle switches threads at mutexes and atomics, not where a reference-counted pointer is
    // dropped.
    #[cfg(feature = "loom")]
    shares_given_up_after_the_grant: SharesTooLong in super::writer_follows_readers
        as "a writer's pointer is the only one";
    callbacks_noted_in_a_second_step: NotesCallbackLater in super::writers_take_turns as "a waiter's callback is stored";
    callbacks_under_the_mutex: CallsBackUnderMutex in super::callbacks_may_use_the_lock as "deadlock";
    cancelling_in_two_steps: CancelsInTwoSteps in super::cancelled_or_granted as "a waiter's callback is stored";
}

planted! {
    Lot, ParkingFault,
    parking_without_another_look: QueuesAtOpenPlace in super::parking::takers_come_through as "deadlock";
    looking_before_the_mutex: LooksBeforeMutex in super::parking::takers_come_through as "deadlock";
    storing_the_callback_later: StoresCallbackLater in super::parking::takers_come_through
        as "a waiter's callback is stored";
    keeping_the_turn: KeepsTurn in super::parking::passers_come_through as "deadlock";
    taking_the_turn_along: TakesTurnAlong in super::parking::parking_elsewhere_passes_the_turn as "deadlock";
    waking_under_the_mutex: CallsBackUnderMutex in super::parking::callbacks_may_use_the_parking as "deadlock";
}
