//! Answers a session's questions: who the peer is here, the rest by asking `relay`.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::attribute::{Attribution, attribute};
use super::drive::Reception;
use super::limits::Slot;
use super::logins::{self, Logins};
use super::{Addresses, Door, terms};
use crate::clock;
use crate::config::Origin;
use crate::directory::untagged;
use crate::message::{Domain, Envelope, Recipient};
use crate::random::HashSet;
use crate::relay::{Asked, PUT_LIMIT, Peer, ROUTED_LIMIT, Relay, Snapshot, Submission};
use crate::route::{Reason, Routed, Verdict, trust};
use crate::smtp::auth::Credentials;
use crate::smtp::server::{Answer, Question, Terms};
use crate::smtp::{Reply, Status};
use crate::spool::Draft;
use crate::tls::{ClientCertificate, Stream};

/// After the expansion of so many it is others' turn: a pipeline of RCPTs would otherwise hold a core for seconds.
const LARGE_GROUP: usize = 100;

/// So many recipients whom nobody knows a stranger may name in one session; each further one is answered this much later,
/// as long as most are unknown: an old list is no search. Who is known is answered at once. S-114.
const UNKNOWN: usize = 5;
const TARPIT: Duration = Duration::from_secs(2);

/// The recipients of one message are answered at most this much later altogether. Then each further one, known or not, is to
/// come in another message: a client that allows a transaction some minutes does not run out of them, and a search gets no
/// faster.
const TARPIT_LIMIT: Duration = Duration::from_secs(30);

/// So many known ones are told apart: a longer list with more unknown ones than this is slowed at its end.
const KNOWN: usize = 500;

/// One connection's view of the relay.
pub(super) struct RelayReception {
    relay: Relay,
    snapshot: Arc<Snapshot>,
    door: Arc<Door>,
    /// The other end of the connection, a proxy perhaps: it chooses the connector.
    peer: IpAddr,
    /// Where the client is, for everything else.
    client_ip: IpAddr,
    attribution: Attribution,
    /// What the message under way is held to be, so far.
    verdict: Arc<Verdict>,
    tls: Option<String>,
    /// What the client presented in the handshake.
    client: Option<ClientCertificate>,
    /// Who logged in.
    user: Option<Box<str>>,
    /// What MAIL said: sender and parameters, and the declared size.
    mail: Option<(Envelope, Option<u64>)>,
    routed: Vec<Routed>,
    /// A recipient was one too many: the reply to each further one of this message, none of which is looked at.
    full: Option<Reply>,
    /// How much later than they could be the recipients of this message were answered.
    slowed: Duration,
    /// The mailboxes that a stranger named in this session, as hashes, and how many times he named one that nobody knows.
    known: HashSet<u64>,
    unknown: usize,
    draft: Option<Draft>,
    /// Why the draft could not be kept; the message is refused at its end.
    failed: Option<io::Error>,
    slot: Slot,
    logins: Logins,
}

impl RelayReception {
    pub(super) fn new(
        relay: Relay,
        snapshot: Arc<Snapshot>,
        door: Arc<Door>,
        from: Addresses,
        attribution: Attribution,
        (tls, client): (Option<String>, Option<ClientCertificate>),
        (slot, logins): (Slot, Logins),
    ) -> Self {
        Self {
            relay,
            snapshot,
            door,
            peer: from.peer,
            client_ip: from.client,
            verdict: Arc::clone(&attribution.verdict),
            attribution,
            tls,
            client,
            user: None,
            mail: None,
            routed: Vec::new(),
            full: None,
            slowed: Duration::ZERO,
            known: HashSet::default(),
            unknown: 0,
            draft: None,
            failed: None,
            slot,
            logins,
        }
    }

    /// Whose connection it is held to be.
    pub(super) fn connector(&self) -> &str {
        &self.attribution.connector.name.0
    }

    fn sender(&mut self, envelope: Envelope, size: Option<u64>, xoorg: Option<Domain>) -> Answer {
        self.routed = Vec::new();
        self.discard();
        self.full = None;
        self.slowed = Duration::ZERO;
        if let Err(reply) = self.keep_up() {
            return Answer::Refuse(reply);
        }
        if self.is_withdrawn() {
            return Answer::Refuse(Reply::login_withdrawn());
        }
        // The session has seen to these by the terms it began with; the configuration may demand more by now.
        if self.attribution.require_tls && self.tls.is_none() {
            return Answer::Refuse(Reply::tls_required());
        }
        if self.attribution.connector.require_auth && self.user.is_none() {
            return Answer::Refuse(Reply::login_required());
        }
        let connector = &self.attribution.connector;
        self.verdict = match xoorg {
            // What MAIL says counts; the header is asked only where it says nothing.
            Some(organization) if !connector.originator_org.is_empty() => {
                let clause = trust::originator(&connector.originator_org, [Ok(organization)]);
                Arc::new(self.attribution.verdict.with_originator(clause))
            }
            _ => Arc::clone(&self.attribution.verdict),
        };
        match self.check_sender(&envelope, size) {
            Ok(()) => {
                self.mail = Some((envelope, size));
                Answer::Go
            }
            Err(reply) => {
                if reply.is_permanent() {
                    self.relay.track_refused_sender(&envelope, self.client_ip, &self.verdict, &reply);
                } else {
                    self.relay.meter().refuse(reply.status_or_class());
                }
                Answer::Refuse(reply)
            }
        }
    }

    fn check_sender(&self, envelope: &Envelope, size: Option<u64>) -> Result<(), Reply> {
        if let Some(clause) = &self.attribution.unproven {
            info!(peer = %self.client_ip, "MAIL FROM refused: {clause}");
            return Err(Reply::certificate_refused(clause));
        }
        self.relay.check_sender(&self.snapshot, &self.attribution.connector, envelope, size)?;
        if self.verdict.is_stranger() { self.relay.check_stranger(&self.snapshot, envelope) } else { Ok(()) }
    }

    async fn recipient(&mut self, recipient: Recipient) -> Answer {
        if let Some(reply) = &self.full {
            return Answer::Refuse(reply.clone());
        }
        let asked = Asked {
            connector: &self.attribution.connector,
            peer: self.client_ip,
            mail: self.mail.as_ref(),
            routed: self.routed.len(),
            verdict: &self.verdict,
        };
        match self.relay.check_recipient(&self.snapshot, &asked, recipient) {
            Ok(mut routed) => {
                let large = routed.len() > LARGE_GROUP;
                self.note_known(&routed);
                self.routed.append(&mut routed);
                if large {
                    yield_now().await;
                }
                Answer::Go
            }
            Err(reply) => {
                // To expand a large group takes milliseconds, which a client could ask for with every line.
                self.full = (reply.code == 452).then(|| Reply::too_many_recipients(ROUTED_LIMIT));
                self.tarpit(&reply).await;
                yield_now().await;
                Answer::Refuse(reply)
            }
        }
    }

    fn is_stranger(&self) -> bool {
        matches!(self.verdict.origin, Origin::Internet | Origin::Partner) && self.user.is_none()
    }

    /// Who knows many of ours has a list of them. One mailbox counts once, whatever its tags and other names, and only if it
    /// is one: `postmaster` is everywhere, and of a domain that takes everybody any name is good.
    fn note_known(&mut self, routed: &[Routed]) {
        let Some(first) = routed.first().filter(|_| self.is_stranger() && self.known.len() < KNOWN) else { return };
        let is_found = |reason: &Reason| matches!(reason, Reason::Found { .. } | Reason::FoundBehind { .. });
        if first.asked.local().eq_ignore_ascii_case("postmaster") || !first.route.because.iter().any(is_found) {
            return;
        }
        let key = first.route.to.key();
        let (local, domain) = key.rsplit_once('@').unwrap_or((&key, ""));
        let mut hasher = DefaultHasher::new();
        (untagged(local).unwrap_or(local), domain).hash(&mut hasher);
        self.known.insert(hasher.finish());
    }

    /// Who asks for one unknown recipient after another is looking for those there are: it waits. The driver has sent the
    /// replies to what was asked before.
    async fn tarpit(&mut self, reply: &Reply) {
        if !self.is_stranger() || reply.status != Some(Status(5, 1, 1)) {
            return;
        }
        self.unknown += 1;
        if self.unknown > UNKNOWN.max(self.known.len()) {
            // Nobody but this session waits.
            sleep(TARPIT).await;
            self.slowed += TARPIT;
            if self.slowed >= TARPIT_LIMIT {
                self.full = Some(Reply::too_many_unknown_recipients());
            }
        }
    }

    /// Is this the user's password?
    async fn login(&mut self, credentials: Credentials) -> Answer {
        if let Err(reply) = self.keep_up() {
            return Answer::Refuse(reply);
        }
        let file = self.attribution.connector.users_file.as_deref();
        let Some(users) = file.and_then(|file| self.snapshot.users.of(file)).map(Arc::clone) else {
            return Answer::Refuse(Reply::login_unavailable());
        };
        let name: Box<str> = credentials.username.as_str().into();
        let known = users.knows(&name);
        match self.logins.judge(self.client_ip, users, credentials).await {
            logins::Verdict::Welcome => {
                info!(peer = %self.client_ip, connector = %self.attribution.connector.name, user = %name, "logged in");
                self.user = Some(name);
                Answer::Go
            }
            logins::Verdict::Wrong { delay } => {
                // After some of them no password from there is looked at, so no client fills the log.
                let (peer, connector) = (self.client_ip, &self.attribution.connector.name);
                if known {
                    warn!(%peer, %connector, user = %name, "a login failed: that is not the password of this user");
                } else {
                    // The name may be a password that was typed into the wrong field.
                    warn!(%peer, %connector, "a login failed: there is no user of that name");
                }
                self.relay.meter().login_failed();
                // Nobody but this session waits.
                sleep(delay).await;
                Answer::Refuse(Reply::login_refused())
            }
            logins::Verdict::Locked => {
                self.relay.meter().login_failed();
                Answer::Refuse(Reply::login_locked())
            }
            logins::Verdict::Busy => Answer::Refuse(Reply::login_unavailable()),
        }
    }

    /// The user who logged in has been taken out of the file since.
    fn is_withdrawn(&self) -> bool {
        let Some(user) = &self.user else { return false };
        let file = self.attribution.connector.users_file.as_deref();
        !file.and_then(|file| self.snapshot.users.of(file)).is_some_and(|users| users.knows(user))
    }

    /// A connection may live for days. Each of its messages is judged by the configuration and the directory of its
    /// moment.
    ///
    /// # Errors
    /// It would be given to another connector now, or to none. What its client was promised at EHLO may be taken back
    /// with that, and what it may do must be: so it is to come again, and is judged as everybody who comes (S-036).
    fn keep_up(&mut self) -> Result<(), Reply> {
        let current = self.relay.snapshot();
        if !Arc::ptr_eq(&current.config, &self.snapshot.config) {
            let connectors = &current.config.receive_connectors;
            let (secure, client) = (self.tls.is_some(), self.client.as_ref());
            match attribute(connectors, self.door.listen, self.peer, secure, client, clock::wall()) {
                Some(found) if found.connector.name == self.attribution.connector.name => self.attribution = found,
                _ => {
                    let connector = &self.attribution.connector.name;
                    info!(peer = %self.client_ip, %connector, "by the new configuration the connection is another's: it is to come again");
                    return Err(Reply::configuration_changed());
                }
            }
        }
        self.snapshot = current;
        Ok(())
    }

    async fn message(&mut self, envelope: Envelope, hello: String, extended: bool) -> Answer {
        let routed = std::mem::take(&mut self.routed);
        if let Some(error) = self.failed.take() {
            self.discard();
            return Answer::Done(self.relay.draft_failed(&error));
        }
        let draft = self.draft.take().unwrap_or_else(|| self.relay.draft());
        let submission = Submission {
            envelope,
            routed,
            draft,
            connector: Arc::clone(&self.attribution.connector),
            peer: Peer { ip: self.client_ip, hello, extended, tls: self.tls.clone(), user: self.user.clone() },
            verdict: Arc::clone(&self.verdict),
        };
        // In memory of its own while it lasts: every idle connection would have room for it otherwise.
        Answer::Done(Box::pin(self.relay.take(&self.snapshot, submission)).await)
    }
}

impl Reception for RelayReception {
    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Login(credentials) => self.login(credentials).await,
            Question::Sender { envelope, size, xoorg } => self.sender(envelope, size, xoorg),
            Question::Recipient(recipient) => self.recipient(recipient).await,
            Question::Message { envelope, hello, extended } => self.message(envelope, hello, extended).await,
        }
    }

    async fn keep(&mut self, piece: Bytes) {
        if self.failed.is_some() {
            return;
        }
        let draft = self.draft.get_or_insert_with(|| self.relay.draft());
        // A disk that does not answer holds nobody longer than one that does not answer in the end.
        let pushed = timeout(PUT_LIMIT, draft.push(piece)).await;
        if let Err(error) = pushed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            self.failed = Some(error);
            self.draft = None;
        }
    }

    fn discard(&mut self) {
        self.draft = None;
        self.failed = None;
    }

    async fn start_tls(&mut self, stream: Stream) -> io::Result<(Stream, Terms)> {
        // RFC 3207 section 4.2: nothing that was said before counts any more.
        self.user = None;
        self.routed.clear();
        self.discard();
        let acceptor = self.door.acceptor(&self.attribution.connector)?;
        let deadline = Instant::now() + self.attribution.connector.tls_handshake_timeout;
        let accepted = match stream {
            // In memory of its own while it lasts, as above.
            Stream::Plain(socket) => Box::pin(acceptor.accept(socket, deadline)).await?,
            _ => return Err(io::Error::other("STARTTLS inside TLS")),
        };
        let config = &self.snapshot.config;
        let attribution = attribute(
            &config.receive_connectors,
            self.door.listen,
            self.peer,
            true,
            accepted.client.as_ref(),
            clock::wall(),
        )
        .ok_or_else(|| io::Error::other("no receive connector takes this address any more"))?;
        debug!(peer = %self.client_ip, connector = %attribution.connector.name, proof = ?attribution.proof, "TLS");
        attribution.tell(self.client_ip, accepted.client.as_ref());
        self.slot.move_to(&attribution.connector);
        self.verdict = Arc::clone(&attribution.verdict);
        self.attribution = attribution;
        self.tls = Some(accepted.protocol);
        self.client = accepted.client;
        Ok((accepted.stream, terms(&self.snapshot.config, &self.attribution, true)))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;
    use tokio::time::timeout_at;

    use super::*;
    use crate::accept::limits::Limits;
    use crate::accept::{ConnectionLimits, serve, serve_simulated};
    use crate::config;
    use crate::deliver::Deliverer;
    use crate::directory::Directory;
    use crate::dns::Resolver;
    use crate::message::{Address, BodyType, Notify, visit};
    use crate::outcome::tracking::Tracker;
    use crate::spool::model::{Model, ModelDisk};
    use crate::spool::{Options, Settings, Spool};
    use crate::tls::Authority;
    use crate::tls::wire::{self, Weather};

    const CONFIGURATION: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "/spool"
[[accepted_domain]]
name = "contoso.com"
type = "authoritative"
[[directory]]
kind = "file"
path = "recipients.csv"
[[receive_connector]]
name = "internet"
listen = ["127.0.0.1:25"]
origin = "internet"
tls = "off"
[[receive_connector]]
name = "own"
listen = ["127.0.0.1:25"]
remote_ips = ["192.0.2.0/24"]
origin = "on-premises"
tls = "off"
[[send_connector]]
name = "out"
address_spaces = ["*"]
smart_hosts = ["127.0.0.1:1"]
tls = "off"
"#;

    fn snapshot(folder: &Path, text: &str) -> Snapshot {
        let config = Arc::new(config::parse(text, &folder.join("causeway.toml")).unwrap());
        let (directory, _) = Directory::load(&config.directories);
        let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]).unwrap();
        let deliverer = Deliverer::new(Arc::clone(&config), resolver, Vec::new());
        let visits = Arc::new(visit::Key::new(&[7; visit::KEY_LEN]));
        Snapshot {
            config,
            directory: Arc::new(directory),
            users: Arc::default(),
            deliverer: Arc::new(deliverer),
            visits,
        }
    }

    /// A connection of 192.0.2.1, which is of the connector "own".
    fn connection(folder: &Path) -> (RelayReception, Relay) {
        connection_by(folder, CONFIGURATION)
    }

    fn connection_by(folder: &Path, text: &str) -> (RelayReception, Relay) {
        let settings = Settings { path: "/spool".into(), min_free_space: 0 };
        let disk = Arc::new(ModelDisk(Model::new(1)));
        let (spool, recovery) = Spool::open_on(disk, settings, Options::default()).unwrap();
        let _ = recovery.run();
        let relay = Relay::new(snapshot(folder, text), spool, Tracker::none());
        relay.begin_stop();
        let snapshot = relay.snapshot();
        let listen = "127.0.0.1:25".parse().unwrap();
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let door = Arc::new(Door::new(listen, &snapshot.config));
        let connectors = &snapshot.config.receive_connectors;
        let attribution = attribute(connectors, listen, client, false, None, clock::wall()).unwrap();
        assert_eq!(&*attribution.connector.name.0, "own");
        let slot = Limits::default().enter(&attribution.connector, client).unwrap();
        let from = Addresses { peer: client, client };
        let more = (slot, Logins::default());
        (RelayReception::new(relay.clone(), snapshot, door, from, attribution, (None, None), more), relay)
    }

    fn recipient(to: &str) -> Question {
        Question::Recipient(Recipient { address: Address::parse(to).unwrap(), notify: Notify::Unsaid, orcpt: None })
    }

    fn sender() -> Question {
        let envelope = Envelope {
            sender: Address::parse("erin@fabrikam.com").ok(),
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
        };
        Question::Sender { envelope, size: None, xoorg: None }
    }

    async fn said(reception: &mut RelayReception, question: Question) -> String {
        match reception.answer(question).await {
            Answer::Go => "go".to_owned(),
            Answer::Refuse(reply) | Answer::Done(reply) => reply.to_string(),
        }
    }

    /// S-036: what a connection may do ends with the rule that allowed it, and not when its client chooses to go. What
    /// changes beside that is in force with its next message.
    #[tokio::test]
    async fn s036_a_live_connection_is_judged_by_the_rules_of_now() {
        let anybody = "eve@tailspintoys.com";
        for (what, from, to, sender_said, recipient_said) in [
            ("nothing", "", "", "go", "go"),
            ("the hostname", "mail.contoso.com", "mx.contoso.com", "go", "go"),
            ("the right to relay", "origin = \"on-premises\"", "origin = \"on-premises\"\nrelay = false", "go", "550"),
            ("the origin", "origin = \"on-premises\"", "origin = \"partner\"", "go", "550"),
            ("its network", "192.0.2.0/24", "192.0.2.128/25", "421", ""),
            ("its name", "name = \"own\"", "name = \"ours\"", "421", ""),
            ("its address", "listen = [\"127.0.0.1:25\"]", "listen = [\"127.0.0.1:26\"]", "421", ""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("recipients.csv"), "address,type,target\na@contoso.com,cloud,\n")
                .unwrap();
            let (mut reception, relay) = connection(folder.path());
            assert_eq!(said(&mut reception, sender()).await, "go", "{what}");
            assert_eq!(said(&mut reception, recipient(anybody)).await, "go", "{what}");
            relay.replace(snapshot(folder.path(), &CONFIGURATION.replace(from, to)));
            let answer = said(&mut reception, sender()).await;
            assert!(answer.starts_with(sender_said), "{what}: {answer}");
            if answer == "go" {
                let answer = said(&mut reception, recipient(anybody)).await;
                assert!(answer.starts_with(recipient_said), "{what}: {answer}");
            }
        }
    }

    /// Who asks, whom for, and how many seconds each answer takes.
    #[tokio::test(start_paused = true)]
    async fn s114_a_search_for_recipients_is_slowed_and_mail_is_not() {
        let (known, unknown) = ("anna@contoso.com", "nobody@contoso.com");
        let names = ["anna", "ben", "cara", "dan", "eva", "finn", "gina", "hugo"];
        let ours_all = names.map(|name| format!("{name}@contoso.com"));
        let old_list: Vec<(&str, u64)> =
            ours_all.iter().map(|known| (known.as_str(), 0)).chain([(unknown, 0); 8]).chain([(unknown, 2)]).collect();
        let search: Vec<(&str, u64)> =
            [(unknown, 0); 5].into_iter().chain([(known, 0), (unknown, 2), (known, 0)]).collect();
        // Names under which anybody gets in, as often as he likes, say nothing of whom he knows.
        let tags: Vec<String> = (0..9).map(|number| format!("Anna+{number}@contoso.com")).collect();
        let open: Vec<String> = (0..9).map(|number| format!("x{number}@open.example")).collect();
        let names = [known, "ann.alias@contoso.com", "postmaster@contoso.com", "Postmaster@contoso.com"];
        let padded: Vec<(&str, u64)> = (tags.iter().chain(&open).map(String::as_str))
            .chain(names.into_iter().cycle().take(12))
            .map(|known| (known, 0))
            .chain([(unknown, 0); 5])
            .chain([(unknown, 2)])
            .collect();
        let ours: Vec<(&str, u64)> = vec![(unknown, 0); 20];
        let session = async |origin: &str, asked: &[(&str, u64)]| {
            let folder = tempfile::tempdir().unwrap();
            let mut csv = String::from("address,type,target\nann.alias@contoso.com,alias,anna@contoso.com\n");
            for known in &ours_all {
                writeln!(csv, "{known},cloud,").unwrap();
            }
            std::fs::write(folder.path().join("recipients.csv"), csv).unwrap();
            let text = CONFIGURATION.replace("origin = \"on-premises\"", &format!("origin = \"{origin}\""));
            let open = "[[accepted_domain]]\nname = \"open.example\"\ntype = \"external-relay\"\n[[directory]]";
            let text = text.replace("[[directory]]", open);
            let (mut reception, relay) = connection_by(folder.path(), &text);
            assert_eq!(said(&mut reception, sender()).await, "go");
            for (number, (to, seconds)) in asked.iter().enumerate() {
                let begun = Instant::now();
                let answer = said(&mut reception, recipient(to)).await;
                assert_eq!(answer == "go", *to != unknown, "{to}: {answer}");
                assert_eq!(begun.elapsed().as_secs(), *seconds, "{origin}: {to}, number {number}");
            }
            drop((reception, relay));
        };
        tokio::join!(
            session("internet", &old_list),
            session("internet", &search),
            session("partner", &search),
            session("internet", &padded),
            session("on-premises", &ours),
        );
    }

    /// A message whose recipients were slowed down for long enough takes no more of them, known or not. The next one does.
    #[tokio::test(start_paused = true)]
    async fn the_tarpit_is_bounded_for_each_message() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipients.csv"), "address,type,target\nanna@contoso.com,cloud,\n").unwrap();
        let text = CONFIGURATION.replace("origin = \"on-premises\"", "origin = \"internet\"");
        let (mut reception, relay) = connection_by(folder.path(), &text);
        let (known, unknown) = ("anna@contoso.com", "nobody@contoso.com");
        let waits = TARPIT_LIMIT.as_secs() / TARPIT.as_secs();
        for (message, free) in [(1, UNKNOWN), (2, 0)] {
            assert_eq!(said(&mut reception, sender()).await, "go");
            let begun = Instant::now();
            let mut asked = 0;
            let refused = loop {
                assert_eq!(said(&mut reception, recipient(known)).await, "go", "message {message}");
                let answer = said(&mut reception, recipient(unknown)).await;
                asked += 1;
                assert!(answer.starts_with("550 5.1.1 "), "message {message}: {answer}");
                if begun.elapsed() >= TARPIT_LIMIT {
                    break asked;
                }
            };
            assert_eq!(refused, free as u64 + waits, "message {message}");
            for _ in 0..100 {
                for to in [known, unknown] {
                    let answer = said(&mut reception, recipient(to)).await;
                    assert!(answer.starts_with("452 4.5.3 too many unknown recipients"), "message {message}: {answer}");
                }
            }
            assert_eq!(begun.elapsed(), TARPIT_LIMIT, "message {message}");
        }
        drop((reception, relay));
    }

    /// Twenty messages in one pipeline, each with one recipient whom nobody knows among those that are known. The tarpit
    /// slows them down; what is durable is acknowledged before it does.
    #[tokio::test(start_paused = true)]
    async fn the_tarpit_holds_back_no_acknowledgement() {
        const MESSAGES: u64 = 20;
        clock::held::hold(Some(jiff::Timestamp::UNIX_EPOCH));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipients.csv"), "address,type,target\nanna@contoso.com,cloud,\n").unwrap();
        let settings = Settings { path: "/spool".into(), min_free_space: 0 };
        let options = Options { keeper_thread: false, committer_thread: false, ..Options::default() };
        let (spool, recovery) = Spool::open_on(Arc::new(ModelDisk(Model::new(1))), settings, options).unwrap();
        let _ = recovery.run();
        let relay = Relay::new(snapshot(folder.path(), CONFIGURATION), spool.clone(), Tracker::none());
        relay.begin_stop();
        let committer = tokio::spawn(async move {
            loop {
                match spool.step() {
                    Some(at) => drop(timeout_at(at.into(), spool.called()).await),
                    None => spool.called().await,
                }
            }
        });
        let weather =
            Weather { latency: Duration::ZERO, jitter: Duration::ZERO, piece: usize::MAX, window: usize::MAX };
        let (theirs, mut client) = wire::pair(weather, &Arc::default(), Arc::new(|| false));
        let door = Arc::new(Door::new("127.0.0.1:25".parse().unwrap(), &relay.snapshot().config));
        let stranger = "198.51.100.1".parse().unwrap();
        let (_stopping, stopping) = watch::channel(false);
        let session =
            tokio::spawn(serve_simulated(theirs, stranger, door, relay, ConnectionLimits::default(), stopping));

        let message = "MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<anna@contoso.com>\r\n\
            RCPT TO:<nobody@contoso.com>\r\nBDAT 15 LAST\r\nSubject: s\r\n\r\nx";
        let pipeline = format!("EHLO client.example\r\n{}QUIT\r\n", message.repeat(MESSAGES as usize));
        let begun = Instant::now();
        client.write_all(pipeline.as_bytes()).await.unwrap();
        let (mut said, mut acknowledged) = (Vec::new(), Vec::new());
        while client.read_buf(&mut said).await.unwrap() > 0 {
            let count = String::from_utf8_lossy(&said).matches("queued as ").count();
            acknowledged.resize(count, begun.elapsed().as_secs());
        }
        let expected: Vec<u64> =
            (1..=MESSAGES).map(|message| message.saturating_sub(UNKNOWN as u64) * TARPIT.as_secs()).collect();
        assert_eq!(acknowledged, expected, "{}", String::from_utf8_lossy(&said));
        assert!(said.ends_with(b"bye\r\n") || String::from_utf8_lossy(&said).contains("\r\n221 "));
        session.await.unwrap().unwrap();
        committer.abort();
        clock::held::hold(None);
    }

    /// A client that shakes no hands is waited for as long as its connector says, after STARTTLS and where TLS comes first.
    #[tokio::test(start_paused = true)]
    async fn a_handshake_ends_with_its_timeout() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipients.csv"), "address,type,target\nanna@contoso.com,cloud,\n").unwrap();
        let (chain, key) = Authority::new("Root").issue(&["mail.contoso.com"]);
        std::fs::write(folder.path().join("crt"), chain).unwrap();
        std::fs::write(folder.path().join("key"), key).unwrap();
        for (more, seconds) in [("", 60), ("tls_handshake_timeout = \"7s\"\n", 7)] {
            for tls in ["offer", "implicit"] {
                let with = format!("tls = \"{tls}\"\ncertificate = \"crt\"\nkey = \"key\"\n{more}");
                let text = CONFIGURATION.replace("tls = \"off\"\n[[receive", &format!("{with}[[receive"));
                let text = text.replace("tls = \"off\"\n[[send", &format!("{with}[[send"));
                let (mut reception, relay) = connection_by(folder.path(), &text);
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let (client, accepted) =
                    tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
                let (client, (socket, peer)) = (client.unwrap(), accepted.unwrap());
                let begun = Instant::now();
                let error = if tls == "offer" {
                    reception.start_tls(Stream::Plain(socket)).await.map(|_| ()).unwrap_err()
                } else {
                    let here = (Arc::clone(&reception.door), relay.snapshot());
                    let (_stopping, stopping) = watch::channel(false);
                    let limits = ConnectionLimits::default();
                    serve(socket, peer, here, relay.clone(), limits, stopping).await.unwrap_err()
                };
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{tls}: {error}");
                assert_eq!(begun.elapsed().as_secs(), seconds, "{tls}");
                drop((client, reception, relay));
            }
        }
    }

    /// However large groups are: after the recipient that was one too many none is expanded any more, until the next
    /// message.
    #[tokio::test]
    async fn a_message_that_is_full_expands_no_further_groups() {
        let folder = tempfile::tempdir().unwrap();
        let mut csv = String::from("address,type,target\nanna@contoso.com,cloud,\n");
        for group in ["one", "two", "three"] {
            let members: Vec<String> = (0..9000).map(|number| format!("{group}{number}@fabrikam.com")).collect();
            writeln!(csv, "{group}@contoso.com,group,{}", members.join(" ")).unwrap();
        }
        std::fs::write(folder.path().join("recipients.csv"), csv).unwrap();
        let (mut reception, relay) = connection(folder.path());
        assert_eq!(said(&mut reception, sender()).await, "go");
        for (to, expected) in [("one", "go"), ("two", "go"), ("three", "452"), ("nobody", "452"), ("anna", "452")] {
            let answer = said(&mut reception, recipient(&format!("{to}@contoso.com"))).await;
            assert!(answer.starts_with(expected), "{to}: {answer}");
        }
        assert_eq!(reception.routed.len(), 18_000);
        assert_eq!(said(&mut reception, sender()).await, "go");
        for (to, expected) in [("three", "go"), ("nobody", "550"), ("anna", "go")] {
            let answer = said(&mut reception, recipient(&format!("{to}@contoso.com"))).await;
            assert!(answer.starts_with(expected), "{to}: {answer}");
        }
        drop((reception, relay));
    }
}
