//! How requests wait for a claim of another request.

use super::*;

#[test]
fn parked_requests_go_on_in_order_of_arrival() {
    let daemon = daemon(1);
    assert!(daemon.context.claim());
    for number in [2, 3, 4] {
        daemon.submit("waiter", claiming(number, |_| ()));
    }
    daemon.let_all_park();
    let giver = act(|context| {
        context.give_back();
        done(1)
    });
    daemon.submit("giver", giver);
    assert_eq!([(); 4].map(|()| daemon.answer()), [1, 2, 3, 4].map(Answer::Number));
    daemon.end();
}

#[test]
fn no_wake_up_is_lost_before_parking() {
    let daemon = daemon(1);
    assert!(daemon.context.claim());
    let (looked, has_looked) = bounded(1);
    let (given, is_given) = bounded::<()>(1);
    // A thread unknown to the dispatcher gives the claim back after the step has tried it and
    // before the request parks. No later event would wake the request.
    daemon.submit(
        "late",
        act(move |context| {
            assert!(!context.claim());
            looked.send(()).unwrap();
            is_given.recv_timeout(HANG).unwrap();
            parked(claiming(1, |_| ()))
        }),
    );
    begun(&has_looked);
    daemon.context.give_back();
    given.send(()).unwrap();
    assert_eq!(daemon.answer(), Answer::Number(1));
    daemon.end();
}

#[test]
fn a_released_claim_wakes_a_request_at_once() {
    let daemon = daemon(4);
    assert!(daemon.context.claim());
    daemon.submit("waiter", claiming_quick(1));
    // Grants of a pool are given in order, so the waiter has tried to claim; whether it has parked
    // makes no difference.
    daemon.submit("barrier", write(a(), |_, _| done(0)));
    assert_eq!(daemon.answer(), Answer::Number(0));
    let (rest, has_begun, go) = held(None, done(2));
    daemon.submit(
        "giver",
        act(|context| {
            context.give_back();
            rest
        }),
    );
    begun(&has_begun);
    assert_eq!(daemon.answer(), Answer::Number(1));
    go.send(()).unwrap();
    assert_eq!(daemon.answer(), Answer::Number(2));
    daemon.end();
}

#[test]
fn every_claimer_gets_its_turn() {
    const REQUESTS: u64 = 300;
    let daemon = daemon(4);
    for number in 0..REQUESTS {
        daemon.submit("claimer", claiming(number, |_| ()));
    }
    let mut answers: Vec<_> = (0..REQUESTS).map(|_| daemon.answer()).collect();
    answers.sort_by_key(|answer| match answer {
        Answer::Number(number) => *number,
        Answer::Failed(..) => u64::MAX,
    });
    assert_eq!(answers, (0..REQUESTS).map(Answer::Number).collect::<Vec<_>>());
    daemon.end();
}

/// One creation in another pool used to look at all parked requests, and each claim given back made
/// each of them run its step: 11.5 s with 12,100 parked requests.
#[test]
fn parked_requests_cost_another_pool_nothing() {
    const PARKED: u64 = 12_000;
    let daemon = daemon(4);
    assert!(daemon.context.claim());
    for number in 0..PARKED {
        daemon.submit("parked", claiming_quick(number));
    }
    daemon.submit("barrier", write(a(), |_, _| done(u64::MAX)));
    assert_eq!(daemon.answer(), Answer::Number(u64::MAX));
    let looks = daemon.context.looks.load(Ordering::SeqCst);
    assert!(looks > PARKED, "each request has tried once");
    for number in 1..=100 {
        let other = write(b(), |context, pool| {
            // Other claims are given back, too.
            context.watcher.get().unwrap()(vec![Wait::Idle(uuid(2)), Wait::Progress(uuid(2))]);
            done(pool.add_one())
        });
        daemon.submit("other pool", other);
        assert_eq!(daemon.answer(), Answer::Number(number));
    }
    assert_eq!(daemon.context.looks.load(Ordering::SeqCst), looks, "a parked request ran its step");
    // When the claim is given back, each request runs its step once.
    daemon.context.give_back();
    let answers: Vec<_> = (0..PARKED).map(|_| daemon.answer()).collect();
    assert_eq!(answers, (0..PARKED).map(Answer::Number).collect::<Vec<_>>(), "in the order of arrival");
    assert_eq!(daemon.context.looks.load(Ordering::SeqCst), looks + PARKED);
    daemon.end();
}
