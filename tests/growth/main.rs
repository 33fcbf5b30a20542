#[path = "../engine/bench.rs"]
mod bench;
use bench::{Bench, GIB};
use std::path::Path;
use stratisd::{
    engine::{dm_names::Role, ops, units::Sectors},
    platform::{Platform, sim::Sim},
};
#[test]
fn debug() {
    let mut bench = Bench::start(Sim::builder().seed(1).build());
    bench.sim.add_disk(Path::new("/dev/small"), Sectors(2 * GIB.0)).unwrap();
    bench.create_pool("p", &["/dev/small"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let id = bench.id("p");
    let show = |b: &Bench| {
        println!(
            "{:?} {:?} {:?}",
            b.pool("p").unwrap().allocated,
            b.pool("p").unwrap().total,
            b.sim.dm_status(&Role::ThinPool.name(id))
        )
    };
    show(&bench);
    bench.run(ops::check_now(id)).unwrap();
    show(&bench);
    bench.sim.add_disk(Path::new("/dev/large"), Sectors(100 * GIB.0)).unwrap();
    bench.run(ops::add_data_devices(id, vec!["/dev/large".into()])).unwrap();
    show(&bench);
    bench.sim.faults().fail_next(stratisd::platform::sim::Call::Run(stratisd::platform::Program::ThinMetadataSize), "");
    println!("{:?}", bench.run(ops::check_now(id)));
    show(&bench);
    for _ in 0..4 {
        bench.run(ops::check_now(id)).unwrap();
        show(&bench);
    }
}
