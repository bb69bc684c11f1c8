//! Every fuzz target over its checked-in corpus, and over some thousand mutations of it.
//!
//! What a fuzzer once found stays found: `fuzz/README.md` tells how to look for more, and how to keep it.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::targets::TARGETS;

/// Mutations of each target's corpus. The seed is always the same, so that a failure is no matter of luck; with
/// `CAUSEWAY_MUTATIONS=seconds:seed` each target gets so many seconds, and others.
const MUTATIONS: usize = 200;

/// Of each target, however slow the machine.
const BUDGET: Duration = Duration::from_millis(400);

/// A corpus is for people too.
const MOST_CASES: usize = 60;

/// Cases are small; what is large is made by a target from something small.
const LARGEST: u64 = 16 * 1024;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The names in a folder, in order.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn cases(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = corpus().join(target);
    names(&folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

/// Runs it; if it fails, the answer is the case, so that it can be kept.
fn run(target: &crate::targets::Target, what: &str, data: &[u8]) -> Option<String> {
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(data)));
    ran.err().map(|_| format!("{} {what}: b\"{}\"", target.name, data.escape_ascii()))
}

#[test]
fn every_target_has_a_corpus_a_binary_and_a_name() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len(), "two targets of one name");
    assert_eq!(targets, names(&corpus()), "targets on the left, folders of fuzz/corpus on the right");
    let root = corpus().join("..");
    let binaries: BTreeSet<String> = targets.iter().map(|target| format!("{target}.rs")).collect();
    assert_eq!(binaries, names(&root.join("fuzz_targets")));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "fuzz/Cargo.toml does not build {target}");
        assert!(readme.contains(&format!("`{target}`")), "fuzz/README.md does not tell of {target}");
    }
    for dictionary in names(&root.join("dictionaries")) {
        let target = dictionary.strip_suffix(".dict").unwrap_or_default();
        assert!(targets.contains(target), "a dictionary of no target: {dictionary}");
    }
    for target in &targets {
        let folder = corpus().join(target);
        let cases = names(&folder);
        assert!((1..=MOST_CASES).contains(&cases.len()), "{target} has {} cases", cases.len());
        for case in cases {
            let length = fs::metadata(folder.join(&case)).unwrap().len();
            assert!(length <= LARGEST, "{target}/{case} has {length} bytes");
        }
    }
}

#[test]
fn every_case_of_the_corpus_keeps_every_promise() {
    let mut failed = Vec::new();
    for target in TARGETS {
        for (name, data) in cases(target.name) {
            failed.extend(run(target, &name, &data));
        }
    }
    assert!(failed.is_empty(), "what they broke is said above:\n{}", failed.join("\n"));
}

#[test]
fn so_does_what_becomes_of_them_by_chance() {
    let wanted = std::env::var("CAUSEWAY_MUTATIONS").ok();
    let wanted = wanted.as_deref().and_then(|wanted| wanted.split_once(':'));
    let (mutations, budget, seed) = wanted.map_or((MUTATIONS, BUDGET, 0), |(seconds, seed)| {
        (usize::MAX, Duration::from_secs(seconds.parse().unwrap()), seed.parse().unwrap())
    });
    let mut failed = Vec::new();
    for target in TARGETS {
        let cases = cases(target.name);
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
        let begun = Instant::now();
        for number in 0..mutations {
            if begun.elapsed() > budget {
                break;
            }
            let mut data = cases[random.below(cases.len())].1.clone();
            for _ in 0..=random.below(4) {
                mutate(&mut data, &cases[random.below(cases.len())].1, &mut random);
            }
            let what = run(target, &format!("mutation {number}"), &data);
            if what.is_some() {
                failed.extend(what);
                break;
            }
        }
    }
    assert!(failed.is_empty(), "what they broke is said above:\n{}", failed.join("\n"));
}

/// What libFuzzer does first: octets changed, lost, said twice, and put together with another case.
fn mutate(data: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    const OCTETS: &[u8] = b"\r\n\0 \t.<>@\"\\+=:;,-%'()[]{}A0\x7f\x80\xc3\xfc\xfd\xfe\xff";
    let at = random.below(data.len() + 1);
    let length = random.below(12).min(data.len() - at);
    match random.below(8) {
        0 if at < data.len() => data[at] ^= 1 << random.below(8),
        1 if at < data.len() => data[at] = OCTETS[random.below(OCTETS.len())],
        2 => data.insert(at, OCTETS[random.below(OCTETS.len())]),
        3 => drop(data.drain(at..at + length)),
        4 => {
            let piece = data[at..at + length].to_vec();
            let to = random.below(data.len() + 1);
            data.splice(to..to, piece);
        }
        5 => data.truncate(at),
        6 => {
            let from = random.below(other.len() + 1);
            data.truncate(at);
            data.extend_from_slice(&other[from..]);
        }
        _ => {
            let from = random.below(other.len() + 1);
            let piece = &other[from..(from + random.below(40)).min(other.len())];
            data.splice(at..at, piece.iter().copied());
        }
    }
    data.truncate(LARGEST as usize);
}

/// xorshift64: enough to choose by.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end.max(1)
    }
}
