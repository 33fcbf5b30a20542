//! How requests end when the daemon stops.

use super::*;

#[test]
fn a_stop_answers_waiters_and_completes_begun_requests() {
    let daemon = daemon(2);
    assert!(daemon.context.claim());
    let stopping = |label| Answer::Failed(label, Failure::Stopping);
    // This request has begun and is in its slow middle part; it still needs a lock and a claim.
    let (begun_chain, has_begun, go) = held(
        None,
        write(a(), |_, pool| {
            pool.add_one();
            act(|context| {
                context.give_back();
                write(b(), |_, pool| done(pool.add_one()))
            })
        }),
    );
    daemon.submit("begun", act(|_| begun_chain));
    begun(&has_begun);
    // This request has begun and parked: it continues when the first request gives its claim back.
    let (parked, has_parked) = bounded(1);
    daemon.submit(
        "begun parked",
        write(b(), move |_, _| {
            parked.send(()).unwrap();
            claiming_quick(2)
        }),
    );
    begun(&has_parked);
    // This request parks before its first step has done anything.
    daemon.submit("parked", claiming_quick(3));
    // One worker is left for brief steps, and grants of a pool are given in order: when this
    // request has run, the other has parked.
    daemon.submit("barrier", write(a(), |_, _| done(0)));
    assert_eq!(daemon.answer(), Answer::Number(0));
    // The request `waits` waits for the lock: a step of `holder` holds pool B.
    let (holder, has_begun, go_holder) = held(Some(b()), done(4));
    daemon.submit("holder", holder);
    begun(&has_begun);
    daemon.submit("waits", write(b(), |_, _| done(5)));
    // This request waits for a worker: the only slow one is taken.
    daemon.submit("queued", act(|_| done(6)));
    let over = daemon.dispatcher.stop();
    daemon.submit("late", done(7));
    let mut at_once = [(); 4].map(|()| daemon.answer());
    at_once.sort_by_key(|answer| format!("{answer:?}"));
    assert_eq!(at_once, ["late", "parked", "queued", "waits"].map(stopping));
    assert!(over.try_recv().is_err_and(|error| error.is_empty()), "requests still run");
    assert_eq!(daemon.dispatcher.unfinished(), ["begun", "begun parked", "holder"]);
    go_holder.send(()).unwrap();
    assert_eq!(daemon.answer(), Answer::Number(4));
    go.send(()).unwrap();
    let mut rest = [(); 2].map(|()| daemon.answer());
    rest.sort_by_key(|answer| format!("{answer:?}"));
    assert_eq!(rest, [1, 2].map(Answer::Number));
    assert!(over.recv_timeout(HANG).is_err_and(|error| error.is_disconnected()));
    let updates = daemon.updates.clone();
    daemon.end();
    assert!(updates.try_recv().is_err(), "a request was answered twice");
}

#[test]
fn a_stop_lets_begun_requests_wait_for_locks() {
    let daemon = daemon(2);
    let (holder, has_begun, go) = held(Some(b()), done(1));
    daemon.submit("holder", holder);
    begun(&has_begun);
    daemon.submit("begun", write(a(), |_, _| write(b(), |_, pool| done(pool.add_one() + 1))));
    // The free worker runs this after it has queued the second step of the other request.
    daemon.submit("barrier", write(a(), |_, _| done(0)));
    assert_eq!(daemon.answer(), Answer::Number(0));
    let over = daemon.dispatcher.stop();
    assert!(over.try_recv().is_err_and(|error| error.is_empty()), "requests still run");
    go.send(()).unwrap();
    assert_eq!([(); 2].map(|()| daemon.answer()), [1, 2].map(Answer::Number));
    daemon.end();
}

#[test]
fn an_idle_dispatcher_stops_at_once() {
    let daemon = daemon(1);
    daemon.end();
}

/// 800 creations were running at a stop: their callers got no answer.
#[test]
fn unfinished_requests_are_answered_once_at_the_end() {
    let daemon = daemon(4);
    let (under_lock, has_begun, go_on) = held(Some(a()), done(1));
    daemon.submit("hangs under a lock", under_lock);
    begun(&has_begun);
    let (free, has_begun, go) = held(None, write(a(), |_, _| done(2)));
    daemon.submit("hangs", act(|_| free));
    begun(&has_begun);
    // This request has begun, and is queued behind the first request in the lock.
    daemon.submit("waits", write(b(), |_, _| write(a(), |_, _| done(3))));
    while daemon.dispatcher.observe().waiters.is_empty() {
        std::thread::yield_now();
    }
    let over = daemon.dispatcher.stop();
    assert!(over.try_recv().is_err_and(|error| error.is_empty()), "requests still run");
    daemon.dispatcher.close();
    let mut answers = [(); 3].map(|()| daemon.answer());
    answers.sort_by_key(|answer| format!("{answer:?}"));
    assert_eq!(
        answers,
        ["hangs under a lock", "hangs", "waits"].map(|label| Answer::Failed(label, Failure::Unfinished))
    );
    let updates = daemon.updates.clone();
    go_on.send(()).unwrap();
    go.send(()).unwrap();
    daemon.end();
    assert!(updates.try_recv().is_err(), "a request was answered twice");
}

/// A stop may answer a request after the request has entered the list of parked ones and before it
/// enters the parking. The parking then wakes a request that is gone, and the turn goes to the next.
#[test]
fn a_turn_that_nobody_takes_goes_on() {
    let daemon = daemon(1);
    assert!(daemon.context.claim());
    // Of an earlier arrival than any request.
    let (inner, gone) = (Arc::clone(&daemon.dispatcher.inner), 0);
    let waking = Arc::clone(&inner);
    inner.parking.park(Arrival(gone), the_claim(), || true, |_| false, move || waking.woken(gone));
    daemon.submit("waits", act(|context| if context.claim() { done(2) } else { parked(done(1)) }));
    daemon.let_all_park();
    daemon.context.give_back();
    assert_eq!(daemon.answer(), Answer::Number(1));
    daemon.end();
}
