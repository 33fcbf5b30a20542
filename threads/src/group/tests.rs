//! The promises of the thread group.

use std::{collections::HashMap, time::Duration};

use crossbeam_channel::{Sender, bounded};

use super::{Group, Hanging, How, SpawnError, ThreadEnd};

/// Long enough for any machine; only a failing test reaches it.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a thread that runs until the returned sender is dropped.
fn spawn_gated(group: &Group, name: &str) -> Sender<()> {
    let (keep, gate) = bounded::<()>(0);
    let body = move || {
        let _ = gate.recv();
        Ok(())
    };
    group.spawn(name, body).unwrap();
    keep
}

#[test]
fn each_end_is_reported_with_its_cause() {
    let group = Group::new(&["returns", "fails", "panics", "panics-more"]);
    group.spawn("returns", || Ok(())).unwrap();
    group.spawn("fails", || Err("no luck".into())).unwrap();
    group.spawn("panics", || panic!("planned")).unwrap();
    group.spawn("panics-more", || panic!("planned {}", 2)).unwrap();
    group.join(&["panics-more", "returns", "fails", "panics"], LIMIT).unwrap();
    // The threads are joined, so their reports are there.
    let ended: HashMap<_, _> = group.ended().try_iter().map(|ThreadEnd { name, how }| (name, how)).collect();
    let expected = [
        ("returns", How::Returned),
        ("fails", How::Failed("no luck".into())),
        ("panics", How::Panicked("planned".into())),
        ("panics-more", How::Panicked("planned 2".into())),
    ];
    assert_eq!(ended, expected.map(|(name, how)| (name.to_owned(), how)).into());
}

#[test]
fn join_names_hanging_threads_and_joins_the_others() {
    let group = Group::new(&["first", "second", "worker-*"]);
    let gates = ["first", "worker-1", "worker-2"].map(|name| spawn_gated(&group, name));
    group.spawn("second", || Ok(())).unwrap();
    // The join ensures that the thread has ended, whatever the time limit below.
    group.join(&["second"], LIMIT).unwrap();
    let Hanging { names } = group.join(&["worker-*", "second", "first"], Duration::ZERO).unwrap_err();
    assert_eq!(names, ["worker-1", "worker-2", "first"]);
    let [first, one, two] = gates;
    drop(one);
    group.join(&["worker-1"], LIMIT).unwrap();
    let hanging = group.join(&["worker-*", "first"], Duration::ZERO).unwrap_err();
    assert_eq!(hanging.to_string(), "still running after the time allowed: worker-2, first");
    drop((first, two));
    group.join(&["worker-*", "first"], LIMIT).unwrap();
}

#[test]
fn an_ended_thread_is_joined_after_the_deadline() {
    let group = Group::new(&["hangs", "ended"]);
    let gate = spawn_gated(&group, "hangs");
    group.spawn("ended", || Ok(())).unwrap();
    let over = group.shared.threads.lock().iter().find(|thread| thread.name == "ended").unwrap().over.clone();
    assert!(over.recv_timeout(LIMIT).is_err_and(|error| error.is_disconnected()));
    assert_eq!(group.join(&["hangs", "ended"], Duration::ZERO).unwrap_err().names, ["hangs"]);
    drop(gate);
    group.join(&["hangs"], LIMIT).unwrap();
}

#[test]
fn threads_have_their_names() {
    let group = Group::new(&["fifteen-bytes-x"]);
    let (tell, told) = bounded(1);
    let body = move || tell.send(std::thread::current().name().map(str::to_owned)).map_err(|gone| gone.to_string());
    group.spawn("fifteen-bytes-x", body).unwrap();
    assert_eq!(told.recv_timeout(LIMIT).unwrap().as_deref(), Some("fifteen-bytes-x"));
    group.join(&["fifteen-bytes-x"], LIMIT).unwrap();
}

#[test]
fn only_listed_free_and_short_names_are_allowed() {
    let group = Group::new(&["worker-*", "sixteen-bytes-xx", "timers"]);
    let refused = |name: &str| group.spawn(name, || Ok(())).unwrap_err();
    for name in ["worker", "worker-", "timer", "timers-1", "Timers", ""] {
        assert!(matches!(refused(name), SpawnError::NotListed { name: told } if told == name));
    }
    assert!(matches!(refused("sixteen-bytes-xx"), SpawnError::NameTooLong { .. }));
    assert!(matches!(refused("worker-123456789"), SpawnError::NameTooLong { .. }));
    let gate = spawn_gated(&group, "timers");
    assert!(matches!(refused("timers"), SpawnError::Exists { .. }));
    drop(gate);
    group.join(&["timers"], LIMIT).unwrap();
}

/// Otherwise `timers*` would allow `timersomething` as well.
#[test]
fn a_family_without_a_dash_allows_no_name() {
    let group = Group::new(&["timers*", "worker-*"]);
    for name in ["timers1", "timers", "worker-"] {
        assert!(matches!(group.spawn(name, || Ok(())), Err(SpawnError::NotListed { .. })), "{name}");
    }
}
