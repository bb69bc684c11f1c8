//! swaks, the postmasters' test client, against the built binary: what somebody would try by hand on the first day.
//!
//! The relay stands in front of two sinks, one for each premises. swaks has no way to say SIZE or SMTPUTF8: for
//! those see `daemon.rs`.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use causeway::tls::Identity;
use common::{At, Client, Daemon, PATIENCE, Reaction, Scratch, Sink, SinkPlan, behind_trace, run, said, wait_until};

/// Anybody's door.
const INTERNET: &str = "127.0.0.1";
/// The partner's door: only with a certificate.
const PARTNER: &str = "127.0.0.2";
/// A door that both share.
const SHARED: &str = "127.0.0.3";

/// The relay between two sinks.
struct World {
    daemon: Daemon,
    on_premises: Sink,
    cloud: Sink,
    scratch: Scratch,
}

impl World {
    fn start() -> Self {
        let scratch = Scratch::new();
        let authority = scratch.authority();
        scratch.issue(&authority, "relay", &["mail.contoso.com"]);
        scratch.issue(&authority, "partner", &["mail.partner.example"]);
        scratch.issue(&authority, "stranger", &["mail.stranger.example"]);
        let foreign = causeway::tls::authority::Authority::new("Somebody else's CA");
        scratch.issue(&foreign, "forged", &["mail.partner.example"]);
        scratch.write(
            "recipients.csv",
            "address,type,target\njulie@contoso.com,on-premises,\ndavid@contoso.com,cloud,\n\
             \"\"\"a b\"\"@contoso.com\",on-premises,\n",
        );
        let (certificate, key) = authority.issue(&["cloud.example"]);
        let on_premises = Sink::start();
        let cloud =
            Sink::with(SinkPlan { identity: Some(Identity::from_pem(&certificate, &key).unwrap()), ..SinkPlan::new() });
        let own = "certificate = \"relay.crt\"\nkey = \"relay.key\"";
        let config = format!(
            r#"hostname = "mail.contoso.com"
postmaster = "julie@contoso.com"

[log]
format = "json"

[spool]
path = "spool"
min_free_space = "1MiB"
retry = ["1s"]

[hybrid]
side = "on-premises"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "contoso.mail.onmicrosoft.com"

[[accepted_domain]]
name = "contoso.com"
type = "authoritative"

[[directory]]
kind = "file"
path = "recipients.csv"

[[receive_connector]]
name = "internet"
listen = ["{INTERNET}:0", "{SHARED}:0"]
origin = "internet"
max_message_size = "64KiB"
tls = "offer"
{own}

[[receive_connector]]
name = "partner"
listen = ["{PARTNER}:0", "{SHARED}:0"]
origin = "partner"
relay = true
tls = "require"
tls_domain = ["mail.partner.example"]
client_ca_file = "ca.pem"
{own}

[[send_connector]]
name = "to-on-premises"
address_spaces = ["fabrikam.com"]
smart_hosts = ["{}"]
tls = "off"

[[send_connector]]
name = "to-cloud"
address_spaces = ["contoso.mail.onmicrosoft.com"]
smart_hosts = ["{}"]
tls = "domain"
tls_domain = ["cloud.example"]
ca_file = "ca.pem"
{own}
"#,
            on_premises.address, cloud.address
        );
        let daemon = Daemon::spawn(scratch.path(), &config);
        Self { daemon, on_premises, cloud, scratch }
    }

    fn file(&self, name: &str) -> String {
        self.scratch.file(name).display().to_string()
    }

    /// swaks at this door, from erin@fabrikam.com unless `arguments` say otherwise. Its exit status and transcript.
    fn swaks(&self, door: &str, arguments: &[&str]) -> (i32, String) {
        let address = self.daemon.door(door);
        swaks(self.scratch.path(), &address.to_string(), arguments)
    }

    /// With a client certificate.
    fn swaks_as(&self, door: &str, who: &str, arguments: &[&str]) -> (i32, String) {
        let (certificate, key) = (self.file(&format!("{who}.crt")), self.file(&format!("{who}.key")));
        let mut all = vec!["--tls", "--tls-cert", &certificate, "--tls-key", &key];
        all.extend_from_slice(arguments);
        self.swaks(door, &all)
    }
}

fn swaks(folder: &Path, server: &str, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new("swaks");
    // swaks would read options from the home folder of whoever runs the tests.
    command.current_dir(folder).env("HOME", folder).args(["--server", server, "--helo", "client.example"]);
    if !arguments.contains(&"--from") {
        command.args(["--from", "erin@fabrikam.com"]);
    }
    let output = run(command.args(arguments), PATIENCE);
    (output.status.code().unwrap_or(-1), said(&output))
}

/// swaks' exit statuses.
const GOOD: i32 = 0;
const MAIL_REFUSED: i32 = 23;
const NO_RECIPIENT: i32 = 24;
const MESSAGE_REFUSED: i32 = 26;

#[test]
fn a_message_in_the_clear_and_one_in_tls() {
    let world = World::start();
    let (status, said) = world.swaks(INTERNET, &["--to", "julie@contoso.com", "--header", "Subject: in the clear"]);
    assert_eq!(status, GOOD, "{said}");
    assert!(said.contains("<-  250 2.0.0 queued as "), "{said}");
    for keyword in
        ["PIPELINING", "SIZE 65536", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING", "DSN", "STARTTLS"]
    {
        assert!(said.contains(keyword), "EHLO offers {keyword}: {said}");
    }
    let text = world.on_premises.wait_for(1)[0].text();
    assert!(text.contains("Subject: in the clear\r\n"), "{text}");
    assert!(text.contains("with ESMTP\r\n\tid ") || text.contains("with ESMTP id "), "{text}");

    let authority = world.file("ca.pem");
    let (status, said) = world.swaks(
        INTERNET,
        &["--to", "julie@contoso.com", "--tls", "--tls-verify", "--tls-ca-path", &authority, "--body", "in TLS"],
    );
    assert_eq!(status, GOOD, "{said}");
    assert!(said.contains("=== TLS started with cipher TLSv1.3"), "{said}");
    assert!(!said.split("=== TLS started").nth(1).unwrap().contains("STARTTLS"), "C016: not offered again: {said}");
    let text = world.on_premises.wait_for(2)[1].text();
    assert!(text.contains("with ESMTPS"), "{text}");
    assert!(text.contains("TLSv1.3") || text.contains("TLS1.3"), "{text}");

    // An older client.
    let (status, said) = world.swaks(INTERNET, &["--to", "julie@contoso.com", "--tls", "--tls-protocol", "tlsv1_2"]);
    assert_eq!(status, GOOD, "{said}");
    let (status, said) = world.swaks(INTERNET, &["--to", "julie@contoso.com", "--tls", "--tls-protocol", "tlsv1_1"]);
    assert_ne!(status, GOOD, "TLS 1.1 is too old: {said}");
    world.on_premises.wait_for(3);
}

/// On a door that is the partner's alone, only the partner's certificate opens.
#[test]
fn a_client_certificate_is_demanded() {
    let world = World::start();
    let to = ["--to", "julie@contoso.com"];
    let (status, said) = world.swaks(PARTNER, &to);
    assert_eq!(status, MAIL_REFUSED, "{said}");
    assert!(said.contains("<** 530 5.7.0 "), "{said}");
    let mut tls = to.to_vec();
    tls.push("--tls");
    let (status, said) = world.swaks(PARTNER, &tls);
    assert_eq!(status, MAIL_REFUSED, "without a certificate: {said}");
    assert!(said.contains("<** 550 5.7.1 ") || said.contains("<~* 550 5.7.1 "), "{said}");
    for who in ["stranger", "forged"] {
        let (status, said) = world.swaks_as(PARTNER, who, &to);
        assert_eq!(status, MAIL_REFUSED, "{who}: {said}");
        assert!(said.contains("550 5.7.1 "), "{who}: {said}");
    }
    let (status, said) = world.swaks_as(PARTNER, "partner", &to);
    assert_eq!(status, GOOD, "{said}");
    assert_eq!(world.on_premises.wait_for(1).len(), 1);
}

/// On a shared door the certificate decides which connector it is, and with that what the client may do.
#[test]
fn a_client_certificate_chooses_the_connector() {
    let world = World::start();
    let abroad = ["--to", "eve@fabrikam.com"];
    let (status, said) = world.swaks_as(SHARED, "partner", &abroad);
    assert_eq!(status, GOOD, "the partner may relay: {said}");
    assert_eq!(world.on_premises.wait_for(1)[0].to, ["eve@fabrikam.com"]);
    for who in ["stranger", "forged"] {
        let (status, said) = world.swaks_as(SHARED, who, &abroad);
        assert_eq!(status, NO_RECIPIENT, "{who} is anybody: {said}");
        assert!(said.contains("550 5.7.1 Unable to relay"), "{who}: {said}");
        let (status, said) = world.swaks_as(SHARED, who, &["--to", "julie@contoso.com"]);
        assert_eq!(status, GOOD, "{who} may write to us: {said}");
    }
    let (status, said) = world.swaks(SHARED, &abroad);
    assert_eq!(status, NO_RECIPIENT, "{said}");
    assert_eq!(world.on_premises.wait_for(3).len(), 3);
}

#[test]
fn recipients_are_judged_at_rcpt() {
    let world = World::start();
    for (to, words) in [("nobody@contoso.com", "<** 550 5.1.1 "), ("eve@fabrikam.com", "<** 550 5.7.1 Unable to relay")]
    {
        let (status, said) = world.swaks(INTERNET, &["--to", to]);
        assert_eq!(status, NO_RECIPIENT, "{to}: {said}");
        assert!(said.contains(words), "{to}: {said}");
    }
    let (status, said) = world.swaks(INTERNET, &["--to", "nobody@contoso.com,julie@contoso.com"]);
    assert_eq!(status, GOOD, "one of two is enough: {said}");
    assert_eq!(world.on_premises.wait_for(1)[0].to, ["julie@contoso.com"]);
}

/// The README's message: one copy to each premises, the cloud's under the hybrid routing address and in TLS.
#[test]
fn two_recipients_make_two_copies() {
    let world = World::start();
    for (number, pipelining) in [(1, &[][..]), (2, &["--pipeline"][..])] {
        let mut arguments = vec!["--to", "julie@contoso.com,david@contoso.com", "--body", "to both"];
        arguments.extend_from_slice(pipelining);
        let (status, said) = world.swaks(INTERNET, &arguments);
        assert_eq!(status, GOOD, "{pipelining:?}: {said}");
        let (here, there) = (world.on_premises.wait_for(number), world.cloud.wait_for(number));
        let (here, there) = (here.last().unwrap(), there.last().unwrap());
        assert_eq!((here.from.as_str(), here.to.join(" ").as_str()), ("erin@fabrikam.com", "julie@contoso.com"));
        assert_eq!(
            (there.from.as_str(), there.to.join(" ").as_str()),
            ("erin@fabrikam.com", "david@contoso.mail.onmicrosoft.com")
        );
        assert!(there.tls.is_some(), "the cloud's copy goes in TLS");
        assert_eq!(
            there.client.as_deref(),
            Some(&["mail.contoso.com".to_owned()][..]),
            "and the relay shows who it is"
        );
        assert_eq!(behind_trace(&here.content, "Date: "), behind_trace(&there.content, "Date: "));
    }
    assert_eq!((world.on_premises.count(), world.cloud.count()), (2, 2));
}

/// Too big: heard as soon as it can be known, at MAIL where SIZE says so, else at the end of the data.
#[test]
fn a_message_that_is_too_big_is_refused() {
    let world = World::start();
    let mut client = Client::hello(world.daemon.door(INTERNET));
    let reply = client.say("MAIL FROM:<erin@fabrikam.com> SIZE=65537");
    assert!(reply.starts_with("552 5.3.4 "), "announced: {reply}");
    let body = world.scratch.write("big.txt", "a line of the big message, again\n".repeat(2500));
    let (status, said) =
        world.swaks(INTERNET, &["--to", "julie@contoso.com", "--body", &format!("@{}", body.display())]);
    assert_eq!(status, MESSAGE_REFUSED, "unannounced: {said}");
    assert!(said.contains("552 5.3.4 "), "{said}");
    let body = world.scratch.write("fits.txt", "a line of the big message, again\n".repeat(1800));
    let (status, said) =
        world.swaks(INTERNET, &["--to", "julie@contoso.com", "--body", &format!("@{}", body.display())]);
    assert_eq!(status, GOOD, "{said}");
    assert!(world.on_premises.wait_for(1)[0].content.len() > 55_000);
}

#[test]
fn odd_senders_recipients_and_bodies_pass_as_they_are() {
    let world = World::start();
    let (status, said) = world.swaks(INTERNET, &["--from", "<>", "--to", "julie@contoso.com"]);
    assert_eq!(status, GOOD, "the null sender: {said}");
    assert_eq!(world.on_premises.wait_for(1)[0].from, "");

    let (status, said) = world.swaks(INTERNET, &["--to", "\"a b\"@contoso.com"]);
    assert_eq!(status, GOOD, "a quoted local part: {said}");
    assert_eq!(world.on_premises.wait_for(2)[1].to, ["\"a b\"@contoso.com"]);

    let body = ".\\n..\\n.dot\\nGr\u{fc}\u{df}e\\n";
    let data = format!("Subject: gr\u{fc}n\\n\\n{body}");
    let (status, said) = world.swaks(INTERNET, &["--to", "julie@contoso.com", "--data", &data]);
    assert_eq!(status, GOOD, "8-bit and dots: {said}");
    let arrival = world.on_premises.wait_for(3).pop().unwrap();
    let content = String::from_utf8(behind_trace(&arrival.content, "Subject: ").to_vec()).unwrap();
    assert_eq!(content.trim_end(), "Subject: gr\u{fc}n\r\n\r\n.\r\n..\r\n.dot\r\nGr\u{fc}\u{df}e");
}

/// A smart host that demands a login: over TLS it gets one, by PLAIN or by LOGIN; in the clear it gets nothing.
#[test]
fn the_relay_logs_in_to_a_smart_host() {
    for (mechanisms, password, encrypted, arrives) in [
        ("PLAIN LOGIN", "secret \u{fc} word", true, true),
        ("LOGIN", "secret \u{fc} word", true, true),
        ("PLAIN", "wrong", true, false),
        ("PLAIN LOGIN", "secret \u{fc} word", false, false),
    ] {
        let scratch = Scratch::new();
        let authority = scratch.authority();
        let (certificate, key) = authority.issue(&["smarthost.example"]);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let sink = Sink::with(
            SinkPlan {
                identity: encrypted.then(|| Identity::from_pem(&certificate, &key).unwrap()),
                login: Some(("relay".into(), "secret \u{fc} word".into())),
                mechanisms,
                ..SinkPlan::new()
            }
            .reacting(move |at| {
                if matches!(at, At::Connected) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Reaction::Go
            }),
        );
        let secret = scratch.write("secret", format!("{password}\n"));
        std::fs::set_permissions(secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let config = format!(
            r#"hostname = "mail.contoso.com"

[log]
format = "json"

[spool]
path = "spool"
min_free_space = "1MiB"
retry = ["1s"]

[[accepted_domain]]
name = "contoso.com"
type = "external-relay"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "on-premises"
tls = "off"

[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{}"]
tls = "domain"
tls_domain = ["smarthost.example"]
ca_file = "ca.pem"
username = "relay"
password_file = "secret"
"#,
            sink.address
        );
        let daemon = Daemon::spawn(scratch.path(), &config);
        let (status, said) = swaks(
            scratch.path(),
            &daemon.address().to_string(),
            &["--to", "eve@elsewhere.example", "--body", "logged in"],
        );
        assert_eq!(status, GOOD, "{said}");
        if arrives {
            let arrival = sink.wait_for(1).remove(0);
            assert_eq!(arrival.login.as_deref(), Some("relay"), "{mechanisms}");
            assert_eq!(arrival.to, ["eve@elsewhere.example"]);
        } else {
            daemon.wait_for_log("deferred");
            wait_until("it is tried again", PATIENCE, || asked.load(Ordering::Relaxed) >= 2);
            assert_eq!(sink.count(), 0, "{mechanisms} {password}: nothing is taken without a login");
        }
        assert!(!daemon.log_text().contains("secret \u{fc}"), "the password never appears in the log");
    }
}
