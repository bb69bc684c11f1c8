//! `causeway trace` against the files of two real relays, one behind the other.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::common::{
    At, Client, Daemon, IN, PATIENCE, Reaction, Scratch, Sink, SinkPlan, causeway, out, relay, run, said, wait_until,
};
use serde_json::Value;

/// A relay in front of `next`, with its tracking files beside its configuration.
fn config(hostname: &str, next: SocketAddr) -> String {
    let keys = format!("hostname = \"{hostname}\"\nshutdown_grace = \"10s\"\n");
    relay(&format!("{keys}\n{IN}tls = \"off\"\nrelay = true\n\n{}", out(next)))
}

/// Two relays: `first` hands on to `second`, which knows that nobody@contoso.com is not there, and tells the sender.
struct Two {
    first: Scratch,
    second: Scratch,
}

impl Two {
    fn after_one_message() -> Self {
        let sink = Sink::with(SinkPlan::new().reacting(|at| match at {
            At::Rcpt(to) if to.contains("nobody@contoso.com") => Reaction::Say("550 5.1.1 no such mailbox".into()),
            _ => Reaction::Go,
        }));
        let (first, second) = (Scratch::new(), Scratch::new());
        let mut behind = Daemon::spawn(second.path(), &config("mail.cloud.example", sink.address));
        let mut front = Daemon::spawn(first.path(), &config("mail.contoso.com", behind.address()));
        let content = b"From: erin@fabrikam.com\r\nMessage-ID: <one@fabrikam.com>\r\nSubject: one\r\n\r\nhello\r\n";
        let to = ["Julie@contoso.com", "nobody@contoso.com"];
        let mut client = Client::hello(front.address());
        let reply = client.deliver("erin@fabrikam.com", &to, content).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        let reply = client.deliver("other@fabrikam.com", &["julie@contoso.com"], b"Subject: two\r\n\r\n").unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        // Both messages, and the report.
        sink.wait_for(3);
        let two = Self { first, second };
        wait_until("the report's events are in the file", PATIENCE, || {
            two.tracking_text().matches("\"event\":\"SEND\"").count() == 3
        });
        assert_eq!(front.terminate().code(), Some(0));
        assert_eq!(behind.terminate().code(), Some(0));
        two
    }

    fn tracking(&self) -> PathBuf {
        self.second.file("tracking")
    }

    /// What the second relay's files say.
    fn tracking_text(&self) -> String {
        let files = std::fs::read_dir(self.tracking()).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    /// Exit status, standard output, standard error.
    fn trace(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = causeway();
        command.arg("-c").arg(self.first.file("causeway.toml")).arg("trace").args(arguments);
        let output = run(&mut command, PATIENCE);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

/// The words in the order in which they stand.
fn in_order(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        let Some((_, after)) = rest.split_once(word) else { panic!("{word:?} is not where it should be:\n{text}") };
        rest = after;
    }
}

#[test]
fn a_message_and_its_report_over_two_relays() {
    let two = Two::after_one_message();
    let also = format!("cloud={}", two.tracking().display());
    let (status, text, errors) =
        two.trace(&["--to", "julie@CONTOSO.com", "--from", "erin@fabrikam.com", "--also", &also]);
    assert_eq!(status, Some(0), "{errors}");
    in_order(
        &text,
        &[
            "<one@fabrikam.com>\n",
            "from erin@fabrikam.com to Julie@contoso.com, nobody@contoso.com\n",
            "RECEIVE  2.0.0, on mail.contoso.com, by in, from 127.0.0.1",
            "RESOLVE  on mail.contoso.com, via out",
            "contoso.com is external-relay: by address space, no directory",
            "address space *: out",
            "RECEIVE  2.0.0, on cloud, by in",
            "SEND     2.0.0, on cloud, via out",
            "    report <",
            "from <> to erin@fabrikam.com",
            "SEND     2.0.0, on cloud, via out",
        ],
    );
    // The first relay hears of its success when the second is at work already.
    for (event, what) in [
        ("SEND     2.0.0, on mail.contoso.com, via out", "queued as"),
        ("FAIL     5.1.1, on cloud, via out", "to nobody@contoso.com"),
        ("FAIL     5.1.1, on cloud, via out", "no such mailbox"),
        ("DSN      on cloud", "failure report"),
    ] {
        in_order(&text, &[event, what, "    report <"]);
    }
    assert!(!text.contains("other@fabrikam.com"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100 || !line.trim().contains(' ')), "{text}");
    assert!(!text.contains('\u{1b}'), "colours in a pipe:\n{text}");

    let (status, text, _) = two.trace(&["--message-id", "one@fabrikam.com", "--json", "--also", &also]);
    assert_eq!(status, Some(0));
    let json: Value = serde_json::from_str(&text).unwrap();
    let message = &json["messages"][0];
    assert_eq!(json["messages"].as_array().unwrap().len(), 1);
    assert_eq!(message["ids"].as_array().unwrap().len(), 2, "a number on each relay: {text}");
    assert_eq!(message["reports"][0]["from"], "<>");
    let events: Vec<_> =
        message["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(events[0], "RECEIVE");
    assert!(events.contains(&"FAIL") && events.contains(&"DSN"), "{events:?}");

    // The number that the second relay gave the report leads to all of it.
    let report = message["reports"][0]["ids"][0]["id"].as_str().unwrap();
    let (status, text, _) = two.trace(&["--id", report, "--json", "--also", &also]);
    assert_eq!(status, Some(0));
    let ids: Vec<Value> = serde_json::from_str::<Value>(&text).unwrap()["messages"].as_array().unwrap().to_vec();
    assert!(ids.iter().any(|found| found["message_id"] == "<one@fabrikam.com>"), "{text}");
}

#[test]
fn filters_limits_and_what_is_not_there() {
    let two = Two::after_one_message();
    for (arguments, expected) in [
        (&["--since", "today"][..], "from other@fabrikam.com"),
        (&["--since", "1h", "--until", "now"], "<one@fabrikam.com>"),
        (&["--from", "OTHER@fabrikam.com"], "from other@fabrikam.com to julie@contoso.com"),
        (&["--since", "1h", "--limit", "1"], "1 more matches, with earlier events"),
    ] {
        let (status, text, errors) = two.trace(arguments);
        assert_eq!(status, Some(0), "{arguments:?}: {errors}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    for (arguments, status, expected) in [
        (&["--from", "nobody@fabrikam.com"][..], 1, "nothing found in mail.contoso.com"),
        (&["--until", "2020-01-01"], 1, "nothing found"),
        (&[], 2, "--from"),
        (&["--since", "soon"], 2, "expected a time such as 2h (ago)"),
        (&["--id", "xyz"], 2, "expected a number"),
        (&["--since", "1h", "--also", "/nowhere"], 2, "/nowhere"),
        (&["--since", "1h", "--limit", "0"], 2, "0"),
    ] {
        let (found, text, errors) = two.trace(arguments);
        assert_eq!(found, Some(status), "{arguments:?}: {text}{errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    let mut command = causeway();
    command.args(["-c", "/nowhere/causeway.toml", "trace", "--since", "1h"]);
    let output = run(&mut command, PATIENCE);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

/// Split at commas outside of quotes.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().unwrap().push(c),
        }
    }
    fields
}

#[test]
fn the_same_as_exchange_writes_it() {
    let two = Two::after_one_message();
    let also = format!("cloud={}", two.tracking().display());
    let arguments = ["--message-id", "<one@fabrikam.com>", "--format", "exchange", "--also", &also];
    let (status, text, errors) = two.trace(&arguments);
    assert_eq!(status, Some(0), "{errors}");
    let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
    for start in ["#Software: ", "#Version: ", "#Log-Type: Message Tracking Log", "#Date: 2", "#Fields: "] {
        let line = lines.next().unwrap();
        assert!(line.starts_with(start), "{line}");
    }
    let header = text.split("\r\n").nth(4).unwrap().strip_prefix("#Fields: ").unwrap();
    let names: Vec<&str> = header.split(',').collect();
    assert_eq!(names.len(), 30);
    assert_eq!(
        (names[0], names[8], names[12], names[29]),
        ("date-time", "event-id", "recipient-address", "schema-version")
    );
    let mut seen = Vec::new();
    for line in lines {
        let fields = fields(line);
        assert_eq!(fields.len(), 30, "{line}");
        let field = |name: &str| fields[names.iter().position(|one| *one == name).unwrap()].clone();
        seen.push(format!(
            "{} {} {} {}",
            field("source"),
            field("event-id"),
            field("recipient-address"),
            field("server-hostname")
        ));
        match field("event-id").as_str() {
            "RECEIVE" => {
                assert_eq!(field("client-ip"), "127.0.0.1", "{line}");
                assert_eq!(field("directionality"), "Incoming", "{line}");
                assert_eq!(field("recipient-count"), "2", "{line}");
                assert_eq!(field("message-id"), "<one@fabrikam.com>", "{line}");
                assert!(field("total-bytes").parse::<u64>().unwrap() > 50, "{line}");
            }
            "FAIL" => assert!(field("recipient-status").contains("no such mailbox"), "{line}"),
            "DSN" => assert_eq!(field("reference"), "<one@fabrikam.com>", "{line}"),
            "RESOLVE" => assert!(field("custom-data").starts_with("S:Because="), "{line}"),
            _ => {}
        }
    }
    assert!(
        seen.contains(&"SMTP RECEIVE Julie@contoso.com;nobody@contoso.com mail.contoso.com".to_owned()),
        "{seen:#?}"
    );
    assert!(seen.iter().any(|one| one.starts_with("SMTP FAIL nobody@contoso.com")), "{seen:#?}");
    assert!(seen.iter().any(|one| one.starts_with("DSN DSN erin@fabrikam.com")), "{seen:#?}");
}
