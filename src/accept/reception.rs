//! Answers a session's questions: who the peer is here, the rest by asking `relay`.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::attribute::{Attribution, attribute};
use super::drive::Reception;
use super::limits::Slot;
use super::logins::{self, Logins};
use super::{Addresses, Door, terms};
use crate::clock;
use crate::message::{Domain, Envelope};
use crate::relay::{Asked, Peer, Relay, Snapshot, Submission};
use crate::route::{Routed, Verdict, trust};
use crate::smtp::Reply;
use crate::smtp::auth::Credentials;
use crate::smtp::server::{Answer, Question, Terms};
use crate::spool::Draft;
use crate::tls::{ClientCertificate, Stream};

/// How long a client may take for its handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

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
            draft: None,
            failed: None,
            slot,
            logins,
        }
    }

    fn sender(&mut self, envelope: Envelope, size: Option<u64>, xoorg: Option<Domain>) -> Answer {
        self.routed = Vec::new();
        self.discard();
        self.keep_up();
        if self.is_withdrawn() {
            return Answer::Refuse(Reply::login_withdrawn());
        }
        // The session has seen to this by the terms it began with; the configuration may demand more by now.
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

    /// Is this the user's password?
    async fn login(&mut self, credentials: Credentials) -> Answer {
        self.keep_up();
        let file = self.attribution.connector.users_file.as_deref();
        let Some(users) = file.and_then(|file| self.snapshot.users.of(file)).map(Arc::clone) else {
            return Answer::Refuse(Reply::login_unavailable());
        };
        let name: Box<str> = credentials.username.as_str().into();
        match self.logins.judge(self.client_ip, users, credentials).await {
            logins::Verdict::Welcome => {
                info!(peer = %self.client_ip, connector = %self.attribution.connector.name, user = %name, "logged in");
                self.user = Some(name);
                Answer::Go
            }
            logins::Verdict::Wrong { delay } => {
                // The name may be a password that was typed into the wrong field.
                debug!(peer = %self.client_ip, connector = %self.attribution.connector.name, "a login failed");
                // Nobody but this session waits.
                sleep(delay).await;
                Answer::Refuse(Reply::login_refused())
            }
            logins::Verdict::Locked => Answer::Refuse(Reply::login_locked()),
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
    /// moment, as long as the connection would be given to the same connector; else by those it began with.
    fn keep_up(&mut self) {
        let current = self.relay.snapshot();
        if !Arc::ptr_eq(&current.config, &self.snapshot.config) {
            let connectors = &current.config.receive_connectors;
            let (secure, client) = (self.tls.is_some(), self.client.as_ref());
            match attribute(connectors, self.door.listen, self.peer, secure, client, clock::wall()) {
                Some(found) if found.connector.name == self.attribution.connector.name => self.attribution = found,
                _ => return,
            }
        }
        self.snapshot = current;
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
        Answer::Done(self.relay.take(&self.snapshot, submission).await)
    }
}

impl Reception for RelayReception {
    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Login(credentials) => self.login(credentials).await,
            Question::Sender { envelope, size, xoorg } => self.sender(envelope, size, xoorg),
            Question::Recipient(recipient) => {
                let asked = Asked {
                    connector: &self.attribution.connector,
                    peer: self.client_ip,
                    mail: self.mail.as_ref(),
                    routed: self.routed.len(),
                    verdict: &self.verdict,
                };
                match self.relay.check_recipient(&self.snapshot, &asked, recipient) {
                    Ok(mut routed) => {
                        self.routed.append(&mut routed);
                        Answer::Go
                    }
                    Err(reply) => Answer::Refuse(reply),
                }
            }
            Question::Message { envelope, hello, extended } => self.message(envelope, hello, extended).await,
        }
    }

    async fn keep(&mut self, piece: Bytes) {
        if self.failed.is_some() {
            return;
        }
        let draft = self.draft.get_or_insert_with(|| self.relay.draft());
        if let Err(error) = draft.push(piece).await {
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
        let accepted = match stream {
            Stream::Plain(socket) => acceptor.accept(socket, Instant::now() + HANDSHAKE_TIMEOUT).await?,
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
