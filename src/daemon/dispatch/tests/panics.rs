//! The effects of a panicking step on its pool, its claims and other requests.

use super::*;

#[test]
fn a_panic_while_writing_restricts_the_pool() {
    let daemon = daemon(2);
    daemon.submit(
        "bad",
        write(a(), |_, pool| {
            pool.add_one();
            panic!("planted")
        }),
    );
    let update = daemon.next();
    let pool = pool_of(&update.changes[0]);
    assert_eq!((pool.availability, pool.fs_limit), (Availability::NoPoolChanges, 1));
    assert_eq!(update.reply, Some(Answer::Failed("bad", Failure::Panicked)));
    // Pool, worker and dispatcher still work.
    daemon.submit("good", write(a(), |_, pool| done(pool.add_one())));
    assert_eq!(daemon.answer(), Answer::Number(2));
    daemon.end();
}

#[test]
fn a_panic_restricts_only_pools_held_for_writing() {
    let daemon = daemon(2);
    let failed = |label| Answer::Failed(label, Failure::Panicked);
    daemon.submit("act", act(|_| panic!("planted")));
    assert_eq!(daemon.answer(), failed("act"));
    let reading: GrantedStep<Answer, ToyContext> = Box::new(|_, _| panic!("planted"));
    daemon.submit("read", Step::Locked(Access::Pool(a(), Mode::Shared), reading));
    let update = daemon.next();
    assert_eq!((update.changes.len(), update.reply), (0, Some(failed("read"))));
    daemon.submit(
        "table",
        whole_table(|_, table| {
            let _ = table.rename(uuid(1), Name::new("c").unwrap());
            panic!("planted")
        }),
    );
    let update = daemon.next();
    assert_eq!(update.changes.len(), 1, "pool B was not touched");
    assert_eq!(pool_of(&update.changes[0]).availability, Availability::NoPoolChanges);
    assert_eq!(update.reply, Some(failed("table")));
    let bad_join: JoinStep<Answer, ToyContext> = Box::new(|_, _| panic!("planted"));
    daemon.submit("join", Step::Parallel(Vec::new(), bad_join));
    assert_eq!(daemon.answer(), failed("join"));
    // A panic of the code that makes the answer does no harm either.
    let on_failure: OnFailure<Answer> = Box::new(|_| panic!("planted"));
    let chain = act(|_| panic!("planted"));
    daemon.dispatcher.submit(Request { label: "twice".to_owned(), chain, on_failure });
    daemon.end();
}

#[test]
fn a_claim_dropped_by_a_panic_wakes_requests() {
    struct Claim(Arc<ToyContext>);
    impl Drop for Claim {
        fn drop(&mut self) {
            self.0.give_back();
        }
    }
    let daemon = daemon(1);
    assert!(daemon.context.claim());
    let claim = Claim(Arc::clone(&daemon.context));
    daemon.submit("waiter", claiming(1, |_| ()));
    daemon.let_all_park();
    let holder = act(move |_| {
        let _claim = &claim;
        panic!("planted")
    });
    daemon.submit("holder", holder);
    assert_eq!(daemon.answer(), Answer::Failed("holder", Failure::Panicked));
    assert_eq!(daemon.answer(), Answer::Number(1));
    daemon.end();
}
