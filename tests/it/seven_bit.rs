//! A next hop that takes 7 bits: no 8BITMIME, no SMTPUTF8.

use crate::common::{Client, Daemon, IN, Scratch, Sink, SinkPlan, out, relay};

fn old_server() -> Sink {
    Sink::with(SinkPlan { keywords: vec!["PIPELINING", "SIZE 100000000"], ..SinkPlan::new() })
}

/// A large message lies in a file of its own in the spool; it is converted as it is read.
#[test]
fn eight_bit_mail_arrives_in_quoted_printable() {
    let (scratch, sink) = (Scratch::new(), old_server());
    let text = relay(&format!("{IN}tls = \"off\"\n\n{}", out(sink.address)));
    let daemon = Daemon::spawn(scratch.path(), &text);
    let header = "Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\nContent-Transfer-Encoding: 8bit\r\n\r\n";
    let part = |encoding: &str| {
        format!("--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n")
    };
    for lines in [1, 100_000] {
        let message = format!("{header}{}{}--b--\r\n", part("8bit"), "gr\u{fc}n\r\n".repeat(lines));
        let reply =
            Client::hello(daemon.address()).deliver("erin@fabrikam.com", &["julie@contoso.com"], message.as_bytes());
        assert!(reply.as_ref().is_ok_and(|reply| reply.starts_with("250")), "{reply:?}");
        let arrival = sink.wait_for(if lines == 1 { 1 } else { 2 }).pop().unwrap();
        let header = header.replace("8bit", "7bit");
        let expected = format!("{header}{}{}--b--\r\n", part("quoted-printable"), "gr=C3=BCn\r\n".repeat(lines));
        assert!(arrival.content.ends_with(expected.as_bytes()), "{lines}: {}", daemon.log_text());
        assert!(arrival.content.is_ascii() && !arrival.mail.contains("BODY="), "{}", arrival.mail);
    }
}

/// What demands SMTPUTF8 is returned, and the report goes back the same way.
#[test]
fn the_report_of_an_internationalized_message_leaves() {
    let (scratch, sink) = (Scratch::new(), old_server());
    let text = relay(&format!("{IN}tls = \"off\"\n\n{}", out(sink.address)));
    let daemon = Daemon::spawn(scratch.path(), &text);
    for (number, to) in ["d\u{e4}vid@contoso.com", "david@contoso.com"].into_iter().enumerate() {
        let mut client = Client::hello(daemon.address());
        for line in ["MAIL FROM:<erin@fabrikam.com> SMTPUTF8 BODY=8BITMIME", &format!("RCPT TO:<{to}>")] {
            let reply = client.say(line);
            assert!(reply.starts_with("250 "), "{line}: {reply}");
        }
        assert!(client.say("DATA").starts_with("354"));
        client.send("Subject: gr\u{fc}n\r\n\r\nGr\u{fc}\u{df}e\r\n.\r\n".as_bytes()).unwrap();
        assert!(client.reply().unwrap().starts_with("250 "));
        let report = sink.wait_for(number + 1).pop().unwrap();
        assert_eq!((report.from.as_str(), report.to.as_slice()), ("", &["erin@fabrikam.com".to_owned()][..]));
        assert!(report.content.is_ascii() && report.mail.starts_with("MAIL FROM:<> SIZE="), "{}", report.text());
        let expected =
            if number == 0 { "Final-Recipient: utf-8; d\\x{E4}vid@contoso.com" } else { "rfc822; david@contoso.com" };
        for part in [expected, "Status: 5.6.7", "message/global", "Subject: gr=C3=BCn", "Gr=C3=BC=C3=9Fe"] {
            assert!(report.text().contains(part), "{part}: {}", report.text());
        }
    }
}
