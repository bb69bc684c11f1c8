//! `causeway check`: what only both sides together show, and what DNS and the hosts say.
//!
//! The pairs are the examples in `config/`, one for each scenario and side; a row plants one mistake in a pair, and
//! exactly its own finding must come of it. Everything else is on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{At, Reaction, Scratch, Sink, SinkPlan, causeway};
use causeway::config;
use causeway::dns::zone::{Failure, Serving, Zone, serve};
use causeway::dns::{Resolver, Tlsa};
use causeway::probe::{self, Limits};
use causeway::tls::authority::Template;
use causeway::tls::{Authority, Identity};
use serde_json::Value;
use socket2::Socket;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Two relays' files in one folder.
struct Pair {
    scratch: Scratch,
    texts: [String; 2],
    recipients: [String; 2],
}

const ON_PREMISES: usize = 0;
const CLOUD: usize = 1;
const NAMES: [&str; 2] = ["on-premises", "cloud"];

const RECIPIENTS: &str = "address,type,target\n\
    julie@contoso.com,on-premises,\n\
    anna@contoso.com,on-premises,\n\
    david@contoso.com,cloud,\n\
    erik@contoso.com,cloud,erik.berg@contoso.mail.onmicrosoft.com\n\
    kate@contoso.com,forward,kate@tailspintoys.com\n\
    sales@contoso.com,group,julie@contoso.com david@contoso.com\n\
    info@contoso.com,alias,sales@contoso.com\n\
    postmaster@contoso.com,alias,julie@contoso.com\n";

impl Pair {
    /// The examples of scenario `number`, with certificates of a CA made on the spot.
    fn scenario(number: u8) -> Self {
        let scratch = Scratch::new();
        // Below an intermediate, as with public authorities; else the chain would lack its issuer.
        let root = scratch.authority();
        let authority = root.intermediate("Causeway test issuer");
        scratch.write("ca.crt", root.pem());
        for name in ["mail.contoso.com", "cloud.contoso.com", "other.contoso.com"] {
            scratch.issue(&authority, name, &[name]);
        }
        let texts = NAMES.map(|side| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/scenario-{number}-{side}.toml"));
            let text = std::fs::read_to_string(path).unwrap();
            text.replace("../certs/test/", "").replace("recipients.csv", &format!("{side}.csv"))
        });
        Self { scratch, texts, recipients: [RECIPIENTS.to_owned(), RECIPIENTS.to_owned()] }
    }

    /// Replaces the first `old` behind the line that holds `section`; empty: from the start.
    fn change(&mut self, side: usize, section: &str, old: &str, new: &str) {
        let text = &mut self.texts[side];
        let start = text.find(section).unwrap_or_else(|| panic!("{section} is in the example"));
        let at = start + text[start..].find(old).unwrap_or_else(|| panic!("{old} is in {section}"));
        text.replace_range(at..at + old.len(), new);
    }

    /// The line that a finding names holds its key, or begins the section without it.
    fn check_place(&self, finding: &str) {
        let mut parts = finding.splitn(4, [' ', ':']);
        let (file, line) = (parts.nth(1).unwrap(), parts.next().unwrap());
        let rest = parts.next().unwrap();
        if file.ends_with(".csv") {
            return;
        }
        let text = std::fs::read_to_string(self.scratch.file(file)).unwrap();
        let Ok(line) = line.parse::<usize>() else {
            return assert!(rest.contains("receive_connector: no "), "{finding}");
        };
        let line = text.lines().nth(line - 1).unwrap();
        let key = line.split([' ', '=']).next().unwrap();
        assert!(line.starts_with("[[") || rest.contains(&format!(": {key}: ")), "{finding} at {line}");
    }

    fn entry(&mut self, side: usize, old: &str, new: &str) {
        assert!(self.recipients[side].contains(old), "{old}");
        self.recipients[side] = self.recipients[side].replace(old, new);
    }

    fn file(&self, side: usize) -> PathBuf {
        self.scratch.file(&format!("{}.toml", NAMES[side]))
    }

    /// `check` on `side`, with the other one.
    fn check(&self, side: usize) -> Found {
        for (number, name) in NAMES.iter().enumerate() {
            self.scratch.write(&format!("{name}.toml"), &self.texts[number]);
            self.scratch.write(&format!("{name}.csv"), &self.recipients[number]);
        }
        let other = self.file(1 - side);
        found(&self.scratch, &self.file(side), &["--other-side", &other.display().to_string()])
    }
}

/// What `check --json` answers.
struct Found {
    status: i32,
    answer: Value,
    /// `error on-premises.toml:41: …`
    lines: Vec<String>,
}

fn found(scratch: &Scratch, config: &Path, args: &[&str]) -> Found {
    let mut command = causeway();
    command.arg("-c").arg(config).arg("check").arg("--json").args(args);
    let output = crate::common::run(&mut command, crate::common::PATIENCE);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {}", crate::common::said(&output)));
    let folder = format!("{}/", scratch.path().display());
    let line = |finding: &Value| {
        let word = |key: &str| finding[key].as_str().unwrap_or_default().replace(&folder, "");
        format!("{} {}:{}: {}", word("severity"), word("file"), finding["line"], word("text"))
    };
    let lines = answer["findings"].as_array().unwrap().iter().map(line).collect();
    Found { status: output.status.code().unwrap(), answer, lines }
}

#[test]
fn the_pair_of_each_scenario_fits() {
    for number in 1..=4 {
        let pair = Pair::scenario(number);
        for side in [ON_PREMISES, CLOUD] {
            let found = pair.check(side);
            assert_eq!(found.lines, Vec::<String>::new(), "scenario {number}, {}", NAMES[side]);
            assert_eq!(found.status, 0);
            assert!(found.answer["summary"].as_str().unwrap().ends_with("the two sides fit"), "{}", found.answer);
        }
    }
}

/// What comes to nothing in the directory is worth a look before anybody writes; a line that is merely wrong is for
/// `directory check`.
#[test]
fn circles_and_groups_of_nobody_are_warned_of() {
    let pair = Pair::scenario(1);
    pair.scratch.write("on-premises.toml", &pair.texts[ON_PREMISES]);
    let more = "one@contoso.com,forward,two@contoso.com\ntwo@contoso.com,alias,one@contoso.com\n\
        crowd@contoso.com,group,gone@contoso.com one@contoso.com\nlost@contoso.com,forward,gone@contoso.com\n";
    pair.scratch.write("on-premises.csv", format!("{RECIPIENTS}{more}"));
    let found = found(&pair.scratch, &pair.file(ON_PREMISES), &[]);
    let expected = [
        "warning on-premises.csv:10: one@contoso.com leads back to itself: one@contoso.com -> two@contoso.com -> one@contoso.com",
        "warning on-premises.csv:12: crowd@contoso.com: nobody in this group can be reached; its mail is refused",
    ];
    assert_eq!(found.lines, expected);
    assert_eq!(found.status, 0, "the relay runs with it");
}

/// One mistake: the scenario whose pair it is planted in, what is changed, and what is found of it, once, seen from
/// whichever side.
type Row = (&'static str, u8, fn(&mut Pair), &'static str);

#[test]
fn each_planted_mistake_gives_its_own_finding() {
    let rows: &[Row] = &[
        (
            "a recipient that loops",
            1,
            |pair| pair.entry(CLOUD, "david@contoso.com,cloud,", "david@contoso.com,on-premises,"),
            ".csv:4: david@contoso.com: mail loops: the ",
        ),
        (
            "two homes",
            3,
            |pair| pair.entry(CLOUD, "anna@contoso.com,on-premises,", "anna@contoso.com,cloud,"),
            "anna@contoso.com: the ",
        ),
        (
            "known to one side only, where both take the domain for final",
            1,
            |pair| pair.entry(CLOUD, "anna@contoso.com,on-premises,\n", ""),
            "error on-premises.csv:3: anna@contoso.com: known to the on-premises relay (on-premises mailbox in on-premises.csv), \
             and the cloud relay refuses it with 550 5.1.1; add it there, or let the domain be \"internal-relay\" there; \
             as it is, both sides take it for final",
        ),
        (
            "a target that the cloud does not know",
            1,
            |pair| {
                pair.entry(ON_PREMISES, "erik.berg@contoso.mail.onmicrosoft.com", "erik@contoso.onmicrosoft.example")
            },
            ": send_connector \"to-cloud\": address_spaces: erik@contoso.com: mail to contoso.onmicrosoft.example \
             leaves for the Internet from the cloud relay",
        ),
        (
            "a group with other members",
            4,
            |pair| {
                pair.entry(
                    CLOUD,
                    "sales@contoso.com,group,julie@contoso.com david@contoso.com",
                    "sales@contoso.com,group,julie@contoso.com",
                )
            },
            ".csv:7: sales@contoso.com: mail sent from one side reaches others",
        ),
        (
            "tls_domain of a send connector that the other's certificate does not carry",
            1,
            |pair| {
                pair.change(
                    ON_PREMISES,
                    "smart_hosts = [\"cloud.contoso.com\"]",
                    "tls_domain = [\"cloud.contoso.com\"]",
                    "tls_domain = [\"relay.contoso.com\"]",
                )
            },
            ": send_connector \"to-cloud\": tls_domain: demands a certificate for relay.contoso.com, \
             but the cloud relay presents one for cloud.contoso.com (receive_connector \"internet\"): no mail leaves",
        ),
        (
            "the same the other way",
            3,
            |pair| {
                pair.change(
                    CLOUD,
                    "smart_hosts = [\"mail.contoso.com\"]",
                    "tls_domain = [\"mail.contoso.com\"]",
                    "tls_domain = [\"*.mail.contoso.com\"]",
                )
            },
            ": send_connector \"to-on-premises\": tls_domain: demands a certificate for *.mail.contoso.com",
        ),
        (
            "tls_domain of a receive connector that the other's certificate does not carry",
            2,
            |pair| {
                pair.change(
                    CLOUD,
                    "name = \"from-on-premises\"",
                    "tls_domain = [\"mail.contoso.com\"]",
                    "tls_domain = [\"relay.contoso.com\"]",
                )
            },
            "receive_connector \"from-on-premises\": tls_domain: asks for a certificate for relay.contoso.com, but the on-premises relay \
             presents one for mail.contoso.com (send_connector \"to-cloud\"): the connection counts as from the Internet",
        ),
        (
            "a client certificate of another authority",
            1,
            |pair| {
                let root = Authority::new("Stranger");
                let (chain, key) = root.intermediate("Another issuer").issue(&["mail.contoso.com"]);
                pair.scratch.write("stranger.crt", chain + &root.pem());
                pair.scratch.write("stranger.key", key);
                pair.change(
                    ON_PREMISES,
                    "smart_hosts = [\"cloud.contoso.com\"]",
                    "mail.contoso.com.crt",
                    "stranger.crt",
                );
                pair.change(
                    ON_PREMISES,
                    "smart_hosts = [\"cloud.contoso.com\"]",
                    "mail.contoso.com.key",
                    "stranger.key",
                );
            },
            "receive_connector \"from-on-premises\": client_ca_file: the on-premises relay presents a certificate that this does not accept",
        ),
        (
            "no client certificate",
            4,
            |pair| {
                pair.change(CLOUD, "smart_hosts = [\"mail.contoso.com\"]", "certificate = ", "# certificate = ");
                pair.change(CLOUD, "smart_hosts = [\"mail.contoso.com\"]", "key = ", "# key = ");
            },
            "send_connector \"to-on-premises\": certificate: missing: the on-premises relay asks for a client certificate for cloud.contoso.com",
        ),
        (
            "internal on the sending end only",
            1,
            |pair| pair.change(CLOUD, "name = \"from-on-premises\"", "internal = true", "internal = false"),
            "receive_connector \"from-on-premises\": internal: false, but the on-premises relay sends organization headers",
        ),
        (
            "internal on the receiving end only",
            3,
            |pair| pair.change(CLOUD, "smart_hosts = [\"mail.contoso.com\"]", "internal = true", "internal = false"),
            "send_connector \"to-on-premises\": internal: false, but the on-premises relay expects organization headers",
        ),
        (
            "another organization",
            1,
            |pair| {
                pair.change(
                    ON_PREMISES,
                    "name = \"from-cloud\"",
                    "originator_org = [\"contoso.com\", \"contoso.mail.onmicrosoft.com\"]",
                    "originator_org = [\"contoso.net\"]",
                )
            },
            "receive_connector \"from-cloud\": originator_org: contoso.net, but the cloud relay says contoso.com (XOORG: its first authoritative domain): \
             all of its mail counts as from the Internet; write contoso.com here too",
        ),
        (
            "an organization that calls itself by its routing domain",
            1,
            |pair| {
                // The cloud's directory is not complete, and its own domain is the first of which it knows everybody.
                let routing = "[[accepted_domain]]\nname = \"contoso.mail.onmicrosoft.com\"\ntype = \"authoritative\"\n\n[[directory]]";
                pair.change(CLOUD, "[[accepted_domain]]", "\"authoritative\"", "\"internal-relay\"");
                pair.change(CLOUD, "[[accepted_domain]]", "[[directory]]", routing);
                pair.change(ON_PREMISES, "name = \"from-cloud\"", ", \"contoso.mail.onmicrosoft.com\"]", "]");
            },
            "receive_connector \"from-cloud\": originator_org: contoso.com, but the cloud relay says contoso.mail.onmicrosoft.com \
             (XOORG: its first authoritative domain): all of its mail counts as from the Internet; write contoso.mail.onmicrosoft.com here too",
        ),
        (
            "nobody refuses unknown recipients",
            3,
            |pair| {
                for side in [ON_PREMISES, CLOUD] {
                    pair.change(side, "[[accepted_domain]]", "\"authoritative\"", "\"internal-relay\"");
                }
            },
            ": accepted_domain \"contoso.com\": type: \"internal-relay\" on both",
        ),
        (
            "a domain that one side does not know",
            1,
            |pair| {
                pair.change(
                    ON_PREMISES,
                    "",
                    "[[accepted_domain]]",
                    "[[accepted_domain]]\nname = \"fabrikam.com\"\n[[accepted_domain]]",
                );
                pair.recipients[ON_PREMISES].push_str("erin@fabrikam.com,on-premises,\n");
            },
            "accepted_domain \"fabrikam.com\": name: the cloud relay does not accept it",
        ),
        (
            "the cloud may not be relayed through",
            1,
            |pair| pair.change(CLOUD, "name = \"from-on-premises\"", "relay = true", "relay = false"),
            "receive_connector \"from-on-premises\": relay: false, but the on-premises relay sends mail for the Internet through here",
        ),
        (
            "nor the premises",
            3,
            |pair| pair.change(ON_PREMISES, "name = \"from-cloud\"", "relay = true", "relay = false"),
            "receive_connector \"from-cloud\": relay: false, but the cloud relay sends mail for the Internet through here",
        ),
        (
            "the same side twice",
            1,
            |pair| {
                pair.texts[CLOUD] = pair.texts[ON_PREMISES].replace("on-premises.csv", "cloud.csv");
            },
            "hybrid: side: \"on-premises\" on both",
        ),
        (
            "another routing domain",
            1,
            |pair| {
                let text = &mut pair.texts[ON_PREMISES];
                *text = text.replace("\"contoso.mail.onmicrosoft.com\"", "\"contoso.onmicrosoft.com\"");
                pair.recipients[ON_PREMISES] = RECIPIENTS.replace("erik.berg@contoso.mail.onmicrosoft.com", "");
            },
            ": hybrid: routing_domain: contoso.onmicrosoft.com, but the cloud relay has contoso.mail.onmicrosoft.com",
        ),
        (
            "Internet mail to and fro",
            1,
            |pair| {
                pair.change(CLOUD, "[hybrid]", "internet = \"direct\"", "internet = \"on-premises\"");
                pair.change(ON_PREMISES, "name = \"from-cloud\"", "relay = false", "relay = true");
            },
            "hybrid: internet: \"on-premises\", and the on-premises relay has \"cloud\": what cloud mailboxes send goes there and comes straight back",
        ),
        (
            "messages that only one side takes",
            4,
            |pair| {
                pair.change(
                    CLOUD,
                    "name = \"from-on-premises\"",
                    "internal = true",
                    "max_message_size = \"10MiB\"\ninternal = true",
                )
            },
            "send_connector \"to-cloud\": max_message_size: the on-premises relay accepts messages up to 36MiB and hands them on, \
             but the cloud relay takes at most 10MiB",
        ),
        (
            "no TLS to a connector that requires it",
            1,
            |pair| {
                let old = pair.texts[CLOUD].find("smart_hosts = [\"mail.contoso.com\"]").unwrap();
                let rest = pair.texts[CLOUD].split_off(old);
                let (connector, rest) = rest.split_once("\n\n").unwrap();
                assert!(connector.contains("tls_domain"));
                pair.texts[CLOUD].push_str("smart_hosts = [\"mail.contoso.com\"]\ntls = \"off\"\n\n");
                pair.texts[CLOUD].push_str(rest);
                // One mistake at a time: without TLS nothing is internal.
                pair.change(ON_PREMISES, "name = \"from-cloud\"", "internal = true", "internal = false");
                pair.change(ON_PREMISES, "name = \"from-cloud\"", "originator_org", "# originator_org");
            },
            "send_connector \"to-on-premises\": tls: \"off\", but the on-premises relay takes this mail in TLS only",
        ),
        (
            "senders that are not let in",
            1,
            |pair| {
                pair.change(
                    ON_PREMISES,
                    "name = \"from-cloud\"",
                    "internal = true",
                    "sender_domains = [\"contoso.com\"]\ninternal = true",
                )
            },
            "receive_connector \"from-cloud\": sender_domains: the cloud relay also hands on what others have sent",
        ),
        (
            "no receive connector for the other premises",
            1,
            |pair| pair.change(CLOUD, "name = \"from-on-premises\"", "origin = \"on-premises\"", "origin = \"cloud\""),
            "receive_connector: no receive_connector has origin = \"on-premises\": what the on-premises relay sends here",
        ),
        (
            "an address that is not let in",
            1,
            |pair| {
                pair.change(
                    ON_PREMISES,
                    "smart_hosts = [\"cloud.contoso.com\"]",
                    "tls = ",
                    "source_ip = [\"192.0.2.9\"]\ntls = ",
                );
                pair.change(
                    CLOUD,
                    "name = \"from-on-premises\"",
                    "origin = ",
                    "remote_ips = [\"198.51.100.0/24\"]\norigin = ",
                );
            },
            "receive_connector \"from-on-premises\": remote_ips: the on-premises relay sends from 192.0.2.9",
        ),
        (
            "routing addresses that leave",
            3,
            |pair| {
                pair.change(
                    ON_PREMISES,
                    "name = \"to-cloud\"",
                    "address_spaces = [\"contoso.mail.onmicrosoft.com\"]",
                    "address_spaces = []",
                );
            },
            "send_connector \"to-cloud\": address_spaces: mail to hybrid routing addresses leaves for the Internet from the on-premises relay",
        ),
        (
            "a login that nobody has",
            1,
            |pair| {
                let hash = causeway::directory::users::hash("secret").unwrap();
                let file = pair.scratch.write("users", format!("tim:{hash}\n"));
                std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
                pair.change(
                    CLOUD,
                    "name = \"from-on-premises\"",
                    "internal = true",
                    "require_auth = true\nusers_file = \"users\"\ninternal = true",
                );
            },
            "send_connector \"to-cloud\": username: missing: the cloud relay asks for a login",
        ),
        (
            "TLS from the first byte",
            1,
            |pair| {
                let port = "listen = [\"0.0.0.0:465\", \"[::]:465\"]";
                pair.change(CLOUD, "name = \"from-on-premises\"", "listen = [\"0.0.0.0:25\", \"[::]:25\"]", port);
                pair.change(CLOUD, "name = \"from-on-premises\"", "tls = \"require\"", "tls = \"implicit\"");
            },
            "receive_connector \"from-on-premises\": tls: \"implicit\", but the on-premises relay speaks SMTP first",
        ),
    ];
    assert!(rows.len() >= 20);
    let mut wrong = Vec::new();
    for (what, number, plant, expected) in rows {
        let mut pair = Pair::scenario(*number);
        plant(&mut pair);
        println!("{what}");
        for side in [ON_PREMISES, CLOUD] {
            let found = pair.check(side);
            if found.lines.len() != 1 || !found.lines[0].contains(expected) {
                wrong.push(format!(
                    "{what} (from {}):\n  expected {expected}\n  found    {:#?}",
                    NAMES[side], found.lines
                ));
            }
            for line in &found.lines {
                pair.check_place(line);
            }
            let is_error = found.lines.iter().any(|line| line.starts_with("error"));
            assert_eq!(found.status, i32::from(is_error), "{what}: {:?}", found.lines);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A directory that is not complete on one side is no mistake, whatever that side then calls its organization.
#[test]
fn a_side_that_does_not_know_everybody_fits_too() {
    for number in 1..=4 {
        for relay in [ON_PREMISES, CLOUD] {
            let mut pair = Pair::scenario(number);
            let routing = "[[accepted_domain]]\nname = \"contoso.mail.onmicrosoft.com\"\ntype = \"authoritative\"\n\n[[directory]]";
            pair.change(relay, "[[accepted_domain]]", "\"authoritative\"", "\"internal-relay\"");
            if relay == CLOUD {
                pair.change(CLOUD, "[[accepted_domain]]", "[[directory]]", routing);
            }
            for side in [ON_PREMISES, CLOUD] {
                assert_eq!(pair.check(side).lines, Vec::<String>::new(), "scenario {number}, {}", NAMES[relay]);
            }
        }
    }
}

#[test]
fn a_fault_of_one_file_keeps_its_own_finding_beside_the_one_of_both() {
    let mut pair = Pair::scenario(1);
    pair.change(CLOUD, "name = \"to-internet\"", "address_spaces = [\"*\"]", "address_spaces = [\"*.example.net\"]");
    for side in [ON_PREMISES, CLOUD] {
        let lines = pair.check(side).lines;
        assert_eq!(lines.len(), 2, "{lines:#?}");
        let both = "hybrid: internet: the on-premises relay hands mail for the Internet to the cloud relay, which refuses it with 550 5.4.4";
        assert!(lines[0].starts_with("error cloud.toml:") && lines[0].contains(both), "{lines:#?}");
        assert!(lines[1].starts_with("warning cloud.toml:"), "{lines:#?}");
    }
}

#[test]
fn all_recipients_that_disagree_are_counted_and_a_dozen_is_named() {
    let mut pair = Pair::scenario(3);
    // Half of a hundred thousand are moved; three were forgotten over there, forty over here.
    for number in 0..100_000 {
        let (here, there) = match number {
            0..3 => ("cloud", "on-premises"),
            3..43 => ("on-premises", "cloud"),
            _ if number % 2 == 0 => ("cloud", "cloud"),
            _ => ("on-premises", "on-premises"),
        };
        pair.recipients[ON_PREMISES].push_str(&format!("user{number:06}@contoso.com,{here},\n"));
        pair.recipients[CLOUD].push_str(&format!("user{number:06}@contoso.com,{there},\n"));
    }
    let begun = std::time::Instant::now();
    let lines = pair.check(ON_PREMISES).lines;
    let took = begun.elapsed();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].starts_with(
            "error on-premises.csv:10: 3 recipients (user000000@contoso.com, user000001@contoso.com, user000002@contoso.com): mail loops"
        ),
        "{}",
        lines[0]
    );
    let dozen = "error on-premises.csv:13: 40 recipients (user000003@contoso.com, ";
    assert!(lines[1].starts_with(dozen) && lines[1].contains("user000014@contoso.com and 28 more): "), "{}", lines[1]);
    // In a build for tests, on a busy machine; a release needs less than a second.
    assert!(took.as_secs() < 50, "{took:?}");
    println!("100,000 recipients: {took:?}");
}

#[test]
fn a_file_with_errors_is_not_compared() {
    let mut pair = Pair::scenario(1);
    pair.change(CLOUD, "[hybrid]", "internet = ", "internett = ");
    let found = pair.check(ON_PREMISES);
    assert_eq!(found.status, 1);
    assert!(found.lines.iter().all(|line| line.contains(" cloud.toml:")), "{:#?}", found.lines);
    assert!(found.answer["summary"].as_str().unwrap().contains("not compared"), "{}", found.answer);
    std::fs::remove_file(pair.file(CLOUD)).unwrap();
    let missing = pair.scratch.file("nowhere.toml");
    let found = found_with(&pair, &missing);
    assert_eq!(found.status, 2, "{:?}", found.lines);
}

fn found_with(pair: &Pair, other: &Path) -> Found {
    found(&pair.scratch, &pair.file(ON_PREMISES), &["--other-side", &other.display().to_string()])
}

/// A world to look at: a name server and hosts, each on a port of its own at 127.0.0.1.
struct World {
    scratch: Scratch,
    authority: Authority,
    zone: Option<Zone>,
    sinks: Vec<Sink>,
    /// Ports that refuse.
    refusing: Vec<Socket>,
    connectors: String,
    runtime: Runtime,
    serving: Option<(SocketAddr, Serving)>,
}

/// How a host is.
#[derive(Clone, Copy)]
enum Host<'a> {
    /// STARTTLS, with a certificate for this name by the right CA.
    For(&'a str),
    /// The same, out of time.
    Expired(&'a str),
    /// By a CA that nobody knows.
    Untrusted(&'a str),
    /// No STARTTLS.
    Plain,
    /// Nobody listens.
    Refuses,
    /// It takes the connection, and says nothing.
    Hangs,
    /// It greets with 554.
    Closed,
}

impl World {
    fn new() -> Self {
        let scratch = Scratch::new();
        let root = scratch.authority();
        let authority = root.intermediate("Causeway test issuer");
        scratch.issue(&authority, "mail", &["mail.contoso.com"]);
        scratch.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
        Self {
            scratch,
            authority,
            zone: Some(Zone::new().address("mail.contoso.com", Ipv4Addr::new(127, 0, 0, 9).into())),
            sinks: Vec::new(),
            refusing: Vec::new(),
            connectors: String::new(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
            serving: None,
        }
    }

    fn zone(&mut self, change: impl FnOnce(Zone) -> Zone) {
        self.zone = self.zone.take().map(change);
    }

    /// Starts a host by this name and gives its port.
    fn host(&mut self, name: &str, host: Host<'_>) -> u16 {
        self.zone(|zone| zone.address(name, Ipv4Addr::LOCALHOST.into()));
        let identity = |authority: &Authority, template: &Template| {
            let (certificate, key) = authority.issue_as(template);
            Some(Identity::from_pem(&certificate, &key).unwrap())
        };
        let plan = SinkPlan::new();
        let plan = match host {
            Host::For(name) => SinkPlan { identity: identity(&self.authority, &Template::new(&[name])), ..plan },
            Host::Expired(name) => {
                SinkPlan { identity: identity(&self.authority, &Template::new(&[name]).expired()), ..plan }
            }
            Host::Untrusted(name) => {
                SinkPlan { identity: identity(&Authority::new("Stranger"), &Template::new(&[name])), ..plan }
            }
            Host::Plain => plan,
            Host::Closed => plan.reacting(|at| match at {
                At::Connected => Reaction::Say("554 5.7.1 not you".to_owned()),
                _ => Reaction::Go,
            }),
            Host::Refuses => {
                // Bound and not listening: the port is nobody else's, and refuses.
                let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                self.refusing.push(socket);
                return port;
            }
            Host::Hangs => {
                let listener = self.runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
                let port = listener.local_addr().unwrap().port();
                self.runtime.spawn(async move {
                    let mut kept = Vec::new();
                    while let Ok((stream, _)) = listener.accept().await {
                        kept.push(stream);
                    }
                });
                return port;
            }
        };
        let sink = Sink::with(plan);
        let port = sink.address.port();
        self.sinks.push(sink);
        port
    }

    /// A send connector with these lines.
    fn connector(&mut self, name: &str, lines: &str) {
        self.connectors.push_str(&format!("[[send_connector]]\nname = \"{name}\"\n{lines}\n"));
    }

    /// One that demands `name` of `host:port`.
    fn demands(&mut self, connector: &str, host: &str, port: u16, name: &str) {
        let lines = format!(
            "smart_hosts = [\"{host}:{port}\"]\ntls = \"domain\"\ntls_domain = [\"{name}\"]\nca_file = \"ca.pem\""
        );
        self.connector(connector, &lines);
    }

    /// The configuration, with the name server running.
    fn file(&mut self, hybrid: &str) -> PathBuf {
        if let Some(zone) = self.zone.take() {
            self.serving = Some(self.runtime.block_on(serve(zone, "127.0.0.1:0".parse().unwrap())).unwrap());
        }
        let dns = self.serving.as_ref().unwrap().0;
        let text = format!(
            r#"hostname = "mail.contoso.com"
[spool]
path = "spool"
[dns]
servers = ["{dns}"]
private_targets = ["127.0.0.0/8"]
{hybrid}
[[accepted_domain]]
name = "contoso.com"
[[directory]]
path = "recipients.csv"
[[receive_connector]]
name = "in"
listen = ["127.0.0.9:25"]
origin = "internet"
certificate = "mail.crt"
key = "mail.key"
{}"#,
            self.connectors
        );
        self.scratch.write("causeway.toml", text)
    }

    fn check(&mut self, hybrid: &str) -> Found {
        let file = self.file(hybrid);
        found(&self.scratch, &file, &["--live"])
    }
}

const HYBRID: &str = "[hybrid]\nside = \"on-premises\"\non_premises = \"to-on-premises\"\ncloud = \"to-cloud\"\n\
    routing_domain = \"contoso.mail.onmicrosoft.com\"\ninternet = \"cloud\"\n";

#[test]
fn each_host_is_judged_by_the_demand_of_its_connector() {
    let rows = [
        ("good", Host::For("good.example"), true, "trusted certificate for good.example"),
        (
            "wrong-name",
            Host::For("other.example"),
            false,
            "demanded a certificate for wrong-name.example, saw one for other.example",
        ),
        ("untrusted", Host::Untrusted("untrusted.example"), false, "was not accepted: no chain leads from it to"),
        ("expired", Host::Expired("expired.example"), false, "it was valid until"),
        ("plain", Host::Plain, false, "the server does not offer STARTTLS"),
        ("refuses", Host::Refuses, false, "Connection refused"),
        ("closed", Host::Closed, false, "554 5.7.1 not you"),
    ];
    let mut world = World::new();
    world.zone(|zone| zone.mx("contoso.com", 10, "mail.contoso.com").txt("contoso.com", "v=spf1 ip4:192.0.2.1 -all"));
    for (name, host, ..) in rows {
        let host_name = format!("{name}.example");
        let port = world.host(&host_name, host);
        world.demands(name, &host_name, port, &host_name);
        // Each is used, or it would have a finding for that.
        let ours = if name == "good" { ", \"contoso.com\"" } else { "" };
        world.connectors.push_str(&format!("address_spaces = [\"{name}.example\"{ours}]\n"));
    }
    let found = world.check("");
    let mut findings = found.lines.iter();
    for (name, _, flows, words) in rows {
        let hosts = found.answer["hosts"].as_array().unwrap();
        let host = hosts.iter().find(|host| host["connector"] == name).unwrap();
        assert_eq!(host["flows"], flows, "{host}");
        let because = host["because"].as_str().unwrap();
        assert!(because.contains(words), "{name}: {because}");
        if !flows {
            // No domain of [hybrid]: it should be looked at, and is no error.
            let line =
                findings.find(|line| line.contains(&format!("send_connector \"{name}\": {name}.example"))).unwrap();
            assert!(line.starts_with("warning causeway.toml:") && line.contains(words), "{line}");
            assert!(line.contains("; no mail flows; "), "{line}");
        }
    }
    assert_eq!(found.lines.len(), 6, "{:#?}", found.lines);
    assert_eq!(found.status, 0);
    let good = &found.answer["hosts"][0]["tls"];
    assert!(good["protocol"].as_str().unwrap().starts_with("TLSv1.3 "), "{good}");
    assert_eq!(good["names"], serde_json::json!(["good.example"]));
    assert!(good["issuer"].as_str().unwrap().contains("Causeway test issuer"), "{good}");
    // Nothing was sent anywhere.
    assert!(world.sinks.iter().all(|sink| sink.count() == 0));
}

#[test]
fn it_is_an_error_only_if_no_mail_flows_by_a_connector_of_the_hybrid() {
    for (cloud, second, status, severity) in [
        (Host::For("cloud.example"), None, 0, None),
        (Host::Untrusted("cloud.example"), None, 1, Some("error")),
        (Host::Untrusted("cloud.example"), Some(Host::For("cloud.example")), 0, Some("warning")),
        (Host::Plain, Some(Host::Refuses), 1, Some("error")),
    ] {
        let mut world = World::new();
        world.zone(|zone| {
            zone.mx("contoso.com", 10, "mail.contoso.com").txt("contoso.com", "v=spf1 ip4:192.0.2.1 -all")
        });
        let port = world.host("inside.example", Host::For("inside.example"));
        world.demands("to-on-premises", "inside.example", port, "inside.example");
        let mut hosts = vec![format!("\"cloud.example:{}\"", world.host("cloud.example", cloud))];
        if let Some(second) = second {
            hosts.push(format!("\"cloud.example:{};20\"", world.host("cloud.example", second)));
        }
        let lines = format!(
            "smart_hosts = [{}]\ntls = \"domain\"\ntls_domain = [\"cloud.example\"]\nca_file = \"ca.pem\"",
            hosts.join(", ")
        );
        world.connector("to-cloud", &lines);
        let found = world.check(HYBRID);
        assert_eq!(found.status, status, "{:#?}", found.lines);
        match severity {
            None => assert_eq!(found.lines, Vec::<String>::new()),
            Some(severity) => assert!(
                found
                    .lines
                    .iter()
                    .all(|line| line.starts_with(severity) && line.contains("send_connector \"to-cloud\"")),
                "{:#?}",
                found.lines
            ),
        }
    }
}

#[test]
fn a_host_that_hangs_ends_at_its_deadline_and_holds_up_nobody() {
    let mut world = World::new();
    let good = world.host("good.example", Host::For("good.example"));
    for number in 0..3 {
        let port = world.host("hangs.example", Host::Hangs);
        world.demands(&format!("hangs{number}"), "hangs.example", port, "hangs.example");
    }
    world.demands("good", "good.example", good, "good.example");
    let file = world.file("");
    let config = Arc::new(config::load(&file).unwrap());
    let limits = Limits { connect: Duration::from_secs(30), host: Duration::from_secs(5), at_once: 4 };
    let report = world.runtime.block_on(async {
        let resolver = Resolver::new(&config.dns.servers).unwrap();
        tokio::time::timeout(crate::common::PATIENCE, probe::look(&config, &resolver, limits, |_, _| {})).await.unwrap()
    });
    let words: Vec<_> = report.hosts.iter().map(|host| host.flows.clone()).collect();
    for hung in &words[..3] {
        assert_eq!(*hung, Err("it does not answer: nothing within 5 s".to_owned()));
    }
    assert!(words[3].is_ok(), "{words:?}");
}

#[test]
fn connectors_by_mx_ask_the_domains_that_they_name_and_not_the_world() {
    let mut world = World::new();
    let port = world.host("mx.partner.example", Host::For("mx.partner.example"));
    world.zone(|zone| {
        zone.mx("contoso.com", 10, "mail.contoso.com")
            .txt("contoso.com", "v=spf1 ip4:192.0.2.1 -all")
            .mx("partner.example", 10, "mx.partner.example")
            .mx("null.example", 0, ".")
    });
    world.connector(
        "to-partners",
        &format!(
            "address_spaces = [\"partner.example\", \"*.null.example\"]\nport = {port}\ntls = \"domain\"\nca_file = \"ca.pem\""
        ),
    );
    world.connector("to-internet", "address_spaces = [\"*\"]\ntls = \"opportunistic\"");
    world.connector("off", "address_spaces = [\"off.example\"]\ntls = \"opportunistic\"\nenabled = false");
    let found = world.check("");
    let hosts = found.answer["hosts"].as_array().unwrap();
    assert_eq!(hosts.len(), 2, "{hosts:#?}");
    assert!(hosts.iter().all(|host| host["connector"] == "to-partners"), "{hosts:#?}");
    let partner = hosts.iter().find(|host| host["flows"] == true).unwrap();
    assert!(partner["host"].as_str().unwrap().starts_with("mx.partner.example [127.0.0.1]:"), "{partner}");
    assert_eq!(found.lines.len(), 1, "{:#?}", found.lines);
    assert!(found.lines[0].contains("null.example takes no mail: its MX is null"), "{:#?}", found.lines);
}

#[test]
fn dns_is_asked_about_every_accepted_domain() {
    let tlsa = Tlsa { usage: 3, selector: 1, matching: 1, data: vec![7; 32] };
    let old = Tlsa { usage: 1, selector: 1, matching: 1, data: vec![7; 32] };
    let good =
        |zone: Zone| zone.mx("contoso.com", 10, "mail.contoso.com").txt("contoso.com", "v=spf1 ip4:192.0.2.1 -all");
    type Change<'a> = &'a dyn Fn(Zone) -> Zone;
    let rows: &[(Change<'_>, &[&str], &[&str])] = &[
        (
            &good,
            &["MX 10 mail.contoso.com: this relay", "SPF v=spf1 ip4:192.0.2.1 -all (0 of 10 look-ups)", "MTA-STS none"],
            &[],
        ),
        (
            &|zone| {
                good(zone).tlsa("mail.contoso.com", 25, &tlsa).txt("_mta-sts.contoso.com", "v=STSv1; id=20261121T1;")
            },
            &[
                "TLSA mail.contoso.com: 3 1 1 (not validated)",
                "MTA-STS id 20261121T1; the policy itself was not fetched",
            ],
            &[],
        ),
        (
            &|zone| good(zone).tlsa("mail.contoso.com", 25, &old),
            &[],
            &["TLSA: mail.contoso.com: no record has usage 2 or 3"],
        ),
        (
            &|zone| good(zone).txt("_mta-sts.contoso.com", "v=STSv1; id=;"),
            &[],
            &["has no id of 1 to 32 letters and digits"],
        ),
        (
            &|zone| {
                good(zone).txt("_mta-sts.contoso.com", "v=STSv1; id=1").txt("_mta-sts.contoso.com", "v=STSv1; id=2")
            },
            &[],
            &["MTA-STS: there are 2 records, so none holds"],
        ),
        (&|zone| zone, &[], &["MX: it has none: other servers try the addresses", "SPF: there is no record"]),
        (&|zone| zone.fails("contoso.com", Failure::ServFail), &[], &["MX: DNS cannot tell", "SPF: DNS cannot tell"]),
        (&|zone| zone.mx("contoso.com", 0, ".").txt("contoso.com", "v=spf1 -all"), &[], &["MX: it is null (RFC 7505)"]),
        (
            &|zone| {
                zone.mx("contoso.com", 10, "mail.contoso.com").txt("contoso.com", "v=spf1 ip4: 131.107.21.231 -all")
            },
            &[],
            &["SPF: \"ip4: 131.107.21.231\" has a blank in it, which ends the term; write \"ip4:131.107.21.231\""],
        ),
        (
            &|zone| {
                let zone =
                    zone.mx("contoso.com", 10, "mail.contoso.com").txt("contoso.com", "v=spf1 include:a.example -all");
                // Six here and six there.
                let zone =
                    zone.txt("a.example", "v=spf1 a mx a:1.example a:2.example a:3.example include:b.example -all");
                zone.txt("b.example", "v=spf1 a mx a:1.example a:2.example a:3.example a:4.example -all")
            },
            &[],
            &["SPF: with what it includes it costs more than 10 DNS look-ups"],
        ),
        (
            &|zone| {
                zone.mx("contoso.com", 10, "mail.contoso.com").txt("contoso.com", "v=spf1 include:nothing.example -all")
            },
            &[],
            &["SPF: nothing.example, which it includes, has no SPF record (permerror)"],
        ),
        (
            &|zone| zone.mx("contoso.com", 10, "mx.elsewhere.example").txt("contoso.com", "v=spf1 -all"),
            &["MX 10 mx.elsewhere.example: neither this relay nor the other premises"],
            &["MX: mx.elsewhere.example: neither this relay (mail.contoso.com) nor a host of the other premises"],
        ),
        (
            &|zone| zone.mx("contoso.com", 10, "cloud.example").txt("contoso.com", "v=spf1 -all"),
            &["MX 10 cloud.example: the other premises"],
            &[],
        ),
        (
            &|zone| {
                let zone = zone.address("alias.contoso.com", Ipv4Addr::new(127, 0, 0, 9).into());
                zone.mx("contoso.com", 10, "alias.contoso.com").txt("contoso.com", "v=spf1 -all")
            },
            &["MX 10 alias.contoso.com: this relay"],
            &[],
        ),
    ];
    for (change, facts, warnings) in rows {
        let mut world = World::new();
        world.zone(change);
        for name in ["to-on-premises", "to-cloud"] {
            let host = if name == "to-cloud" { "cloud.example" } else { "inside.example" };
            let port = world.host(host, Host::For(host));
            world.demands(name, host, port, host);
        }
        let found = world.check(HYBRID);
        let domain = &found.answer["domains"][0];
        let told: Vec<String> = domain["facts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|fact| format!("{} {}", fact["record"].as_str().unwrap(), fact["text"].as_str().unwrap()))
            .collect();
        for fact in *facts {
            assert!(told.iter().any(|told| told == fact), "{fact}: {told:#?}");
        }
        assert_eq!(found.lines.len(), warnings.len(), "{warnings:?}: {:#?}", found.lines);
        for (line, warning) in found.lines.iter().zip(*warnings) {
            assert!(
                line.starts_with("warning causeway.toml:15: contoso.com: ") && line.contains(warning),
                "{warning}: {line}"
            );
        }
        assert_eq!(found.status, 0);
    }
}

#[test]
fn entries_that_no_message_asks_about_are_no_finding() {
    for number in 1..=4 {
        let mut pair = Pair::scenario(number);
        // Of domains that are not accepted, and a routing address by its own name, as exports have them.
        pair.recipients[ON_PREMISES]
            .push_str("old@fabrikam.com,on-premises,\ndavid@contoso.mail.onmicrosoft.com,cloud,\n");
        pair.recipients[CLOUD]
            .push_str("old@fabrikam.com,cloud,\ndavid@contoso.mail.onmicrosoft.com,alias,david@contoso.com\n");
        // Upper case and a tag make no other recipient.
        pair.entry(CLOUD, "julie@contoso.com,on-premises,", "Julie@CONTOSO.com,on-premises,");
        for side in [ON_PREMISES, CLOUD] {
            assert_eq!(pair.check(side).lines, Vec::<String>::new(), "scenario {number}, {}", NAMES[side]);
        }
    }
}
