//! A directory of a million recipients: how long it loads, what it holds in memory, how long a look-up takes.
//!
//! Goals (the engine's page, section 5): load at most 2 s, 100 bytes a recipient, a look-up at most 300 ns.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Duration;

use causeway::config::DirectorySource;
use causeway::directory::{Directory, Found, Lookup, Owner, file};
use causeway::message::{Address, Domain};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const RECIPIENTS: usize = 1_000_000;

fn name(number: usize) -> String {
    format!("firstname.lastname{number}@contoso.com")
}

/// Half of the mailboxes on-premises, half in the cloud; of those half under an address of their own.
fn csv() -> String {
    let mut text = String::from("address,type,target\n");
    for number in 0..RECIPIENTS {
        let line = match number % 4 {
            0 | 1 => writeln!(text, "{},on-premises,", name(number)),
            2 => writeln!(text, "{},cloud,", name(number)),
            _ => writeln!(text, "{},cloud,firstname.lastname{number}@contoso.mail.onmicrosoft.com", name(number)),
        };
        line.expect("a String takes all that is written to it");
    }
    text
}

fn directory(criterion: &mut Criterion) {
    let mut csv_file = tempfile::NamedTempFile::new().expect("a temporary file");
    csv_file.write_all(csv().as_bytes()).expect("room for it");

    let mut group = criterion.benchmark_group("directory");
    group.sample_size(10).measurement_time(Duration::from_secs(12)).throughput(Throughput::Elements(RECIPIENTS as u64));
    group.bench_function("load a million lines", |bencher| {
        bencher.iter(|| file::load(csv_file.path()).expect("a sound file").table.len());
    });
    group.finish();

    let source = DirectorySource { name: "recipients.csv".into(), path: csv_file.path().to_owned() };
    let (directory, _) = Directory::load(&[source]);
    println!("{} recipients, {} bytes each", directory.len(), directory.memory() / directory.len());

    // A stride that no cache foresees.
    let asked = |kind: usize| -> Vec<Address> {
        let numbers = (0..65_536).map(|turn| (turn * 611_953 % RECIPIENTS) / 4 * 4 + kind);
        numbers.map(|number| Address::parse(&name(number)).expect("an address")).collect()
    };
    let strangers: Vec<_> =
        (0..65_536).map(|number| Address::parse(&format!("nobody{number}@contoso.com")).expect("an address")).collect();
    let mut group = criterion.benchmark_group("look-up");
    for (what, addresses) in
        [("on-premises", asked(0)), ("cloud", asked(2)), ("cloud with a target", asked(3)), ("unknown", strangers)]
    {
        let mut turn = 0;
        group.bench_function(what, |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % addresses.len();
                let found = directory.find(black_box(&addresses[turn]));
                assert!(matches!(found, Found::Entry { .. }) != (what == "unknown"));
                found
            });
        });
    }
    // On the cloud side: under the address that the other premises uses.
    let rank = |domain: &Domain| (domain.as_str() == "contoso.com").then_some(0);
    for (what, kind) in [("hybrid routing address", 2), ("hybrid routing address, a target", 3)] {
        let at = Domain::parse("contoso.mail.onmicrosoft.com").expect("a domain");
        let addresses: Vec<_> = asked(kind).into_iter().map(|address| address.at(at.clone())).collect();
        let mut turn = 0;
        group.bench_function(what, |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % addresses.len();
                let owner = directory.find_owner(black_box(&addresses[turn]), &rank);
                assert!(matches!(owner, Owner::Entry { .. }));
                owner
            });
        });
    }
    group.finish();
}

criterion_group!(benches, directory);
criterion_main!(benches);
