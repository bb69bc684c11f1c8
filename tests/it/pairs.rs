//! Our sending session against our receiving session: no sockets, no clock, bytes cut as chance will have it.
//!
//! Whatever the message, the extensions and the cuts: what one side sends is what the other side keeps, every recipient
//! gets the answer that was meant for it, and when one side falls silent the other ends at its own deadline.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway::message::{Address, BodyType, Domain, Envelope, MessageId, Notify, Recipient, Ret};
use causeway::smtp::Reply;
use causeway::smtp::client::{self, Delivery, Fault, Mail, Payload, StartTls, Stuffer};
use causeway::smtp::server::{Answer, Question, Session, Step, Terms};
use proptest::prelude::*;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn recipient(text: &str) -> Recipient {
    Recipient { address: address(text), notify: Notify::default(), orcpt: None }
}

fn envelope(sender: Option<&str>) -> Envelope {
    Envelope {
        sender: sender.map(address),
        recipients: Vec::new(),
        ret: Some(Ret::Headers),
        envid: Some("a+b=c".into()),
        body: BodyType::EightBit,
        smtputf8: false,
        requiretls: false,
    }
}

/// The receiving side, with what it was told and what it kept.
struct Receiver {
    session: Session,
    now: Instant,
    kept: Vec<u8>,
    messages: Vec<(Envelope, Vec<u8>)>,
    /// Bytes on their way to it.
    inbox: VecDeque<u8>,
    /// Bytes on their way back.
    outbox: VecDeque<u8>,
    closed: bool,
}

impl Receiver {
    fn new(now: Instant) -> Self {
        let terms = Terms {
            hostname: Domain::parse("mail.contoso.com").unwrap(),
            offer_starttls: false,
            require_tls: false,
            offer_auth: false,
            require_auth: false,
            max_message_size: Some(1 << 20),
            max_recipients: 5,
            max_errors: 10,
            strict: false,
            xoorg: false,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
        };
        Self {
            session: Session::new(terms, false, now),
            now,
            kept: Vec::new(),
            messages: Vec::new(),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            closed: false,
        }
    }

    /// Runs until it wants to read and there is nothing; reads `cut` bytes at a time. Gives its deadline.
    fn run(&mut self, cut: usize) -> Option<Instant> {
        loop {
            match self.session.step(self.now) {
                Step::Send(bytes) => self.outbox.extend(bytes),
                Step::Receive { until } if self.inbox.is_empty() => return Some(until),
                Step::Receive { .. } => {
                    let count = cut.min(self.inbox.len());
                    let piece: Vec<u8> = self.inbox.drain(..count).collect();
                    self.session.unread().extend_from_slice(&piece);
                }
                Step::Keep(piece) => self.kept.extend_from_slice(&piece),
                Step::Discard => self.kept.clear(),
                Step::Ask(question) => {
                    let answer = self.judge(question);
                    self.session.answer(answer);
                }
                Step::StartTls => panic!("nobody asked for TLS"),
                Step::Close => {
                    self.closed = true;
                    return None;
                }
            }
        }
    }

    fn judge(&mut self, question: Question) -> Answer {
        match question {
            Question::Login(_) => panic!("AUTH was not offered"),
            Question::Sender { .. } => Answer::Go,
            Question::Recipient(recipient) if recipient.address.local().starts_with("nobody") => {
                Answer::Refuse(Reply::unknown_recipient(&recipient.address))
            }
            Question::Recipient(recipient) if recipient.address.local().starts_with("later") => {
                Answer::Refuse(Reply::directory_unavailable())
            }
            Question::Recipient(_) => Answer::Go,
            Question::Message { envelope, .. } => {
                self.messages.push((envelope, std::mem::take(&mut self.kept)));
                Answer::Done(Reply::accepted(MessageId(self.messages.len() as u64)))
            }
        }
    }
}

struct World {
    now: Instant,
    client: client::Session,
    receiver: Receiver,
    /// What reaches the receiver ends after so many bytes: then there is silence.
    silence_after: Option<usize>,
    cuts: Vec<usize>,
    turn: usize,
}

impl World {
    fn new(cuts: Vec<usize>) -> Self {
        let now = Instant::now();
        let terms = client::Terms {
            helo: "sender.example".to_owned(),
            starttls: StartTls::Never,
            extended: true,
            login: None,
            own_name: None,
        };
        Self {
            now,
            client: client::Session::new(terms),
            receiver: Receiver::new(now),
            silence_after: None,
            cuts,
            turn: 0,
        }
    }

    fn cut(&mut self) -> usize {
        self.turn += 1;
        self.cuts[self.turn % self.cuts.len()].max(1)
    }

    fn say(&mut self, bytes: &[u8]) {
        let bytes = match &mut self.silence_after {
            Some(left) => {
                let heard = bytes.len().min(*left);
                *left -= heard;
                &bytes[..heard]
            }
            None => bytes,
        };
        self.receiver.inbox.extend(bytes);
    }

    /// What the client may read next; empty if the receiver has nothing more to say.
    fn hear(&mut self) -> Vec<u8> {
        if self.receiver.outbox.is_empty() {
            let cut = self.cut();
            self.receiver.run(cut);
        }
        let cut = self.cut().min(self.receiver.outbox.len());
        self.receiver.outbox.drain(..cut).collect()
    }

    /// Greeting and EHLO.
    fn open(&mut self) {
        loop {
            match self.client.step(self.now) {
                client::Step::Send(bytes, _) => {
                    self.say(&bytes);
                    self.client.sent();
                }
                client::Step::Receive { until } => {
                    let heard = self.hear();
                    if heard.is_empty() {
                        self.now = until;
                        self.client.expired();
                    }
                    self.client.unread().extend_from_slice(&heard);
                }
                client::Step::StartTls => panic!("nobody offered TLS"),
                client::Step::Done => return,
            }
        }
    }

    /// One message; gives what became of each recipient, in words.
    fn deliver(&mut self, envelope: &Envelope, to: &[Recipient], content: &[u8], chunking: bool) -> Vec<String> {
        let mail = Mail {
            envelope,
            recipients: to.iter().enumerate().map(|(index, one)| (index as u16, one)).collect(),
            size: content.len() as u64,
            ends_in_crlf: content.is_empty() || content.ends_with(b"\r\n"),
            eight_bit: !content.is_ascii(),
            xoorg: None,
            utf8_header: false,
            max_recipients: 100,
            chunking,
        };
        let mut session = std::mem::replace(
            &mut self.client,
            client::Session::new(client::Terms {
                helo: String::new(),
                starttls: StartTls::Never,
                extended: true,
                login: None,
                own_name: None,
            }),
        );
        let mut delivery = Delivery::new(&mut session, mail);
        loop {
            match delivery.step(self.now) {
                client::Step::Send(bytes, payload) => {
                    let mut out = bytes.to_vec();
                    match payload {
                        Some(Payload::Chunk { add_crlf }) => {
                            out.extend_from_slice(content);
                            out.extend_from_slice(if add_crlf { b"\r\n" } else { b"" });
                        }
                        Some(Payload::Stuffed) => stuff(content, self.cut(), &mut out),
                        None => {}
                    }
                    self.say(&out);
                    delivery.sent();
                }
                client::Step::Receive { until } => {
                    let heard = self.hear();
                    if heard.is_empty() {
                        self.now = until;
                        delivery.session().expired();
                    }
                    delivery.session().unread().extend_from_slice(&heard);
                }
                client::Step::StartTls => panic!("TLS inside a message"),
                client::Step::Done => break,
            }
        }
        let mut settled = delivery.into_settled();
        settled.sort_by_key(|(index, _)| *index);
        self.client = session;
        settled
            .into_iter()
            .map(|(index, result)| match result {
                Ok(reply) => format!("{} {}", to[usize::from(index)].address, reply.code),
                Err(Fault::Answered { reply, .. }) => format!("{} {reply}", to[usize::from(index)].address),
                Err(fault) => format!("{} {fault:?}", to[usize::from(index)].address),
            })
            .collect()
    }
}

fn stuff(content: &[u8], cut: usize, out: &mut Vec<u8>) {
    let mut stuffer = Stuffer::default();
    for piece in content.chunks(cut) {
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        stuffer.cut(piece, &mut slices);
        slices.iter().for_each(|slice| out.extend_from_slice(slice));
    }
    out.extend_from_slice(stuffer.end());
}

/// Lines of a message: dots in front, empty lines, bytes above 127, nothing that SMTP forbids.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(b".".to_vec()),
        Just(b"..".to_vec()),
        Just(Vec::new()),
        proptest::collection::vec(prop_oneof![Just(b'.'), 0x20u8..=0x7e, 0x80u8..=0xff], 0..200),
    ];
    proptest::collection::vec(line, 0..40).prop_map(|lines| {
        lines.into_iter().fold(Vec::new(), |mut all, line| {
            all.extend_from_slice(&line);
            all.extend_from_slice(b"\r\n");
            all
        })
    })
}

proptest! {
    /// P5, C091, C112: one message after another on one connection, by DATA or BDAT, cut anywhere.
    #[test]
    fn what_is_sent_is_what_is_kept(
        contents in proptest::collection::vec((content(), any::<bool>()), 1..4),
        cuts in proptest::collection::vec(1usize..300, 1..8),
    ) {
        let mut world = World::new(cuts);
        world.open();
        let to = [recipient("anna@contoso.com"), recipient("\"a b\"@contoso.com")];
        for (content, chunking) in &contents {
            let sent = world.deliver(&envelope(Some("erin@fabrikam.com")), &to, content, *chunking);
            prop_assert_eq!(sent, ["anna@contoso.com 250", "\"a b\"@contoso.com 250"]);
        }
        prop_assert_eq!(world.receiver.messages.len(), contents.len());
        for ((envelope, kept), (content, _)) in world.receiver.messages.iter().zip(&contents) {
            prop_assert_eq!(Bytes::copy_from_slice(kept), Bytes::copy_from_slice(content));
            prop_assert_eq!(&envelope.sender, &Some(address("erin@fabrikam.com")));
            prop_assert_eq!(envelope.envid.as_deref(), Some("a+b=c"));
            prop_assert_eq!(envelope.ret, Some(Ret::Headers));
            let got: Vec<_> = envelope.recipients.iter().map(|one| one.address.clone()).collect();
            prop_assert_eq!(got, to.iter().map(|one| one.address.clone()).collect::<Vec<_>>());
        }
    }

    /// C267, C273: each recipient gets its own answer, and those beyond the server's limit a second transaction.
    #[test]
    fn every_recipient_gets_the_answer_that_was_meant_for_it(
        kinds in proptest::collection::vec(0usize..3, 1..12),
        chunking in any::<bool>(),
        cuts in proptest::collection::vec(1usize..100, 1..6),
    ) {
        let names = ["anna", "nobody", "later"];
        let to: Vec<Recipient> =
            kinds.iter().enumerate().map(|(n, kind)| recipient(&format!("{}{n}@contoso.com", names[*kind]))).collect();
        let mut world = World::new(cuts);
        world.open();
        let settled = world.deliver(&envelope(None), &to, b"Subject: x\r\n\r\nHello\r\n", chunking);
        prop_assert_eq!(settled.len(), to.len());
        let mut arrived: Vec<Address> = world
            .receiver
            .messages
            .iter()
            .flat_map(|(envelope, _)| envelope.recipients.iter().map(|one| one.address.clone()))
            .collect();
        arrived.sort_by_key(Address::key);
        let mut expected: Vec<Address> = Vec::new();
        for ((line, kind), one) in settled.iter().zip(&kinds).zip(&to) {
            match kind {
                0 if line.ends_with(" 250") => expected.push(one.address.clone()),
                // A refusal of all the others may end the session at its limit of errors: then it waits.
                0 => prop_assert!(line.contains("421") || line.contains("452"), "{line}"),
                1 => prop_assert!(line.contains("550 5.1.1") || line.contains("421"), "{line}"),
                _ => prop_assert!(line.contains("451 4.4.3") || line.contains("421"), "{line}"),
            }
        }
        expected.sort_by_key(Address::key);
        prop_assert_eq!(arrived, expected);
    }

    /// F-030: wherever the line goes dead, the client gives up at a deadline, in virtual time, and nothing half sent is
    /// kept for whole.
    #[test]
    fn silence_ends_at_a_deadline_and_nothing_is_half_kept(after in 0usize..700, chunking in any::<bool>()) {
        let mut world = World::new(vec![50]);
        world.silence_after = Some(after);
        let began = world.now;
        world.open();
        let body = b"Subject: x\r\n\r\nHello\r\n".repeat(20);
        let to = [recipient("anna@contoso.com")];
        let settled = world.deliver(&envelope(Some("erin@fabrikam.com")), &to, &body, chunking);
        prop_assert_eq!(settled.len(), 1);
        prop_assert!(world.now - began <= Duration::from_secs(4 * 600), "it waited {:?}", world.now - began);
        // The receiver ends too, at its own deadline, and says so.
        while let Some(until) = world.receiver.run(64) {
            world.receiver.now = until;
            world.receiver.session.expired();
        }
        prop_assert!(world.receiver.closed);
        for (_, kept) in &world.receiver.messages {
            prop_assert_eq!(kept, &body);
        }
        let taken = settled[0].ends_with(" 250");
        prop_assert!(!taken || world.receiver.messages.len() == 1, "a 250 for what was not kept: {settled:?}");
    }
}
