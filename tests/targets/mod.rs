//! What must hold whatever a stranger sends: one function for every parser that reads it.
//!
//! A target takes any bytes and panics where a promise is broken. `tests/corpus.rs` runs every target over its
//! checked-in corpus (`fuzz/corpus/`) and over mutations of it; `fuzz/` lets libFuzzer look for more.
//!
//! A corpus is text that people can read and write: a case is what the stranger sends, and where a target needs more
//! (who answers what, where time passes) its module says by which lines or octets a case says so. How a stream is cut
//! into pieces no case says: a target tries one piece, single octets, and cuts that follow from the case itself.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod auth;
mod client;
mod command;
mod config;
mod directory;
mod downgrade;
mod framing;
mod header;
mod proxy;
mod reply;
mod session;
mod smtp_proto;
mod spf;
mod spool;
mod tracking;

/// One parser, and what must hold of it.
pub struct Target {
    /// The name of its corpus and of its binary in `fuzz/`.
    pub name: &'static str,
    /// Panics where a promise is broken.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "address", run: command::address },
    Target { name: "auth", run: auth::exchange },
    Target { name: "bdat", run: framing::bdat },
    Target { name: "client", run: client::session },
    Target { name: "command", run: command::command },
    Target { name: "config", run: config::config },
    Target { name: "data", run: framing::data },
    Target { name: "downgrade", run: downgrade::downgrade },
    Target { name: "firewall", run: header::firewall },
    Target { name: "header", run: header::header },
    Target { name: "import", run: directory::import },
    Target { name: "lines", run: framing::lines },
    Target { name: "proxy", run: proxy::proxy },
    Target { name: "received", run: header::received },
    Target { name: "recipients", run: directory::recipients },
    Target { name: "record", run: spool::record },
    Target { name: "reply", run: reply::reply },
    Target { name: "segment", run: spool::segment },
    Target { name: "session", run: session::session },
    Target { name: "smtp_proto", run: smtp_proto::compare },
    Target { name: "spf", run: spf::spf },
    Target { name: "trace", run: tracking::trace },
    Target { name: "users", run: directory::users },
    Target { name: "visit", run: header::visit },
];

/// Runs the target of this name.
#[allow(dead_code, reason = "the binaries of fuzz/ name one; the test runs all")]
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no target {name}")).run)(data);
}

/// How a stream is cut. The cuts follow from the stream, so that a case that fails fails again.
#[derive(Debug, Clone, Copy)]
enum Cuts {
    One,
    Octets,
    Some(u64),
}

impl Cuts {
    /// As one piece, as single octets, and twice somewhere in between.
    fn of(data: &[u8]) -> [Self; 4] {
        let seed = data.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        [Self::One, Self::Octets, Self::Some(seed | 1), Self::Some(seed.rotate_left(32) | 1)]
    }

    /// The length of the next piece of at most `left` octets; at least 1.
    fn next(&mut self, left: usize) -> usize {
        let length = match self {
            Self::One => left,
            Self::Octets => 1,
            Self::Some(state) => {
                // xorshift: short pieces are the interesting ones, and now and then a long one.
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let random = (*state >> 33) as usize;
                if random.is_multiple_of(8) { random % 300 } else { random % 12 }
            }
        };
        length.clamp(1, left.max(1))
    }

    /// All of it in pieces.
    fn pieces(mut self, mut data: &[u8]) -> Vec<&[u8]> {
        let mut pieces = Vec::new();
        while !data.is_empty() {
            let (piece, rest) = data.split_at(self.next(data.len()));
            pieces.push(piece);
            data = rest;
        }
        pieces
    }
}

/// The first line as words, and what follows it: what a target does with the rest.
fn directives(data: &[u8]) -> (Vec<&str>, &[u8]) {
    let end = data.iter().position(|&octet| octet == b'\n').unwrap_or(data.len());
    let words = std::str::from_utf8(&data[..end]).unwrap_or_default().split_ascii_whitespace().collect();
    (words, data.get(end + 1..).unwrap_or_default())
}

/// Is it what may stand in a log or a reply?
fn is_printable(text: &str) -> bool {
    text.bytes().all(|octet| matches!(octet, b' '..=b'~'))
}

/// No CR, LF or NUL on its own. Written without memchr, so that it is not the reader itself.
fn is_clean(content: &[u8]) -> bool {
    let mut octets = content.iter().peekable();
    while let Some(octet) = octets.next() {
        match octet {
            b'\r' if octets.next_if(|next| **next == b'\n').is_some() => {}
            b'\r' | b'\n' | 0 => return false,
            _ => {}
        }
    }
    true
}
