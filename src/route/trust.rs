//! How far a message's origin was believed, clause by clause. Pure.
//!
//! A connection is attributed to a receive connector by its address and, where one is asked for, by the client's
//! certificate; a message by that and by the organization that the service vouches for. Each of these clauses is
//! true, false or was not asked, and says what was seen: the tracking event RECEIVE, `explain` and the log print these
//! words alike.
//!
//! Not here: how a clause is found out (`accept::attribute`, `relay`), what follows for a recipient (`resolve`).

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;

use crate::config::{ConnectorName, Origin, ReceiveConnector};
use crate::message::Domain;

/// One clause of a [`Verdict`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Clause {
    /// Nobody asked.
    #[default]
    NotAsked,
    /// It holds, by this.
    True(Cow<'static, str>),
    /// It does not, because of this.
    False(Cow<'static, str>),
}

impl Clause {
    /// It was asked and does not hold.
    pub fn is_false(&self) -> bool {
        matches!(self, Self::False(_))
    }
}

/// What a connector that asks for a certificate found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The connector.
    pub connector: ConnectorName,
    /// The certificate chains to its roots.
    pub certificate: Clause,
    /// It carries one of its names.
    pub name: Clause,
}

/// What one message is held to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The receive connector that takes it, and what its certificate proved.
    pub claim: Claim,
    /// The network of its `remote_ips` that holds the client.
    pub network: Option<IpNet>,
    /// The organization that vouches for the author is one of those listed.
    pub originator_org: Clause,
    /// Where it counts as coming from.
    pub origin: Origin,
    /// It may go to domains that are not accepted domains.
    pub may_relay: bool,
    /// Its organization headers are believed.
    pub internal: bool,
    /// Connectors that would have taken it, had the client proved what they ask for.
    pub lost: Vec<Claim>,
}

impl Verdict {
    /// What a message is that comes by `connector`, as far as the connection tells: `originator_org` is not asked yet.
    pub fn new(connector: &ReceiveConnector, network: Option<IpNet>, certificate: Clause, name: Clause) -> Self {
        let proved = !certificate.is_false() && !name.is_false();
        Self {
            claim: Claim { connector: connector.name.clone(), certificate, name },
            network,
            originator_org: Clause::NotAsked,
            origin: connector.origin,
            may_relay: connector.relay && proved,
            internal: connector.internal && proved,
            lost: Vec::new(),
        }
    }

    /// The same with what was found about the author's organization. Where that is none of those listed the message
    /// counts as from the Internet: it may come for our own recipients, and no more.
    #[must_use]
    pub fn with_originator(&self, originator_org: Clause) -> Self {
        let stranger = originator_org.is_false();
        Self {
            origin: if stranger { Origin::Internet } else { self.origin },
            may_relay: self.may_relay && !stranger,
            internal: self.internal && !stranger,
            originator_org,
            ..self.clone()
        }
    }

    /// It came by a connector that lists organizations, and is of none of them.
    pub fn is_stranger(&self) -> bool {
        self.originator_org.is_false()
    }

    /// The verdict in words, a line each: the answer, then the clauses that were asked, then the claims that failed.
    pub fn words(&self) -> Vec<Words<'_>> {
        let mut words = Vec::with_capacity(5 + self.lost.len());
        words.extend([Words::Internal(self), Words::Connector(self)]);
        for word in [
            Words::Certificate(&self.claim.certificate),
            Words::Name(&self.claim.name),
            Words::Originator(&self.originator_org),
        ] {
            if let Words::Certificate(clause) | Words::Name(clause) | Words::Originator(clause) = word
                && *clause != Clause::NotAsked
            {
                words.push(word);
            }
        }
        words.extend(self.lost.iter().map(Words::Lost));
        words
    }

    /// The clause that keeps it from being internal; `None`: none of them, its connector takes nothing for that.
    fn decided(&self) -> Option<&'static str> {
        match self {
            Self { claim: Claim { certificate: Clause::False(_), .. }, .. } => Some("certificate"),
            Self { claim: Claim { name: Clause::False(_), .. }, .. } => Some("name"),
            Self { originator_org: Clause::False(_), .. } => Some("originator_org"),
            _ => None,
        }
    }
}

/// Is the author's organization, as XOORG or the header has it, one of those that `listed` names? All that is said must
/// be, and something must be said.
pub fn originator(listed: &[Domain], said: impl IntoIterator<Item = Result<Domain, String>>) -> Clause {
    let mut known = None;
    for one in said {
        match one {
            Ok(domain) if listed.contains(&domain) => known = Some(domain),
            Ok(other) => return Clause::False(other.to_string().into()),
            Err(text) => return Clause::False(format!("{text:?}, which is no domain").into()),
        }
    }
    match known {
        Some(domain) => Clause::True(domain.to_string().into()),
        None => Clause::False("none was named".into()),
    }
}

/// One line of a verdict, as it is printed.
#[derive(Debug, Clone, Copy)]
pub enum Words<'a> {
    /// `internal: yes`; `internal: no, by originator_org`; `internal: no, receive connector "internet" does not have …`.
    Internal(&'a Verdict),
    /// `connector "from-cloud" (203.0.113.0/24): matched`.
    Connector(&'a Verdict),
    /// `certificate chains to certs/ca.pem: true`.
    Certificate(&'a Clause),
    /// `name mail.protection.outlook.com: true`.
    Name(&'a Clause),
    /// `originator_org contoso.com: true`.
    Originator(&'a Clause),
    /// `connector "from-cloud": did not match, certificate: no certificate was presented`.
    Lost(&'a Claim),
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Internal(verdict) => {
                match verdict.decided() {
                    _ if verdict.internal => f.write_str("internal: yes")?,
                    Some(clause) => write!(f, "internal: no, by {clause}")?,
                    None => {
                        let connector = &verdict.claim.connector;
                        write!(f, "internal: no, receive connector \"{connector}\" does not have internal = true")?;
                    }
                }
                if verdict.is_stranger() { f.write_str("; it counts as from the Internet") } else { Ok(()) }
            }
            Self::Connector(Verdict { claim, network: Some(network), .. }) => {
                write!(f, "connector \"{}\" ({network}): matched", claim.connector)
            }
            Self::Connector(Verdict { claim, network: None, .. }) => {
                write!(f, "connector \"{}\": matched", claim.connector)
            }
            Self::Certificate(clause) => clause.print(f, "certificate", " chains to"),
            Self::Name(clause) => clause.print(f, "name", ""),
            Self::Originator(clause) => clause.print(f, "originator_org", ""),
            Self::Lost(claim) => write!(f, "{claim}"),
        }
    }
}

impl Clause {
    fn print(&self, f: &mut fmt::Formatter<'_>, what: &str, how: &str) -> fmt::Result {
        match self {
            Self::NotAsked => write!(f, "{what}: not asked"),
            Self::True(by) => write!(f, "{what}{how} {by}: true"),
            Self::False(why) => write!(f, "{what}: false ({why})"),
        }
    }
}

/// A claim that failed: the connector, and the clause that says why.
impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, clause) = match &self.certificate {
            Clause::False(_) => ("certificate", &self.certificate),
            Clause::True(_) | Clause::NotAsked => ("name", &self.name),
        };
        match clause {
            Clause::False(why) => write!(f, "connector \"{}\": did not match, {word}: {why}", self.connector),
            Clause::True(_) | Clause::NotAsked => write!(f, "connector \"{}\": matched", self.connector),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const CONFIGURATION: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "/spool"
[[accepted_domain]]
name = "contoso.com"
type = "authoritative"
[[receive_connector]]
name = "from-cloud"
listen = ["192.0.2.25:25"]
remote_ips = ["203.0.113.0/24"]
origin = "cloud"
tls = "off"
internal = true
originator_org = ["contoso.com", "contoso.onmicrosoft.com"]
[[send_connector]]
name = "out"
address_spaces = ["*"]
tls = "off"
"#;

    /// What is said of the author's organization, and what follows.
    #[test]
    fn the_originator_decides_for_the_whole_message() {
        let config = config::parse(CONFIGURATION, std::path::Path::new("/causeway.toml")).unwrap();
        let connector = &config.receive_connectors[0];
        let network = connector.remote_ips.first().copied();
        let connection = Verdict::new(connector, network, Clause::NotAsked, Clause::NotAsked);
        assert!(connection.internal && connection.may_relay && connection.origin == Origin::Cloud);
        for (said, holds, expected) in [
            (&["contoso.com"][..], true, "originator_org contoso.com: true"),
            (&["CONTOSO.onmicrosoft.com"], true, "originator_org contoso.onmicrosoft.com: true"),
            (&["contoso.com", "contoso.onmicrosoft.com"], true, "originator_org contoso.onmicrosoft.com: true"),
            (&["fabrikam.com"], false, "originator_org: false (fabrikam.com)"),
            (&["contoso.com", "fabrikam.com"], false, "originator_org: false (fabrikam.com)"),
            (&["fabrikam.com", "contoso.com"], false, "originator_org: false (fabrikam.com)"),
            (&["sub.contoso.com"], false, "originator_org: false (sub.contoso.com)"),
            (&[], false, "originator_org: false (none was named)"),
            (&["contoso.com", "?x y"], false, "originator_org: false (\"x y\", which is no domain)"),
        ] {
            let read = said.iter().map(|one| match one.strip_prefix('?') {
                Some(text) => Err(text.to_owned()),
                None => Ok(Domain::parse(one).unwrap()),
            });
            let verdict = connection.with_originator(originator(&connector.originator_org, read));
            assert_eq!(verdict.is_stranger(), !holds, "{said:?}");
            assert_eq!((verdict.internal, verdict.may_relay), (holds, holds), "{said:?}");
            assert_eq!(verdict.origin, if holds { Origin::Cloud } else { Origin::Internet }, "{said:?}");
            let answer = match holds {
                true => "internal: yes",
                false => "internal: no, by originator_org; it counts as from the Internet",
            };
            let words: Vec<String> = verdict.words().iter().map(ToString::to_string).collect();
            assert_eq!(words, [answer, "connector \"from-cloud\" (203.0.113.0/24): matched", expected], "{said:?}");
        }
    }
}
