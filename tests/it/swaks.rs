//! swaks, the postmasters' test client, against the built binary: what somebody would try by hand on the first day.
//!
//! The relay stands in front of two sinks, one for each premises. swaks has no way to say SIZE or SMTPUTF8: for
//! those see `daemon.rs`.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{
    At, Client, Daemon, PATIENCE, Reaction, Scratch, Sink, SinkPlan, behind_trace, relay, run, said, wait_until,
};
use causeway::tls::Identity;

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
        let config = relay(&format!(
            r#"[hybrid]
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
        ));
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
        let config = relay(&format!(
            r#"[[receive_connector]]
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
        ));
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

/// Where clients submit: STARTTLS and a login.
const SUBMISSION: &str = "127.0.0.1";
/// The same, with TLS from the first byte.
const SUBMISSIONS: &str = "127.0.0.2";
/// Anybody's door behind a proxy.
const BEHIND: &str = "127.0.0.3";
/// Submission with TLS from the first byte, behind a proxy.
const SUBMISSIONS_BEHIND: &str = "127.0.0.4";

const PASSWORD: &str = "s\u{fc}per secret";

/// The line of `causeway hash-password` for this user, and its exit status.
fn hash_password(arguments: &[&str], piped: &str) -> (i32, String) {
    use std::io::Write as _;
    let mut child = crate::common::causeway()
        .arg("hash-password")
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It may refuse its arguments before it reads.
    let _ = child.stdin.take().unwrap().write_all(piped.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap_or(-1), said(&output))
}

#[test]
fn a_password_from_a_pipe_becomes_a_line_of_the_users_file() {
    let (status, line) = hash_password(&["--user", "tim"], "secret\n");
    assert_eq!(status, 0, "{line}");
    assert!(line.starts_with("tim:$argon2id$v=19$m=19456,t=2,p=1$") && line.ends_with('\n'), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let (status, other) = hash_password(&[], "secret");
    assert!(status == 0 && other.starts_with("$argon2id$") && !line.contains(other.trim()), "{other}");
    for (arguments, piped, expected) in [
        (&[][..], "", 1),
        (&[], "\nsecret\n", 1),
        (&["--user", "a:b"], "secret\n", 2),
        (&["--user", ""], "secret\n", 2),
        // A password is no argument: everybody would see it.
        (&["secret"], "secret\n", 2),
    ] {
        let (status, said) = hash_password(arguments, piped);
        assert_eq!(status, expected, "{arguments:?} {piped:?}: {said}");
        assert!(!said.contains("$argon2id$"), "{said}");
    }
}

/// A relay to which clients log in, and that stands behind a proxy.
struct Submission {
    daemon: Daemon,
    outside: Sink,
    scratch: Scratch,
}

impl Submission {
    fn start() -> Self {
        let scratch = Scratch::new();
        let authority = scratch.authority();
        scratch.issue(&authority, "relay", &["mail.contoso.com"]);
        scratch.write("users", hash_password(&["--user", "tim"], PASSWORD).1);
        std::fs::set_permissions(scratch.file("users"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let outside = Sink::start();
        let own = "certificate = \"relay.crt\"\nkey = \"relay.key\"";
        let login = "origin = \"client\"\nrequire_auth = true\nusers_file = \"users\"";
        let proxy = "remote_ips = [\"127.0.0.1/32\"]\nproxy_protocol = true\nmax_connections_per_ip = 1";
        let config = relay(&format!(
            r#"[[receive_connector]]
name = "submission"
listen = ["{SUBMISSION}:0"]
{login}
{own}

[[receive_connector]]
name = "submissions"
listen = ["{SUBMISSIONS}:0"]
tls = "implicit"
{login}
{own}

[[receive_connector]]
name = "behind"
listen = ["{BEHIND}:0"]
origin = "internet"
{proxy}
{own}

[[receive_connector]]
name = "submissions-behind"
listen = ["{SUBMISSIONS_BEHIND}:0"]
tls = "implicit"
{login}
{}
{own}

[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["{}"]
tls = "off"
"#,
            proxy.replace("= 1", "= 100"),
            outside.address,
        ));
        let daemon = Daemon::spawn(scratch.path(), &config);
        Self { daemon, outside, scratch }
    }

    fn swaks(&self, door: &str, arguments: &[&str]) -> (i32, String) {
        let mut all = vec!["--to", "eve@elsewhere.example"];
        all.extend_from_slice(arguments);
        swaks(self.scratch.path(), &self.daemon.door(door).to_string(), &all)
    }

    /// swaks as tim, with this password.
    fn login(&self, door: &str, mechanism: &str, password: &str, more: &[&str]) -> (i32, String) {
        let mut all = vec!["--auth", mechanism, "--auth-user", "tim", "--auth-password", password];
        all.extend_from_slice(more);
        self.swaks(door, &all)
    }

    /// All events so far.
    fn events(&self) -> String {
        let files = std::fs::read_dir(self.scratch.file("tracking")).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    fn wait_for_event(&self, has: &[&str]) {
        let found = || self.events().lines().any(|line| has.iter().all(|text| line.contains(text)));
        wait_until(&format!("an event with {has:?}"), PATIENCE, found);
    }
}

/// swaks' exit status for a login that did not succeed.
const NO_LOGIN: i32 = 28;

/// The options with which swaks plays the proxy for this client.
fn proxy<'a>(version: &'a str, family: &'a str, client: &'a str, door: &'a str) -> Vec<&'a str> {
    let mut options = vec!["--proxy-version", version, "--proxy-family", family, "--proxy-source", client];
    options.extend(["--proxy-source-port", "56324", "--proxy-dest", door, "--proxy-dest-port", "25"]);
    options
}

/// With the right password mail goes anywhere; with a wrong one, with none and without TLS it goes nowhere.
#[test]
fn clients_submit_after_a_login() {
    let world = Submission::start();
    for (number, (door, mechanism, tls)) in [
        (SUBMISSION, "PLAIN", "--tls"),
        (SUBMISSION, "LOGIN", "--tls"),
        (SUBMISSIONS, "PLAIN", "--tls-on-connect"),
        (SUBMISSIONS, "LOGIN", "--tls-on-connect"),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, said) = world.login(door, mechanism, PASSWORD, &[tls]);
        assert_eq!(status, GOOD, "{door} {mechanism}: {said}");
        assert!(said.contains("<~  250-AUTH PLAIN LOGIN"), "{said}");
        assert!(said.contains("<~  235 2.7.0 "), "{said}");
        if tls == "--tls" {
            let before = said.split("=== TLS started").next().unwrap();
            assert!(!before.contains("AUTH"), "C016: in TLS only: {said}");
        }
        let arrival = world.outside.wait_for(number + 1).pop().unwrap();
        assert!(arrival.text().contains("with ESMTPSA"), "{}", arrival.text());
    }
    world.wait_for_event(&["\"RECEIVE\"", "\"submissions\"", "authenticated as tim"]);
    world.daemon.logs_times("\"user\":\"tim\"", 4);

    let began = std::time::Instant::now();
    let (status, said) = world.login(SUBMISSION, "PLAIN", "wrong", &["--tls"]);
    assert_eq!(status, NO_LOGIN, "{said}");
    assert!(said.contains("<~* 535 5.7.8 "), "{said}");
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "a failure is answered late");
    world.daemon.wait_for_log("a login failed: that is not the password of this user");
    world.daemon.logs_times("\"user\":\"tim\"", 5);

    let (status, said) = world.swaks(SUBMISSION, &["--tls"]);
    assert_eq!(status, MAIL_REFUSED, "nobody: {said}");
    assert!(said.contains("<~* 530 5.7.0 "), "{said}");
    let (status, said) = world.swaks(SUBMISSION, &[]);
    assert_eq!(status, MAIL_REFUSED, "in the clear: {said}");
    assert!(said.contains("<** 530 5.7.0 "), "{said}");
    let (status, said) = world.login(SUBMISSION, "PLAIN", PASSWORD, &[]);
    assert_eq!(status, NO_LOGIN, "no password in the clear: {said}");

    assert_eq!(world.outside.count(), 4);
    let log = world.daemon.log_text();
    assert!(!log.contains(PASSWORD) && !log.contains("wrong"), "passwords never appear in the log");
}

/// Who is taken out of the file cannot log in any more, and who is in it already sends nothing more.
#[test]
fn the_users_file_is_read_again_when_it_changes() {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

    let world = Submission::start();
    let door = world.daemon.door(SUBMISSIONS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let socket = tokio::net::TcpStream::connect(door).await.unwrap();
        let connector = causeway::tls::Connector::new(None);
        let demand = causeway::tls::Demand::Nothing;
        let connected = connector.connect(socket, "mail.contoso.com", &demand, deadline).await.unwrap();
        let (read, mut write) = tokio::io::split(connected.0);
        let mut lines = tokio::io::BufReader::new(read).lines();
        let mut say = async |line: &str| {
            if !line.is_empty() {
                write.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
            }
            loop {
                let line = tokio::time::timeout_at(deadline, lines.next_line()).await.unwrap().unwrap().unwrap();
                if line.as_bytes()[3] == b' ' {
                    return line;
                }
            }
        };
        say("").await;
        say("EHLO client.example").await;
        // tim, in base64, and the password asked for.
        say("AUTH LOGIN dGlt").await;
        let reply = say("c8O8cGVyIHNlY3JldA==").await;
        assert!(reply.starts_with("235 "), "{reply}");
        let reply = say("MAIL FROM:<tim@contoso.com>").await;
        assert!(reply.starts_with("250 "), "{reply}");
        say("RSET").await;

        // A file without anybody is refused, and changes nothing.
        world.scratch.write("users", "# nobody\n");
        world.daemon.wait_for_log("the last good one stays");
        let reply = say("MAIL FROM:<tim@contoso.com>").await;
        assert!(reply.starts_with("250 "), "{reply}");
        say("RSET").await;

        world.scratch.write("users", hash_password(&["--user", "anna"], "other\n").1);
        wait_until("the file is read again", PATIENCE, || world.daemon.times_logged(": 1 user\"") >= 2);
        wait_until("it is in use", PATIENCE, || world.daemon.times_logged("users: looked at again") >= 2);
        let reply = say("MAIL FROM:<tim@contoso.com>").await;
        assert!(reply.starts_with("421 4.7.0 "), "{reply}");
    });
    let (status, said) = world.login(SUBMISSION, "PLAIN", PASSWORD, &["--tls"]);
    assert_eq!(status, NO_LOGIN, "{said}");
    let (status, said) =
        world.swaks(SUBMISSION, &["--tls", "--auth", "PLAIN", "--auth-user", "anna", "--auth-password", "other"]);
    assert_eq!(status, GOOD, "{said}");
    assert_eq!(world.outside.wait_for(1).len(), 1);
}

/// Behind a proxy the client's address stands in the Received field and in the events, in the clear and after STARTTLS, by
/// both versions; the proxy's own address chooses the connector.
#[test]
fn a_proxy_names_the_client() {
    let world = Submission::start();
    let to = "julie@contoso.com";
    for (number, (version, family, client, written, tls)) in [
        ("1", "TCP4", "192.0.2.7", "([192.0.2.7])", false),
        ("1", "TCP6", "2001:db8::7", "([IPv6:2001:db8::7])", false),
        ("2", "AF_INET", "192.0.2.8", "([192.0.2.8])", false),
        ("1", "TCP4", "192.0.2.9", "([192.0.2.9])", true),
        ("2", "AF_INET", "192.0.2.10", "([192.0.2.10])", true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut arguments = proxy(version, family, client, if client.contains(':') { "::1" } else { BEHIND });
        arguments.extend(["--to", to]);
        arguments.extend(tls.then_some("--tls"));
        let (status, said) = world.swaks(BEHIND, &arguments);
        assert_eq!(status, GOOD, "version {version}, {client}: {said}");
        let text = world.outside.wait_for(number + 1).pop().unwrap().text();
        assert!(text.contains(written), "version {version}: {text}");
        assert_eq!(text.contains("with ESMTPS"), tls, "{text}");
        world.wait_for_event(&["\"RECEIVE\"", "\"behind\"", &format!("\"{client}\"")]);
    }
    // TLS from the first byte comes behind the header.
    let mut arguments = proxy("1", "TCP4", "192.0.2.11", SUBMISSIONS_BEHIND);
    arguments.push("--tls-on-connect");
    let (status, said) = world.login(SUBMISSIONS_BEHIND, "PLAIN", PASSWORD, &arguments);
    assert_eq!(status, GOOD, "{said}");
    let text = world.outside.wait_for(6).pop().unwrap().text();
    assert!(text.contains("([192.0.2.11])") && text.contains("with ESMTPSA"), "{text}");
    world.daemon.wait_for_log("\"peer\":\"192.0.2.11\"");
}

/// Says `header` first and gives what is answered to that and to `then`, up to the end of the connection or a reply to it.
fn behind_proxy(address: std::net::SocketAddr, header: &[u8]) -> (std::net::TcpStream, String) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(header).unwrap();
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(b"\n") && matches!(stream.read(&mut byte), Ok(1)) {
        said.push(byte[0]);
    }
    (stream, String::from_utf8(said).unwrap())
}

#[test]
fn a_connection_behind_a_proxy_begins_with_a_header() {
    let world = Submission::start();
    let (behind, ordinary) = (world.daemon.door(BEHIND), world.daemon.door(SUBMISSION));
    // Closed without a word: no header, a bad one, one that never ends.
    for header in [
        &b"EHLO client.example\r\n"[..],
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
        b"PROXY UNKNOWN\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[b'P'; 200],
        b"PROXY TCP4 192.0.2.1 198",
    ] {
        let (_stream, said) = behind_proxy(behind, header);
        assert_eq!(said, "", "{}", header.escape_ascii());
    }
    // The last of them waited for its deadline: an honest one is not kept waiting by it, and health checks are served.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    for header in [&b"PROXY UNKNOWN\r\n"[..], local, b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n"] {
        // Without a client the proxy's own address counts, and the one before may not have gone yet.
        wait_until(&format!("{} is served", header.escape_ascii()), PATIENCE, || {
            behind_proxy(behind, header).1.starts_with("220 ")
        });
    }
    // One connection each, counted by the client: the proxy is the same.
    let client = |last: u8| format!("PROXY TCP4 192.0.2.{last} 198.51.100.1 56324 25\r\n");
    let (first, said) = behind_proxy(behind, client(20).as_bytes());
    assert!(said.starts_with("220 "), "{said}");
    let (_stream, said) = behind_proxy(behind, client(20).as_bytes());
    assert!(said.starts_with("421 4.7.0 "), "{said}");
    let (_stream, said) = behind_proxy(behind, client(21).as_bytes());
    assert!(said.starts_with("220 "), "{said}");
    drop(first);
    wait_until("the first has gone", PATIENCE, || behind_proxy(behind, client(20).as_bytes()).1.starts_with("220 "));

    // Where no proxy is expected, nobody's word is taken.
    let mut stranger = Client::connect(ordinary);
    assert!(stranger.say("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25").starts_with("500 5.5.2 "));
    assert!(stranger.say("EHLO client.example").starts_with("250"));
    // And only the proxy may come to its door.
    let mut arguments = proxy("1", "TCP4", "192.0.2.30", BEHIND);
    arguments.extend(["--local-interface", "127.0.0.9"]);
    let (status, said) = world.swaks(BEHIND, &arguments);
    assert_ne!(status, GOOD, "{said}");
    assert!(said.contains("554 5.7.1 "), "{said}");
}

/// An address from which too many logins failed is locked, whatever the password; another one behind the same proxy is not.
#[test]
fn an_address_that_guesses_is_locked() {
    let world = Submission::start();
    let login = |client: &str, password: &str| {
        let mut arguments = proxy("1", "TCP4", client, SUBMISSIONS_BEHIND);
        arguments.push("--tls-on-connect");
        world.login(SUBMISSIONS_BEHIND, "PLAIN", password, &arguments)
    };
    std::thread::scope(|scope| {
        let guesses: Vec<_> = (0..14).map(|_| scope.spawn(|| login("192.0.2.66", "wrong"))).collect();
        for guess in guesses {
            let (status, said) = guess.join().unwrap();
            assert_eq!(status, NO_LOGIN, "{said}");
        }
    });
    let (status, said) = login("192.0.2.66", PASSWORD);
    assert_eq!(status, NO_LOGIN, "{said}");
    assert!(said.contains("<~* 454 4.7.0 "), "{said}");
    let (status, said) = login("192.0.2.67", PASSWORD);
    assert_eq!(status, GOOD, "{said}");
    world.daemon.logs_times("no password from there is looked at", 1);
    assert_eq!(world.outside.wait_for(1).len(), 1);
}
