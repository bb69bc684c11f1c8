//! Why one attempt at one hop brought a recipient no further, and what follows.

use crate::message::Domain;
use crate::smtp::reply::{LOOPS_INSIDE, MOVING_INSIDE};
use crate::smtp::{Reply, Status};
use crate::tls::Unmet;

/// Why one attempt at one hop brought a recipient no further.
///
/// `host` is a name with the address that was tried, as a person reads it: `mx1.example.net [192.0.2.1]:25`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Setback {
    /// The host said so.
    #[error("{host} answered {command} with {reply}")]
    Answered {
        /// Which host.
        host: String,
        /// To what: `MAIL`, `RCPT`, `DATA`, `the end of data`, `the connection`, …
        command: &'static str,
        /// What it said.
        reply: Reply,
    },
    /// A TLS demand was not met.
    #[error("{host}: TLS: {unmet}")]
    Unproven {
        /// Which host.
        host: String,
        /// What was seen.
        unmet: Unmet,
    },
    /// No connection, or it broke.
    #[error("{host}: {why}")]
    Unreachable {
        /// Which host.
        host: String,
        /// What happened.
        why: String,
    },
    /// The connection ended after the final dot and before its reply: nobody knows.
    #[error("{host}: the connection ended after the message was sent and before it was answered: {why}")]
    Ambiguous {
        /// Which host.
        host: String,
        /// What happened.
        why: String,
    },
    /// The host broke the protocol.
    #[error("{host} broke the protocol: {why}")]
    Protocol {
        /// Which host.
        host: String,
        /// How.
        why: String,
    },
    /// The host cannot take such a message.
    #[error("{host} does not offer {extension}, which this message needs")]
    Unsupported {
        /// Which host.
        host: String,
        /// `8BITMIME`, `SMTPUTF8`, `REQUIRETLS`.
        extension: &'static str,
    },
    /// The host's SIZE is smaller than the message.
    #[error("{host} takes at most {limit} bytes, the message has {size}")]
    TooBig {
        /// Which host.
        host: String,
        /// Its SIZE.
        limit: u64,
        /// The message's.
        size: u64,
    },
    /// The domain takes no mail.
    #[error("{domain} takes no mail: its MX is null (RFC 7505)")]
    NullMx {
        /// Which.
        domain: Domain,
    },
    /// The domain does not exist.
    #[error("the domain {domain} does not exist")]
    NoDomain {
        /// Which.
        domain: Domain,
    },
    /// None of its mail servers has an address.
    #[error("no mail server of {domain} has an address: {why}")]
    NoAddress {
        /// Which.
        domain: Domain,
        /// What was found.
        why: String,
    },
    /// DNS could not tell.
    #[error("DNS cannot tell about {name}: {why}")]
    Dns {
        /// What was asked for.
        name: String,
        /// What happened.
        why: String,
    },
    /// DNS does not have the name of a smart host: the administrator's slip, most likely, so no mail is returned for it.
    #[error("smart host {name} {what}")]
    NoSmartHost {
        /// Which.
        name: String,
        /// What there is not: `is not in DNS`.
        what: String,
    },
    /// All of its mail servers are this relay.
    #[error("the mail servers of {domain} lead back to this relay")]
    Ourselves {
        /// Which.
        domain: Domain,
    },
    /// The host answered EHLO with this relay's own name: a NAT, a tunnel or a record leads back here.
    #[error(
        "mail would loop back to this relay: {host} calls itself {hostname}, which is this relay's own name; if it is \
         another server, give one of the two another hostname"
    )]
    LoopsBack {
        /// Which host.
        host: String,
        /// What both are called.
        hostname: String,
    },
    /// Several hosts were tried in one attempt, and none took it.
    #[error("{decisive}; also tried: {others}")]
    SeveralHosts {
        /// What counts.
        decisive: Box<Setback>,
        /// What the others met, in few words: see [`Setback::beside_others`].
        others: String,
    },
    /// REQUIRETLS, and this way cannot prove its hosts.
    #[error("REQUIRETLS: {why}")]
    RequireTls {
        /// What is missing.
        why: String,
    },
    /// The connector that was chosen is not in the configuration any more, or is disabled.
    #[error("the send connector {name} is {state} in the configuration")]
    NoConnector {
        /// Which.
        name: String,
        /// `missing` or `disabled`.
        state: &'static str,
    },
    /// A group leads to an address that no route leads to.
    #[error("{address}: {why}")]
    Unroutable {
        /// The member.
        address: String,
        /// What routing said of it.
        why: String,
        /// Its status.
        status: Status,
    },
    /// The other premises answered that the two hold a mailbox to be at each other's, or that the message goes in
    /// circles.
    #[error("{answer}; {here}{}", see_also(see))]
    Disagreed {
        /// What it said: a [`Setback::Answered`].
        answer: Box<Setback>,
        /// What this side holds, and what to mend.
        here: String,
        /// The command that shows more.
        see: Option<String>,
    },
    /// It has been here before, and would be sent the same way again.
    #[error("{address} goes in circles: {why}{}", see_also(see))]
    Circles {
        /// The recipient, as the sender named it.
        address: String,
        /// What both sides believe, and what to mend.
        why: String,
        /// The command that shows more.
        see: Option<String>,
    },
    /// An operator returned it.
    #[error("returned by {who}{reason}")]
    Returned {
        /// Who.
        who: String,
        /// Why: empty, or a colon and what was said.
        reason: String,
    },
    /// Our own spool could not read the message.
    #[error("the spool cannot read the message: {why}")]
    Spool {
        /// What happened.
        why: String,
    },
    /// The relay itself has as much to do as it can: no descriptor or no memory was left for a connection (F-053).
    #[error("this relay has too much to do at once: {why}")]
    Overload {
        /// What was short, in the system's words.
        why: String,
    },
    /// The lifetime is over; the last setback was this one.
    #[error("not delivered within {lifetime}: {last}")]
    Expired {
        /// In words: `2 days`.
        lifetime: String,
        /// Why the last attempt failed.
        last: Box<Setback>,
    },
}

/// So many hosts are named beside the one that decides; the others are counted.
const OTHERS_NAMED: usize = 8;

/// Bytes of what each of them met.
const OTHER_LENGTH: usize = 160;

impl Setback {
    /// The same, beside what other hosts of the attempt met, in the order in which they were tried.
    #[must_use]
    pub fn beside_others(self, others: &[Setback]) -> Self {
        let mut words: Vec<String> = Vec::new();
        let own = self.to_string();
        for other in others.iter().map(ToString::to_string) {
            if other != own && !words.contains(&other) {
                words.push(other);
            }
        }
        if words.is_empty() {
            return self;
        }
        let more = words.len().saturating_sub(OTHERS_NAMED);
        words.truncate(OTHERS_NAMED);
        for word in &mut words {
            if word.len() > OTHER_LENGTH {
                word.truncate(word.floor_char_boundary(OTHER_LENGTH));
                word.push('…');
            }
        }
        let mut others = words.join("; ");
        if more > 0 {
            others.push_str(&format!("; and {more} more"));
        }
        Self::SeveralHosts { decisive: Box::new(self), others }
    }

    /// What counts, of an attempt at several hosts.
    pub fn decisive(&self) -> &Self {
        match self {
            Self::SeveralHosts { decisive, .. } => decisive,
            other => other,
        }
    }

    /// RFC 3463. The first digit decides between retry and bounce, for queue, log, tracking and DSN alike; but for
    /// [`Setback::Expired`], which keeps class 4 in its report although nobody tries again: X.4.7 "is useful only
    /// as a persistent transient error", the example in RFC 3464 has `Action: failed` with a class 4 too, and it is
    /// what Postfix, sendmail and Exchange (`4.4.7 message expired`) write. Ask [`Setback::is_permanent`].
    pub fn status(&self) -> Status {
        match self {
            Self::Answered { command, reply, .. } => answered(command, reply),
            Self::Unproven { .. } => Status(4, 7, 5),
            Self::Unreachable { .. } => Status(4, 4, 1),
            Self::Ambiguous { .. } => Status(4, 4, 2),
            Self::Protocol { .. } => Status(4, 5, 0),
            Self::Unsupported { extension, .. } => match *extension {
                "8BITMIME" => Status(5, 6, 3),
                "SMTPUTF8" => Status(5, 6, 7),
                "REQUIRETLS" => Status(5, 7, 30),
                _ => Status(5, 3, 3),
            },
            Self::TooBig { .. } => Status(5, 3, 4),
            Self::NullMx { .. } => Status(5, 1, 10),
            Self::NoDomain { .. } => Status(5, 1, 2),
            Self::NoAddress { .. } => Status(5, 4, 4),
            Self::Dns { .. } | Self::NoSmartHost { .. } => Status(4, 4, 3),
            Self::Ourselves { .. } | Self::LoopsBack { .. } => Status(5, 4, 6),
            Self::SeveralHosts { decisive, .. } => decisive.status(),
            Self::RequireTls { .. } => Status(5, 7, 30),
            Self::NoConnector { .. } => Status(4, 3, 5),
            Self::Unroutable { status, .. } => *status,
            Self::Disagreed { answer, .. } => answer.status(),
            Self::Circles { .. } => Status(5, 4, 6),
            // A decision of this side's own.
            Self::Returned { .. } => Status(5, 7, 1),
            Self::Spool { .. } => Status(4, 3, 0),
            Self::Overload { .. } => Status(4, 4, 5),
            Self::Expired { .. } => Status(4, 4, 7),
        }
    }

    /// The status while it is tried again. What DNS denies is first looked up once more: until then it is a routing
    /// server that gave no useful answer, and not what the report will say. RFC 3463 section 3.5, X.4.3.
    pub fn status_for_now(&self) -> Status {
        if self.needs_confirmation() { Status(4, 4, 3) } else { self.status() }
    }

    /// What many messages have in common that met it, where its words may be of one message only: a host's answer may name
    /// the recipient, or a number of its own.
    pub fn in_short(&self) -> String {
        match self {
            Self::Answered { host, command, reply } => {
                format!("{host} answered {command} with {} {}", reply.code, reply.status_or_class())
            }
            Self::Disagreed { answer, .. } => answer.in_short(),
            Self::SeveralHosts { decisive, .. } => decisive.in_short(),
            Self::Circles { .. } => "it goes in circles".to_owned(),
            Self::Unroutable { .. } => "no route leads there".to_owned(),
            other => other.to_string(),
        }
    }

    /// True if trying again is of no use.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Expired { .. }) || self.status().0 == 5
    }

    /// True if this says that something does not exist, which DNS servers have been known to say in error: it has
    /// to be seen twice before it counts (C246). A null MX is not among them: somebody wrote it down.
    pub fn needs_confirmation(&self) -> bool {
        matches!(self.decisive(), Self::NoDomain { .. } | Self::NoAddress { .. })
    }

    /// True if fewer connections at a time might have helped: 421, 4.7.x, time-outs (F-037).
    pub fn throttles(&self) -> bool {
        match self {
            Self::Answered { command, reply, .. } => {
                reply.code == 421 || matches!(answered(command, reply), Status(4, 7, _) if reply.is_temporary())
            }
            Self::Unreachable { why, .. } | Self::Ambiguous { why, .. } => is_time_out(why),
            Self::Overload { .. } => true,
            Self::SeveralHosts { decisive, .. } => decisive.throttles(),
            Self::Unproven { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::TooBig { .. }
            | Self::NullMx { .. }
            | Self::NoDomain { .. }
            | Self::NoAddress { .. }
            | Self::Dns { .. }
            | Self::NoSmartHost { .. }
            | Self::Ourselves { .. }
            | Self::LoopsBack { .. }
            | Self::RequireTls { .. }
            | Self::NoConnector { .. }
            | Self::Unroutable { .. }
            | Self::Disagreed { .. }
            | Self::Circles { .. }
            | Self::Returned { .. }
            | Self::Spool { .. }
            | Self::Expired { .. } => false,
        }
    }

    /// True if the hop took no further connection for now, and so heard of no message: the message can go as soon as
    /// fewer connections are open, and was not tried. F-037.
    pub fn is_crowded(&self) -> bool {
        matches!(self.decisive(), Self::Answered { command: "the connection" | "EHLO" | "HELO", .. })
            && self.throttles()
    }

    /// True if every other message to this hop would fare alike: the hop is to be left alone for a while and then
    /// probed, rather than tried with each message that waits (F-035).
    pub fn concerns_hop(&self) -> bool {
        match self {
            // 421 is the wish for fewer connections, as 4.7.x in place of a greeting is: the hop is there. F-037.
            Self::Answered { command, reply, .. } => {
                !is_about_message(command) && !reply.is_positive() && reply.code != 421 && !self.is_crowded()
            }
            Self::Unproven { .. }
            | Self::Unreachable { .. }
            | Self::NoAddress { .. }
            | Self::NoDomain { .. }
            | Self::Dns { .. }
            | Self::NoSmartHost { .. }
            | Self::NoConnector { .. } => true,
            Self::SeveralHosts { decisive, .. } => decisive.concerns_hop(),
            Self::Ambiguous { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::TooBig { .. }
            | Self::NullMx { .. }
            | Self::Ourselves { .. }
            | Self::LoopsBack { .. }
            | Self::RequireTls { .. }
            | Self::Unroutable { .. }
            | Self::Disagreed { .. }
            | Self::Circles { .. }
            | Self::Returned { .. }
            | Self::Spool { .. }
            | Self::Overload { .. }
            | Self::Expired { .. } => false,
        }
    }

    /// The host that was spoken with, as `Remote-MTA` wants it: its name, or its address in brackets. `None` where
    /// no host said anything. RFC 3464 section 2.3.5.
    pub fn remote_mta(&self) -> Option<&str> {
        let host = match self {
            Self::Answered { host, .. }
            | Self::Unproven { host, .. }
            | Self::Ambiguous { host, .. }
            | Self::Protocol { host, .. }
            | Self::Unsupported { host, .. }
            | Self::TooBig { host, .. }
            | Self::LoopsBack { host, .. } => host,
            Self::SeveralHosts { decisive, .. } => return decisive.remote_mta(),
            Self::Expired { last, .. } => return last.remote_mta(),
            Self::Disagreed { answer, .. } => return answer.remote_mta(),
            Self::Unreachable { .. }
            | Self::NullMx { .. }
            | Self::NoDomain { .. }
            | Self::NoAddress { .. }
            | Self::Dns { .. }
            | Self::NoSmartHost { .. }
            | Self::Ourselves { .. }
            | Self::RequireTls { .. }
            | Self::NoConnector { .. }
            | Self::Unroutable { .. }
            | Self::Circles { .. }
            | Self::Returned { .. }
            | Self::Spool { .. }
            | Self::Overload { .. } => return None,
        };
        let name = host.split(' ').next().unwrap_or_default();
        // `[192.0.2.1]:25`, where there is no name.
        let name = name.rfind(']').map_or(name, |end| &name[..=end]);
        (!name.is_empty()).then_some(name)
    }

    /// The value of `Diagnostic-Code`, not yet escaped or cut: `smtp; 550 5.1.1 no such user` where a host said so,
    /// else our own words. RFC 3464 section 2.3.6.
    pub fn diagnostic(&self) -> String {
        match self {
            Self::Answered { reply, .. } => format!("smtp; {reply}"),
            Self::Expired { last, .. } => last.diagnostic(),
            Self::Disagreed { answer, .. } => answer.diagnostic(),
            Self::SeveralHosts { decisive, .. } => decisive.diagnostic(),
            Self::Unproven { .. }
            | Self::Unreachable { .. }
            | Self::Ambiguous { .. }
            | Self::Protocol { .. }
            | Self::Unsupported { .. }
            | Self::TooBig { .. }
            | Self::NullMx { .. }
            | Self::NoDomain { .. }
            | Self::NoAddress { .. }
            | Self::Dns { .. }
            | Self::NoSmartHost { .. }
            | Self::Ourselves { .. }
            | Self::LoopsBack { .. }
            | Self::RequireTls { .. }
            | Self::NoConnector { .. }
            | Self::Unroutable { .. }
            | Self::Circles { .. }
            | Self::Returned { .. }
            | Self::Spool { .. }
            | Self::Overload { .. } => format!("X-Causeway; {self}"),
        }
    }

    /// The same for somebody outside of the organization, where it tells how that routes its mail: connectors, files and
    /// entries are for the event, the log and its own people. `None`: it may be told as it is.
    pub fn for_outsiders(&self) -> Option<Self> {
        let plain = || LOOPS_INSIDE.to_owned();
        match self {
            Self::Disagreed { answer, .. } => match &**answer {
                Self::Answered { host, command, reply } => {
                    let text = if reply.is_temporary() { MOVING_INSIDE } else { LOOPS_INSIDE };
                    let reply = Reply { text: text.into(), ..reply.clone() };
                    Some(Self::Answered { host: host.clone(), command, reply })
                }
                other => other.for_outsiders(),
            },
            Self::Circles { address, .. } => Some(Self::Circles { address: address.clone(), why: plain(), see: None }),
            Self::Unroutable { address, status: status @ Status(_, 4, 6), .. } => {
                Some(Self::Unroutable { address: address.clone(), why: plain(), status: *status })
            }
            Self::SeveralHosts { decisive, .. } => decisive.for_outsiders(),
            Self::Expired { lifetime, last } => {
                let last = Box::new(last.for_outsiders()?);
                Some(Self::Expired { lifetime: lifetime.clone(), last })
            }
            _ => None,
        }
    }

    /// What came of the attempt, as a report tells it: everything but [`Setback::beside`] and [`Setback::see`].
    pub fn came(&self) -> String {
        match self {
            Self::Disagreed { answer, .. } => answer.came(),
            Self::SeveralHosts { decisive, others } => format!("{}; also tried: {others}", decisive.came()),
            Self::Circles { address, why, .. } => format!("{address} goes in circles: {why}"),
            Self::Expired { lifetime, last } => format!("not delivered within {lifetime}: {}", last.came()),
            _ => self.to_string(),
        }
    }

    /// What this side holds against the answer of the other premises.
    pub fn beside(&self) -> Option<&str> {
        match self {
            Self::Disagreed { here, .. } => Some(here),
            Self::SeveralHosts { decisive, .. } => decisive.beside(),
            Self::Expired { last, .. } => last.beside(),
            _ => None,
        }
    }

    /// The command that shows an administrator more, to be pasted as it is.
    pub fn see(&self) -> Option<&str> {
        match self {
            Self::Disagreed { see, .. } | Self::Circles { see, .. } => see.as_deref(),
            Self::SeveralHosts { decisive, .. } => decisive.see(),
            Self::Expired { last, .. } => last.see(),
            _ => None,
        }
    }

    /// What this relay had hoped for, as a report tells it.
    pub fn expected(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "that the receiving server accepts the message",
            Self::Unproven { .. } => "a connection in TLS to a server that proves who it is",
            Self::Unreachable { .. } => "a connection to the receiving server",
            Self::Ambiguous { .. } => "an answer of the receiving server after the whole message was sent",
            Self::Protocol { .. } => "a server that speaks SMTP by its rules",
            Self::Unsupported { .. } => "a server that can take messages of this kind",
            Self::TooBig { .. } => "a server that takes messages of this size",
            Self::NullMx { .. } => "a domain that receives mail",
            Self::NoDomain { .. } => "a domain that exists",
            Self::NoAddress { .. } => "a mail server with an address for the domain",
            Self::Dns { .. } | Self::NoSmartHost { .. } => "an answer from the domain name system",
            Self::Ourselves { .. } => "another relay that takes mail for the domain",
            Self::LoopsBack { .. } => "a server that is not this relay itself",
            Self::SeveralHosts { decisive, .. } => decisive.expected(),
            Self::RequireTls { .. } => {
                "a way on which every server proves who it is, as the sender demanded (REQUIRETLS)"
            }
            Self::NoConnector { .. } => "the send connector that this message was routed to",
            Self::Unroutable { .. } => "a way to every member of the group",
            Self::Disagreed { .. } | Self::Circles { .. } => "that the premises agree about where the mailbox is",
            Self::Returned { .. } => "to deliver the message",
            Self::Spool { .. } => "to read the message from the spool",
            Self::Overload { .. } => "a connection to the receiving server",
            Self::Expired { last, .. } => last.expected(),
        }
    }

    /// What the sender or an administrator can do, as a report tells it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Answered { .. } => match self.status() {
                Status(_, 1, _) => {
                    "Check that the address is spelled correctly; ask the recipient another way for the right one."
                }
                Status(_, 2, 2) => {
                    "The mailbox is full. Tell the recipient another way, and send the message again later."
                }
                Status(_, 3, 4) | Status(_, 2, 3) => "Send a smaller message, or a link instead of the attachment.",
                Status(_, 7, _) => {
                    "The receiving side refuses this message by its policy. Its answer above may name a page that says \
                     more; an administrator should look there and ask that side's postmaster."
                }
                _ => "Read the answer above: it comes from the receiving side, whose postmaster knows more.",
            },
            Self::Unproven { .. } => {
                "An administrator should compare the certificate and TLS settings of that server with the send \
                 connector's tls and tls_domain. The message is never sent in the clear instead."
            }
            Self::Unreachable { .. } => {
                "The receiving server, or the way to it, is down. An administrator should check the network, the \
                 firewall and that server."
            }
            Self::Ambiguous { .. } => "The recipient may have the message all the same. Ask before you send it again.",
            Self::Protocol { .. } => "The administrator of the receiving server should look into its log.",
            Self::Unsupported { extension, .. } => match *extension {
                "8BITMIME" => "Send the message again in a 7-bit encoding (quoted-printable or base64).",
                "SMTPUTF8" => "Ask the recipient for an address without accented or non-Latin letters.",
                _ => "Send the message without this demand, if what it says may be less protected on its way.",
            },
            Self::TooBig { .. } => "Send a smaller message, or a link instead of the attachment.",
            Self::NullMx { .. } => {
                "This domain never receives mail. Ask the recipient another way for the right address."
            }
            Self::NoDomain { .. } => "Check that the part of the address behind the @ is spelled correctly.",
            Self::NoAddress { .. } => {
                "Check that the part of the address behind the @ is spelled correctly; if it is, the administrator of \
                 that domain should check its MX records."
            }
            Self::NoSmartHost { .. } => "An administrator should check the smart host in the relay's configuration.",
            Self::Dns { .. } => "An administrator should check the name servers of that domain, and the relay's own.",
            Self::Unroutable { .. } => {
                "The other members of the group have the message. An administrator should mend or remove this member's \
                 entry in the directory."
            }
            Self::Disagreed { .. } | Self::Circles { .. } => {
                "The two sides each hold the mailbox to be at the other. An administrator should correct its entry in the \
                 directory of the side that is wrong, and then send the message again."
            }
            Self::Ourselves { .. } => {
                "An administrator should check the MX records of this domain, and whether it is missing among the \
                 relay's accepted domains."
            }
            Self::LoopsBack { .. } => {
                "An administrator should correct the MX records or smart_hosts that lead back to this relay, or a NAT that \
                 turns its connections round. If that host is another server, one of the two needs another hostname."
            }
            Self::SeveralHosts { decisive, .. } => decisive.advice(),
            Self::RequireTls { .. } => {
                "Send the message without REQUIRETLS, if it may travel less protected, or ask the receiving side to \
                 offer it."
            }
            Self::Overload { .. } => {
                "The administrator of this relay should allow it more open files or memory, or look what takes them."
            }
            Self::NoConnector { .. } => {
                "An administrator should restore or enable the send connector, or route this mail anew."
            }
            Self::Returned { .. } => {
                "An operator of this relay took the message out of its queue. Ask the postmaster of this side why."
            }
            Self::Spool { .. } => "An administrator should check the relay's disk and log. Send the message again.",
            Self::Expired { last, .. } => last.advice(),
        }
    }
}

fn see_also(command: &Option<String>) -> String {
    command.as_ref().map(|command| format!("; see: {command}")).unwrap_or_default()
}

/// What follows from a reply, by what it answered.
fn answered(command: &str, reply: &Reply) -> Status {
    let status = reply.status_or_class();
    if reply.is_positive() || reply.code / 100 == 3 {
        // A good answer in a bad place.
        return Status(4, 5, 0);
    }
    if !is_about_message(command) {
        // A greeting or a failed login says nothing about the message: it is kept until its life ends (C260).
        return Status(4, status.1, status.2);
    }
    let too_many = reply.code == 552
        && (status == Status(5, 5, 3) || reply.text.to_ascii_lowercase().contains("too many recipients"));
    if command == "RCPT" && too_many {
        // RFC 821 had 552 where we say 452: RFC 5321 section 4.5.3.1.10.
        return Status(4, 5, 3);
    }
    status
}

/// Was it about this message? What else a host refuses (the connection, EHLO, STARTTLS, AUTH, RSET) it refuses to us.
fn is_about_message(command: &str) -> bool {
    ["MAIL", "RCPT", "DATA", "BDAT", "the end of data"].iter().any(|about| command.starts_with(about))
}

/// The words of `std::io::ErrorKind::TimedOut`, of the system's ETIMEDOUT, and our own.
fn is_time_out(why: &str) -> bool {
    ["timed out", "time-out", "timeout", "deadline"].iter().any(|words| why.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> String {
        "mx1.example.net [192.0.2.1]:25".into()
    }

    fn reply(code: u16, status: Option<Status>, text: &str) -> Reply {
        Reply { code, status, text: text.into() }
    }

    fn answered_to(command: &'static str, code: u16, status: Option<Status>, text: &str) -> Setback {
        Setback::Answered { host: host(), command, reply: reply(code, status, text) }
    }

    fn domain() -> Domain {
        Domain::parse("example.net").unwrap()
    }

    /// One of each kind, with its status.
    fn all() -> Vec<(Setback, Status)> {
        let (host, why) = (host(), String::from("because"));
        let of = |extension| Setback::Unsupported { host: self::host(), extension };
        vec![
            (answered_to("RCPT", 550, Some(Status(5, 1, 1)), "no such user"), Status(5, 1, 1)),
            (Setback::Unproven { host: host.clone(), unmet: Unmet::NotOffered }, Status(4, 7, 5)),
            (Setback::Unreachable { host: host.clone(), why: why.clone() }, Status(4, 4, 1)),
            (Setback::Ambiguous { host: host.clone(), why: why.clone() }, Status(4, 4, 2)),
            (Setback::Protocol { host: host.clone(), why: why.clone() }, Status(4, 5, 0)),
            (of("8BITMIME"), Status(5, 6, 3)),
            (of("SMTPUTF8"), Status(5, 6, 7)),
            (of("REQUIRETLS"), Status(5, 7, 30)),
            (Setback::TooBig { host, limit: 1, size: 2 }, Status(5, 3, 4)),
            (Setback::NullMx { domain: domain() }, Status(5, 1, 10)),
            (Setback::NoDomain { domain: domain() }, Status(5, 1, 2)),
            (Setback::NoAddress { domain: domain(), why: why.clone() }, Status(5, 4, 4)),
            (Setback::Dns { name: "example.net".into(), why: why.clone() }, Status(4, 4, 3)),
            (Setback::NoSmartHost { name: "mail.example.net".into(), what: "is not in DNS".into() }, Status(4, 4, 3)),
            (Setback::Ourselves { domain: domain() }, Status(5, 4, 6)),
            (Setback::LoopsBack { host: self::host(), hostname: "mail.contoso.com".into() }, Status(5, 4, 6)),
            (
                answered_to("the connection", 554, None, "not you")
                    .beside_others(&[Setback::Unreachable { host: self::host(), why: "refused".into() }]),
                Status(4, 0, 0),
            ),
            (
                Setback::Disagreed {
                    answer: Box::new(answered_to("RCPT", 451, Some(Status(4, 4, 6)), "it may be moving")),
                    here: "on this side: cloud mailbox".into(),
                    see: Some("causeway trace --message-id '<a@b>'".into()),
                },
                Status(4, 4, 6),
            ),
            (Setback::RequireTls { why: why.clone() }, Status(5, 7, 30)),
            (Setback::NoConnector { name: "to-cloud".into(), state: "missing" }, Status(4, 3, 5)),
            (Setback::Returned { who: "alice".into(), reason: ": spam".into() }, Status(5, 7, 1)),
            (Setback::Spool { why: why.clone() }, Status(4, 3, 0)),
            (Setback::Overload { why }, Status(4, 4, 5)),
        ]
    }

    /// Outsiders learn that it loops, under the same status, and nothing of who believes what.
    #[test]
    fn outsiders_are_told_no_more_than_they_need() {
        let host = answered_to("RCPT", 550, Some(Status(5, 4, 6)), "SECRET.csv (here, cloud) has it");
        let wait = answered_to("RCPT", 451, Some(Status(4, 4, 6)), "SECRET.csv (here, cloud) has it");
        let disagreed = |answer: &Setback| {
            let (here, see) = ("by send connector SECRET".to_owned(), Some("SECRET".to_owned()));
            Setback::Disagreed { answer: Box::new(answer.clone()), here, see }
        };
        let circles = Setback::Circles { address: "a@b".into(), why: "SECRET".into(), see: Some("SECRET".into()) };
        let member = |status| Setback::Unroutable { address: "a@b".into(), why: "SECRET".into(), status };
        let expired = Setback::Expired { lifetime: "2 days".into(), last: Box::new(disagreed(&wait)) };
        for (setback, changes) in [
            (disagreed(&host), true),
            (disagreed(&wait), true),
            (circles, true),
            (member(Status(5, 4, 6)), true),
            (expired, true),
            (member(Status(5, 1, 1)), false),
            (host, false),
        ] {
            let Some(told) = setback.for_outsiders() else {
                assert!(!changes, "{setback}");
                continue;
            };
            assert!(changes, "{setback}");
            assert_eq!(told.status(), setback.status());
            assert_eq!((told.beside(), told.see()), (None, None));
            for text in [told.to_string(), told.came(), told.diagnostic()] {
                assert!(!text.contains("SECRET"), "{text}");
            }
        }
    }

    #[test]
    fn every_setback_has_its_status() {
        for (setback, expected) in all() {
            assert_eq!(setback.status(), expected, "{setback}");
            assert_eq!(setback.is_permanent(), expected.0 == 5, "{setback}");
            let expired = Setback::Expired { lifetime: "2 days".into(), last: Box::new(setback.clone()) };
            assert_eq!((expired.status(), expired.is_permanent()), (Status(4, 4, 7), true), "{expired}");
            assert_eq!(expired.diagnostic(), setback.diagnostic());
            assert_eq!(expired.advice(), setback.advice());
        }
    }

    /// C260, C265, C266, C267.
    #[test]
    fn replies_are_judged_by_what_they_answered() {
        for (command, code, status, text, expected) in [
            ("RCPT", 550, None, "no", Status(5, 0, 0)),
            ("RCPT", 550, Some(Status(4, 1, 1)), "a status of another class", Status(5, 0, 0)),
            ("RCPT", 450, Some(Status(4, 2, 0)), "greylisted", Status(4, 2, 0)),
            ("RCPT", 552, Some(Status(5, 2, 2)), "mailbox full", Status(5, 2, 2)),
            ("RCPT", 552, Some(Status(5, 5, 3)), "no more", Status(4, 5, 3)),
            ("RCPT", 552, None, "Too many recipients", Status(4, 5, 3)),
            ("the end of data", 552, Some(Status(5, 3, 4)), "too big", Status(5, 3, 4)),
            ("the end of data", 354, None, "go on", Status(4, 5, 0)),
            ("MAIL", 250, None, "fine", Status(4, 5, 0)),
            ("the connection", 554, Some(Status(5, 7, 1)), "not you", Status(4, 7, 1)),
            ("EHLO", 550, None, "who?", Status(4, 0, 0)),
            ("AUTH", 535, Some(Status(5, 7, 8)), "wrong password", Status(4, 7, 8)),
            ("BDAT", 554, Some(Status(5, 6, 0)), "bad content", Status(5, 6, 0)),
        ] {
            assert_eq!(answered_to(command, code, status, text).status(), expected, "{command}: {code} {text}");
        }
    }

    /// C246: until a second look confirms what DNS denies, the status says that it is tried again.
    #[test]
    fn c246_what_is_to_be_confirmed_has_a_status_for_now() {
        let answered = answered_to("RCPT", 451, Some(Status(4, 4, 6)), "not now");
        for (setback, expected) in [
            (Setback::NoDomain { domain: domain() }, Status(4, 4, 3)),
            (Setback::NoAddress { domain: domain(), why: "no host is left".into() }, Status(4, 4, 3)),
            (answered, Status(4, 4, 6)),
        ] {
            assert_eq!(setback.status_for_now(), expected, "{setback}");
        }
    }

    /// What was met at each host of an attempt is told, in bounded words; what counts is one of them.
    #[test]
    fn an_attempt_at_several_hosts_names_each_and_counts_as_one() {
        let down = |number: usize, why: &str| Setback::Unreachable { host: format!("mx{number}"), why: why.into() };
        let last = answered_to("the connection", 421, None, "busy");
        let together = last.clone().beside_others(&[down(1, "refused"), down(1, "refused"), last.clone()]);
        assert_eq!(together.to_string(), format!("{last}; also tried: mx1: refused"));
        assert!(together.is_crowded() && together.throttles() && !together.concerns_hop() && !together.is_permanent());
        assert_eq!(together.remote_mta(), last.remote_mta());
        assert_eq!(together.in_short(), last.in_short());
        assert_eq!(last.clone().beside_others(std::slice::from_ref(&last)), last, "alone");

        let many: Vec<Setback> = (0..100).map(|number| down(number, &"é".repeat(400))).collect();
        let words = down(100, "refused").beside_others(&many).to_string();
        assert!(
            words.starts_with("mx100: refused; also tried: mx0: ééé") && words.ends_with("; and 92 more"),
            "{words}"
        );
        assert!(words.len() < 8 * (160 + 10), "{}", words.len());
    }

    #[test]
    fn f037_what_throttles() {
        for (setback, expected) in [
            (answered_to("the connection", 421, None, "busy"), true),
            (answered_to("RCPT", 450, Some(Status(4, 7, 1)), "slow down"), true),
            (answered_to("RCPT", 450, Some(Status(4, 2, 0)), "greylisted"), false),
            (answered_to("RCPT", 550, Some(Status(5, 7, 1)), "policy"), false),
            (answered_to("the connection", 554, Some(Status(5, 7, 1)), "not you"), false),
            (Setback::Unreachable { host: host(), why: "connection timed out".into() }, true),
            (Setback::Unreachable { host: host(), why: "connection refused".into() }, false),
            (Setback::Unproven { host: host(), unmet: Unmet::NotOffered }, false),
            (Setback::Overload { why: "Too many open files".into() }, true),
        ] {
            assert_eq!(setback.throttles(), expected, "{setback}");
        }
    }

    #[test]
    fn f037_a_crowded_hop_has_heard_of_no_message() {
        for (setback, expected) in [
            (answered_to("the connection", 421, None, "busy"), true),
            (answered_to("EHLO", 421, Some(Status(4, 3, 2)), "busy"), true),
            (answered_to("the connection", 450, Some(Status(4, 7, 1)), "too many"), true),
            (answered_to("the connection", 554, Some(Status(5, 7, 1)), "not you"), false),
            (answered_to("MAIL", 421, None, "busy"), false),
            (answered_to("RCPT", 450, Some(Status(4, 7, 1)), "slow down"), false),
            (answered_to("AUTH", 454, Some(Status(4, 7, 0)), "no answer from the directory"), false),
            (Setback::Unreachable { host: host(), why: "connection timed out".into() }, false),
        ] {
            assert_eq!(setback.is_crowded(), expected, "{setback}");
            assert!(!expected || (setback.throttles() && !setback.concerns_hop()), "{setback}");
        }
    }

    #[test]
    fn what_concerns_the_whole_hop() {
        for (setback, expected) in [
            (answered_to("the connection", 554, None, "not you"), true),
            (answered_to("the connection", 421, None, "too many connections"), false),
            (answered_to("the connection", 450, Some(Status(4, 7, 1)), "too many connections"), false),
            (answered_to("AUTH", 454, Some(Status(4, 7, 0)), "no answer from the directory"), true),
            (answered_to("RCPT", 450, None, "not now"), false),
            (Setback::Unreachable { host: host(), why: "connection refused".into() }, true),
            (Setback::Ambiguous { host: host(), why: "reset".into() }, false),
            (Setback::TooBig { host: host(), limit: 1, size: 2 }, false),
        ] {
            assert_eq!(setback.concerns_hop(), expected, "{setback}");
        }
    }

    #[test]
    fn remote_mta_is_a_name_or_an_address() {
        for (host, expected) in [
            ("mx1.example.net [192.0.2.1]:25", Some("mx1.example.net")),
            ("[192.0.2.1]:25", Some("[192.0.2.1]")),
            ("mx1.example.net", Some("mx1.example.net")),
            ("", None),
        ] {
            let setback = Setback::Protocol { host: host.into(), why: "x".into() };
            assert_eq!(setback.remote_mta(), expected);
        }
        assert_eq!(Setback::Unreachable { host: host(), why: "refused".into() }.remote_mta(), None);
        assert_eq!(
            answered_to("RCPT", 550, Some(Status(5, 1, 1)), "no\nreally").diagnostic(),
            "smtp; 550 5.1.1 no really"
        );
    }
}
