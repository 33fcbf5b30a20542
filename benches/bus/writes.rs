//! Mutations: a filesystem is created, renamed and destroyed. Each mutation is durable on the
//! simulated disks, signalled and answered. Measured with one client and with several, with and
//! without the creation of a pool that never ends.

use std::time::{Duration, Instant};

use support::client::{self, Client};

use crate::{
    figures::{Samples, chapter, head, row, time},
    reads::write_once,
    stage::Stage,
};

const POOLS: usize = 8;
/// The time of one round, and the number of rounds of each row.
const STRETCH: Duration = Duration::from_millis(500);
const ROUNDS: usize = 4;
const HOUR_MS: &str = "3600000";

pub fn measure() {
    let mut stages =
        [&[][..], &[("STRATISD_SIM_SLOW_MS", HOUR_MS), ("STRATISD_SIM_SLOW_PATH", "/dev/slow")]].map(Stage::new);
    stages.iter_mut().for_each(|stage| (0..POOLS).for_each(|_| stage.add_pool()));
    // This creation has begun once a later call of the same client has been answered. It never
    // ends.
    let slow = Client::new(&stages[1].bus);
    let serial = slow.send(client::create_pool("slow", &["/dev/slow-a", "/dev/slow-b"]));
    slow.call(client::ping());

    chapter("Mutations");
    head(&["clients", "", "mutations/s", "three, median", "p99"]);
    for (clients, pools) in [(1, 1), (8, 1), (8, 8)] {
        let mut figures = [const { (Samples::new(), Duration::ZERO) }; 2];
        for _ in 0..ROUNDS {
            for (stage, (samples, took)) in stages.iter().zip(&mut figures) {
                let begin = Instant::now();
                samples.append(round(stage, clients, pools));
                *took += begin.elapsed();
            }
        }
        for ((samples, took), beside) in figures.iter().zip(["alone", "beside a long mutation"]) {
            let rate = format!("{:.0}", (3 * samples.count()) as f64 / took.as_secs_f64());
            let who = format!("{clients} on {pools} pool{}", if pools == 1 { "" } else { "s" });
            row(&[who, beside.to_owned(), rate, time(samples.median()), time(samples.p99())]);
        }
    }
    assert!(!slow.has_reply(serial), "the long mutation has ended");
}

fn round(stage: &Stage, clients: usize, pools: usize) -> Samples {
    let mut all = Samples::new();
    let clients: Vec<Client> = (0..clients).map(|_| Client::new(&stage.bus)).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let running: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                let (pool, _) = &stage.pools[number % pools];
                scope.spawn(move || {
                    let mut samples = Samples::new();
                    while begin.elapsed() < STRETCH {
                        let begin = Instant::now();
                        write_once(&client, pool, &format!("c{number}"));
                        samples.add(begin.elapsed());
                    }
                    samples
                })
            })
            .collect();
        running.into_iter().for_each(|client| all.append(client.join().expect("no client fails")));
    });
    all
}
