//! Mail libraries as clients, as programs use them: nodemailer (Node.js) and JavaMail, from Debian's packages. What they say by
//! default is what most devices and applications of a company say.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Daemon, PATIENCE, Scratch, Sink, out, relay, run, said};

/// Where the program or library of a package is, or a failure that says what to do.
fn installed(path: &str) -> &Path {
    assert!(Path::new(path).exists(), "{path} is missing: run scripts/test");
    Path::new(path)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

/// A relay that offers TLS, and the hop behind it.
fn site() -> (Scratch, Daemon, Sink) {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let authority = scratch.authority();
    scratch.issue(&authority, "relay", &["mail.contoso.com"]);
    let config = relay(&format!(
        "[[receive_connector]]\nname = \"in\"\nlisten = [\"127.0.0.1:0\"]\norigin = \"client\"\ntls = \"offer\"\n\
         certificate = \"relay.crt\"\nkey = \"relay.key\"\n\n{}",
        out(sink.address)
    ));
    let daemon = Daemon::spawn(scratch.path(), &config);
    (scratch, daemon, sink)
}

/// All that the client sent has arrived, in whatever order, for those whom it named.
fn arrived(sink: &Sink, expected: &[(&str, &[&str])]) {
    let arrivals = sink.wait_for(expected.len());
    for (words, to) in expected {
        let with_words: Vec<_> = arrivals.iter().filter(|arrival| arrival.text().contains(words)).collect();
        let [arrival] = with_words[..] else { panic!("{words} is in {} messages", with_words.len()) };
        let text = arrival.text();
        assert_eq!(arrival.to, *to, "{text}");
        let hello = text.split_once("Received: from ").unwrap().1.split_once("\r\n").unwrap().0;
        assert!(hello.is_ascii(), "{hello}");
    }
    assert_eq!(arrivals.len(), expected.len());
}

#[test]
fn nodemailer_sends_through_the_relay() {
    let (scratch, daemon, sink) = site();
    let library = installed("/usr/share/nodejs/nodemailer");
    let output = run(
        Command::new("node")
            .arg(script("nodemailer.js"))
            .arg(daemon.address().port().to_string())
            .arg(scratch.file("ca.pem"))
            .env("NODEMAILER", library),
        PATIENCE,
    );
    assert!(output.status.success(), "{}\n{}", said(&output), daemon.log_text());
    arrived(
        &sink,
        &[
            ("Subject: plain\r\n", &["julie@contoso.com"]),
            ("Subject: =?UTF-8?", &["julie@contoso.com"]),
            ("Subject: attachment\r\n", &["julie@contoso.com"]),
            ("Subject: report\r\n", &["julie@contoso.com"]),
            ("Subject: addresses\r\n", &["julie@contoso.com", "david@contoso.com"]),
            ("Subject: international\r\n", &["jülie@contoso.com"]),
            ("Subject: no sender\r\n", &["julie@contoso.com"]),
        ],
    );
    assert!(sink.arrivals().iter().any(|arrival| arrival.text().contains("\r\n.\r\n..dots\r\n")));
}

#[test]
fn javamail_sends_through_the_relay() {
    let (_scratch, daemon, sink) = site();
    let libraries = ["/usr/share/java/javax.mail.jar", "/usr/share/java/javax.activation.jar"];
    let libraries = libraries.map(|path| installed(path).to_str().unwrap().to_owned()).join(":");
    let output = run(
        Command::new("java")
            .args(["-cp", &libraries, "-Dfile.encoding=UTF-8"])
            .arg(script("JavaMail.java"))
            .arg(daemon.address().port().to_string()),
        PATIENCE,
    );
    assert!(output.status.success(), "{}\n{}", said(&output), daemon.log_text());
    arrived(
        &sink,
        &[
            ("Subject: plain\r\n", &["julie@contoso.com"]),
            ("\r\nGrüße\r\n", &["julie@contoso.com", "david@contoso.com"]),
            ("Subject: international\r\n", &["jülie@contoso.com"]),
        ],
    );
}
