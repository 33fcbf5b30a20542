//! The quotas of what clients leave unread.

use super::*;
use crate::bus::statistics::Dialect;

const MIB: usize = 1 << 20;

fn holds(bytes: u64) -> Holding {
    Holding::Holds { of_theirs: bytes, for_them: bytes }
}

fn ask(quotas: &mut Quotas, serial: u32, side: QuotaSubject) {
    let dialect = quotas.dialect();
    quotas.asking(serial, Question { side, dialect });
}

fn answer_all(quotas: &mut Quotas, about: &str, held: u64) {
    for (serial, side) in quotas.questions(about).into_iter().enumerate() {
        ask(quotas, serial as u32, side);
        quotas.note_answer(serial as u32, holds(held));
    }
}

#[test]
fn caller_that_reads_is_never_refused() {
    let mut quotas = Quotas::default();
    for serial in 0..10_000 {
        assert_eq!(quotas.admission(":1.1"), (CallAdmission::Admitted, None));
        for side in quotas.sent(Some(":1.1"), MIB / 7) {
            ask(&mut quotas, serial, side);
            quotas.note_answer(serial, holds(0));
        }
    }
}

#[test]
fn caller_is_refused_until_it_reads() {
    let mut quotas = Quotas::default();
    let asked: Vec<_> = (0..18).flat_map(|_| quotas.sent(Some(":1.1"), MIB)).collect();
    assert_eq!(asked, [QuotaSubject::Caller(":1.1".to_owned()), QuotaSubject::Ours]);
    ask(&mut quotas, 7, asked[0].clone());
    // The bus is not asked twice.
    assert_eq!(quotas.admission(":1.1"), (CallAdmission::Refused, None));
    quotas.note_answer(7, holds(UNREAD_MAX + 1));
    let (admission, side) = quotas.admission(":1.1");
    assert_eq!((admission, &side), (CallAdmission::Refused, &Some(QuotaSubject::Caller(":1.1".to_owned()))));
    assert_eq!(quotas.admission(":1.2"), (CallAdmission::Admitted, None), "others");
    for _ in 2..REFUSALS_MAX {
        assert_eq!(quotas.admission(":1.1").0, CallAdmission::Refused);
    }
    assert_eq!(quotas.admission(":1.1").0, CallAdmission::Ignored);
    ask(&mut quotas, 8, side.unwrap());
    // This message is sent after the question, so the answer does not include it.
    quotas.sent(Some(":1.1"), 100);
    quotas.note_answer(8, holds(0));
    assert_eq!(quotas.admission(":1.1").0, CallAdmission::Admitted);
    assert_eq!(quotas.callers[":1.1"].unread, 100);
}

/// With ten thousand filesystems, every call after a list was refused: the bus had been asked
/// before the client read the list.
#[test]
fn caller_that_read_a_long_list_is_admitted() {
    let mut quotas = Quotas::default();
    for _ in 0..10 {
        assert!(quotas.list_fits(":1.1", 40 * MIB));
        for (serial, side) in quotas.sent(Some(":1.1"), 40 * MIB).into_iter().enumerate() {
            ask(&mut quotas, serial as u32, side);
            quotas.note_answer(serial as u32, holds(40 * MIB as u64));
        }
        assert_eq!(quotas.admission(":1.1").0, CallAdmission::Admitted);
        answer_all(&mut quotas, ":1.1", 0);
    }
    // The large list does not raise the limit of small messages.
    (0..18).for_each(|_| drop(quotas.sent(Some(":1.1"), MIB)));
    assert_eq!(quotas.admission(":1.1").0, CallAdmission::Refused);
}

#[test]
fn beyond_the_total_only_owing_callers_are_refused() {
    let mut quotas = Quotas::default();
    for number in 0..10 {
        for (serial, side) in quotas.sent(Some(&format!(":1.{number}")), 10 * MIB).into_iter().enumerate() {
            ask(&mut quotas, serial as u32, side);
            quotas.note_answer(serial as u32, Holding::Failed);
        }
    }
    quotas.sent(Some(":2.1"), 100);
    assert!(quotas.total.unread > TOTAL_MAX);
    assert_eq!(quotas.admission(":1.3").0, CallAdmission::Refused);
    assert_eq!(quotas.admission(":2.1").0, CallAdmission::Admitted);
    assert!(!quotas.list_fits(":2.1", MIB));
    answer_all(&mut quotas, ":2.1", 0);
    assert!(quotas.list_fits(":2.1", 30 * MIB));
}

/// Sends each of six callers a sixth of the most that all may leave unread, and asks nothing.
fn at_the_total() -> Quotas {
    let mut quotas = Quotas::default();
    for number in 0..6 {
        quotas.sent(Some(&format!(":1.{number}")), TOTAL_MAX as usize / 6);
    }
    assert_eq!(quotas.total.unread, TOTAL_MAX);
    quotas
}

#[test]
fn nobody_is_refused_at_the_total() {
    let mut quotas = at_the_total();
    assert_eq!(quotas.admission(":1.3").0, CallAdmission::Admitted);
    quotas.sent(None, 1);
    assert_eq!(quotas.admission(":1.3").0, CallAdmission::Refused);
}

/// The log names the way to find the connection, once each time that the total is passed.
#[test]
fn what_is_too_much_is_told_once() {
    let mut quotas = Quotas::default();
    for (serial, (held, is_much)) in (0..).zip([(TOTAL_MAX, false), (TOTAL_MAX + 1, true), (TOTAL_MAX, false)]) {
        ask(&mut quotas, serial, QuotaSubject::Ours);
        quotas.note_answer(serial, holds(held));
        assert_eq!(quotas.is_much, is_much, "{held}");
    }
}

/// A list waits for more exact limits only while answers are under way.
#[test]
fn lists_wait_only_for_answers_under_way() {
    for side in [QuotaSubject::Ours, QuotaSubject::Caller(":1.1".to_owned())] {
        let mut quotas = Quotas::default();
        assert!(!quotas.is_asking(":1.1"));
        assert_eq!(quotas.questions(":1.1").len(), 2);
        assert!(quotas.is_asking(":1.1"));
        ask(&mut quotas, 1, side.clone());
        quotas.note_answer(1, holds(0));
        assert!(quotas.is_asking(":1.1"), "one of two is under way");
        quotas.end();
        assert!(!quotas.is_asking(":1.1"), "no more answers come");
    }
    let mut quotas = Quotas::default();
    answer_all(&mut quotas, ":1.1", 0);
    assert!(!quotas.is_asking(":1.1"));
}

/// Others do not make the quotas forget what a caller has not read.
#[test]
fn callers_that_owe_are_not_forgotten() {
    let mut quotas = Quotas::default();
    quotas.sent(Some(":1.0"), 1000);
    assert!(quotas.list_wanted(":1.0"));
    quotas.sent(Some(":2.0"), 100_000);
    for number in 1..2 * CALLERS_MAX {
        quotas.sent(Some(&format!(":1.{number}")), 1000);
    }
    assert!(quotas.callers.contains_key(":2.0"), "it has not read 100 kB");
    assert!(quotas.callers.contains_key(":1.0"), "its list waits");
}

/// The bus was asked because a caller had called, and is asked no second time when the order comes
/// to the caller. The caller stays in the order.
#[test]
fn the_bus_is_asked_about_nobody_twice() {
    let mut quotas = Quotas::default();
    quotas.sent(Some(":2.0"), 100_000);
    assert!(quotas.questions(":2.0").contains(&QuotaSubject::Caller(":2.0".to_owned())));
    let others = 1..2 * CALLERS_MAX;
    let asked: Vec<_> = others.flat_map(|number| quotas.sent(Some(&format!(":1.{number}")), 1000)).collect();
    assert_eq!(asked, []);
    assert!(quotas.order.contains(&":2.0".to_owned()));
}

/// The bus was asked because a caller had called, not because the order had come to the caller.
#[test]
fn callers_are_in_the_order_once() {
    let mut quotas = Quotas::default();
    quotas.sent(Some(":1.1"), 100_000);
    for _ in 0..3 {
        answer_all(&mut quotas, ":1.1", 100_000);
    }
    assert_eq!(quotas.order.len(), 1);
}

#[test]
fn first_list_of_any_length_is_sent() {
    let mut quotas = Quotas::default();
    assert!(quotas.list_fits(":1.1", 60 * MIB));
    quotas.sent(Some(":1.1"), 60 * MIB);
    assert!(!quotas.list_fits(":1.1", 1));
    quotas.sent(Some(":1.2"), MIB);
    assert!(quotas.list_fits(":1.2", 15 * MIB) && !quotas.list_fits(":1.2", 16 * MIB));
    for _ in 0..LISTS_MAX {
        assert!(quotas.list_wanted(":1.1"));
    }
    assert!(!quotas.list_wanted(":1.1"));
    quotas.list_done(":1.1");
    assert!(quotas.list_wanted(":1.1"));
}

/// The bus is asked in every dialect.
#[test]
fn bus_that_does_not_tell_sets_no_limit() {
    let mut quotas = Quotas::default();
    quotas.sent(Some(":1.1"), 200 * MIB);
    let mut dialects = Vec::new();
    for serial in 0..2 {
        assert_eq!(quotas.admission(":1.1").0, CallAdmission::Refused);
        dialects.push(quotas.dialect());
        quotas.questions(":1.1");
        ask(&mut quotas, serial, QuotaSubject::Ours);
        ask(&mut quotas, 10 + serial, QuotaSubject::Caller(":1.1".to_owned()));
        quotas.note_answer(serial, Holding::Silence);
        assert!(quotas.is_asking(":1.1") || serial == 1);
        // This question was in the same dialect as the first, so its answer says nothing about
        // the other dialect.
        quotas.note_answer(10 + serial, Holding::Silence);
    }
    assert_eq!(dialects, [Dialect::Connection, Dialect::Peers]);
    assert_eq!(quotas.admission(":1.1"), (CallAdmission::Admitted, None));
    assert!(quotas.list_fits(":1.1", MIB) && !quotas.is_asking(":1.1"));
}

#[test]
fn callers_are_forgotten() {
    let mut quotas = Quotas::default();
    for number in 0..100_000 {
        quotas.sent(Some(&format!(":1.{number}")), 1000);
    }
    assert!(quotas.callers.len() <= CALLERS_MAX + 1);
    ask(&mut quotas, 1, QuotaSubject::Caller(":1.99999".to_owned()));
    quotas.note_answer(1, Holding::Gone);
    assert!(!quotas.callers.contains_key(":1.99999"));
}

/// Each client had got one list of 100 kB and disconnected. The quotas took them for clients
/// that do not read: they kept all of these clients and checked all for each new one. After
/// that was fixed, clients that asked only for a list were kept: the quotas knew them when the
/// list was sent.
#[test]
fn callers_gone_after_a_list_are_forgotten() {
    callers_come_and_go(|_, _| {}, |_, _| {}, 100_000);
    let (wanted, done) = (|quotas: &mut Quotas, name: &str| assert!(quotas.list_wanted(name)), Quotas::list_done);
    callers_come_and_go(wanted, done, 100_000);
    callers_come_and_go(wanted, done, 100);
}

/// Found by measuring: 32,000 clients disconnected without reading their lists. New ones came
/// faster than the bus was asked about old ones.
#[test]
fn callers_faster_than_the_bus_are_forgotten() {
    let mut quotas = Quotas::default();
    let mut due = Vec::new();
    for number in 0..10_000 {
        let name = format!(":1.{number}");
        assert!(quotas.list_wanted(&name));
        for side in quotas.sent(Some(&name), 100_000) {
            due.push(side.clone());
            ask(&mut quotas, due.len() as u32, side);
        }
        quotas.list_done(&name);
    }
    let mut answered = 0;
    while let Some(side) = due.get(answered) {
        answered += 1;
        let answer = if *side == QuotaSubject::Ours { holds(0) } else { Holding::Gone };
        quotas.note_answer(answered as u32, answer);
        for side in quotas.after_answer() {
            due.push(side.clone());
            ask(&mut quotas, due.len() as u32, side);
        }
        assert!(quotas.asked.len() <= questions_max(Dialect::Connection) + 1);
    }
    assert!(quotas.callers.len() <= CALLERS_MAX && quotas.order.len() <= CALLERS_MAX);
}

/// Found by measuring: 80,000 clients disconnected without reading their lists. The questions
/// waited behind the lists, and callers that had only got a refusal waited for the questions.
#[test]
fn callers_are_forgotten_while_the_bus_is_silent() {
    let mut quotas = Quotas::default();
    let mut serial = 0;
    let mut flood = |quotas: &mut Quotas, bytes: usize| {
        for _ in 0..20_000 {
            serial += 1;
            for side in quotas.sent(Some(&format!(":1.{serial}")), bytes) {
                serial += 1;
                ask(quotas, serial, side);
            }
        }
    };
    while quotas.asked.len() < questions_max(Dialect::Connection) {
        flood(&mut quotas, 100_000);
    }
    let lists = quotas.callers.len();
    flood(&mut quotas, 200);
    let refused = quotas.callers.values().filter(|usage| usage.unread <= SMALL).count();
    assert!(refused <= lists / 2, "{refused} of {lists}");
}

/// For each new client, the bus is asked at most twice about live clients that do not read.
#[test]
fn questions_about_lasting_callers_are_bounded() {
    let mut quotas = Quotas::default();
    let mut questions = 0;
    for number in 0..5_000 {
        let mut due = quotas.sent(Some(&format!(":1.{number}")), 100_000);
        while let Some(side) = due.pop() {
            questions += 1;
            ask(&mut quotas, questions, side);
            quotas.note_answer(questions, holds(100_000));
            due.extend(quotas.after_answer());
        }
    }
    assert_eq!(quotas.callers.len(), 5_000);
    assert!(questions <= 3 * 5_000, "{questions}");
    assert_eq!(quotas.order.len(), 5_000, "each is in the order once");
}

#[test]
fn nobody_is_remembered_where_the_bus_says_nothing() {
    let mut quotas = Quotas::default();
    quotas.sent(Some(":1.1"), 100);
    assert!(quotas.list_wanted(":1.2"));
    for serial in 0.. {
        if quotas.silent {
            break;
        }
        ask(&mut quotas, serial, QuotaSubject::Ours);
        quotas.note_answer(serial, Holding::Silence);
    }
    for number in 3..1000 {
        let name = format!(":1.{number}");
        assert!(quotas.list_wanted(&name));
        quotas.sent(Some(&name), 100_000);
        quotas.list_done(&name);
    }
    assert_eq!(quotas.callers.keys().collect::<Vec<_>>(), [":1.2"], "its list waits");
    quotas.list_done(":1.2");
    assert!(quotas.callers.is_empty() && quotas.order.is_empty());
}

fn callers_come_and_go(before: fn(&mut Quotas, &str), after: fn(&mut Quotas, &str), bytes: usize) {
    let mut quotas = Quotas::default();
    let (mut serial, mut questions) = (0, 0);
    for number in 0..10_000 {
        let name = format!(":1.{number}");
        before(&mut quotas, &name);
        let due = quotas.sent(Some(&name), bytes);
        after(&mut quotas, &name);
        for side in due {
            serial += 1;
            let answer = match &side {
                QuotaSubject::Ours => holds(0),
                QuotaSubject::Caller(_) => {
                    questions += 1;
                    Holding::Gone
                }
            };
            ask(&mut quotas, serial, side);
            quotas.note_answer(serial, answer);
        }
        let (callers, names) = (quotas.callers.len(), quotas.order.len());
        assert!(callers <= 2 * CALLERS_MAX && names <= 3 * CALLERS_MAX, "{callers}, {names}");
    }
    assert!(questions <= 2 * 10_000, "{questions}: at most two old ones are looked at for each new one");
}
