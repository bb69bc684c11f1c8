//! What was decided: the scenario, which side of it stands here, and the names and files of this relay.
//!
//! The table of the four scenarios is here, and what follows from it for either side. Not here: where the answers come
//! from (`answers`), what is written (`configuration`) and printed (`guide`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// One of the four ways in which mail of a hybrid organization can flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scenario {
    pub number: u8,
    /// Whom the MX names: where mail from the Internet comes in.
    pub mx: Premises,
    /// Mail from the Internet goes on-premises first, for every mailbox.
    pub first_on_premises: bool,
    /// What one sentence says about it.
    pub words: &'static str,
    from_on_premises: Exit,
    from_cloud: Exit,
}

/// How mail of one side reaches the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Directly,
    ThroughTheOther,
}

/// One of the two premises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Premises {
    OnPremises,
    Cloud,
}

/// What stands on the other premises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    ExchangeOnline,
    ExchangeServer,
    Causeway,
}

/// The table of the interface, row by row.
pub(super) const SCENARIOS: [Scenario; 4] = [
    Scenario {
        number: 1,
        mx: Premises::Cloud,
        first_on_premises: false,
        from_on_premises: Exit::ThroughTheOther,
        from_cloud: Exit::Directly,
        words: "the MX names the cloud, and all mail for the Internet leaves from there",
    },
    Scenario {
        number: 2,
        mx: Premises::Cloud,
        first_on_premises: true,
        from_on_premises: Exit::ThroughTheOther,
        from_cloud: Exit::ThroughTheOther,
        words: "the MX names the cloud, but all mail from and to the Internet passes on-premises",
    },
    Scenario {
        number: 3,
        mx: Premises::OnPremises,
        first_on_premises: false,
        from_on_premises: Exit::Directly,
        from_cloud: Exit::ThroughTheOther,
        words: "the MX names on-premises, and all mail for the Internet leaves from there",
    },
    Scenario {
        number: 4,
        mx: Premises::OnPremises,
        first_on_premises: false,
        from_on_premises: Exit::ThroughTheOther,
        from_cloud: Exit::Directly,
        words: "the MX names on-premises, but all mail for the Internet leaves through the cloud",
    },
];

impl Scenario {
    /// `1` to `4`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let found = SCENARIOS.into_iter().find(|scenario| scenario.number.to_string() == text);
        found.ok_or_else(|| "expected 1, 2, 3 or 4".to_owned())
    }

    /// Where mail for the Internet leaves at last, whichever way it took.
    pub(super) fn egress(self) -> Premises {
        match self.from_on_premises {
            Exit::Directly => Premises::OnPremises,
            Exit::ThroughTheOther => Premises::Cloud,
        }
    }

    /// What `side` sends to the Internet goes to the other side first.
    pub(super) fn sends_through_other(self, side: Premises) -> bool {
        let exit = match side {
            Premises::OnPremises => self.from_on_premises,
            Premises::Cloud => self.from_cloud,
        };
        exit == Exit::ThroughTheOther
    }

    /// The way of each kind of mail, host by host: `(what, the hosts)`. `on_premises` and `cloud` are the relays.
    pub(super) fn roads(self, on_premises: &str, cloud: &str) -> Vec<(&'static str, String)> {
        const JULIE: &str = "on-premises mailbox";
        const DAVID: &str = "cloud mailbox";
        const WORLD: &str = "Internet";
        let road = |hosts: &[&str]| hosts.join(" -> ");
        let (p, c) = (on_premises, cloud);
        let inbound = match (self.mx, self.first_on_premises) {
            (Premises::Cloud, false) => [road(&[WORLD, c, p, JULIE]), road(&[WORLD, c, DAVID])],
            (Premises::Cloud, true) => [road(&[WORLD, c, p, JULIE]), road(&[WORLD, c, p, c, DAVID])],
            (Premises::OnPremises, _) => [road(&[WORLD, p, JULIE]), road(&[WORLD, p, c, DAVID])],
        };
        let outbound = match (self.from_on_premises, self.from_cloud) {
            (Exit::Directly, _) => [road(&[JULIE, p, WORLD]), road(&[DAVID, c, p, WORLD])],
            (Exit::ThroughTheOther, Exit::Directly) => [road(&[JULIE, p, c, WORLD]), road(&[DAVID, c, WORLD])],
            (Exit::ThroughTheOther, Exit::ThroughTheOther) => {
                [road(&[JULIE, p, c, WORLD]), road(&[DAVID, c, p, c, WORLD])]
            }
        };
        let [to_julie, to_david] = inbound;
        let [from_julie, from_david] = outbound;
        vec![
            ("in", to_julie),
            ("", to_david),
            ("between", road(&[JULIE, p, c, DAVID])),
            ("", road(&[DAVID, c, p, JULIE])),
            ("out", from_julie),
            ("", from_david),
        ]
    }
}

impl Premises {
    /// The word of the configuration.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::OnPremises => "on-premises",
            Self::Cloud => "cloud",
        }
    }

    /// As a sentence says it.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::OnPremises => "on-premises",
            Self::Cloud => "in the cloud",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::OnPremises => Self::Cloud,
            Self::Cloud => Self::OnPremises,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "on-premises" => Ok(Self::OnPremises),
            "cloud" => Ok(Self::Cloud),
            _ => Err(r#"expected "on-premises" or "cloud""#.to_owned()),
        }
    }
}

impl Other {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::ExchangeOnline => "exchange-online",
            Self::ExchangeServer => "exchange-server",
            Self::Causeway => "causeway",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        [Self::ExchangeOnline, Self::ExchangeServer, Self::Causeway]
            .into_iter()
            .find(|other| other.word() == text)
            .ok_or_else(|| r#"expected "exchange-online", "exchange-server" or "causeway""#.to_owned())
    }
}

/// Everything that the texts need. Names and addresses were parsed before; texts are as the configuration has them.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub scenario: Scenario,
    pub side: Premises,
    pub other: Other,
    pub domain: String,
    /// This relay.
    pub hostname: String,
    pub listen: Vec<String>,
    /// Host, or host and port, of the other premises.
    pub other_host: String,
    /// What the certificate shown there carries.
    pub other_name: String,
    pub routing_domain: String,
    pub certificate: String,
    pub key: String,
    /// An authority of the organization's own; `None`: the system's roots.
    pub ca_file: Option<String>,
    pub directory: String,
    /// Host, or host and port, of the mailbox server behind this relay.
    pub mailbox_host: String,
    pub mailbox_name: String,
    /// Empty: the mailbox server proves itself by its certificate.
    pub mailbox_networks: Vec<String>,
    /// From which addresses mail leaves for the Internet; empty: those of the egress host's name.
    pub egress_ips: Vec<String>,
    /// Where its admin API and console listen; `None`: where they do by themselves.
    pub admin: Option<String>,
    pub spool: String,
    pub tracking: String,
    /// `None`: standard output.
    pub output: Option<PathBuf>,
}

impl Plan {
    /// How people call the relay on `premises`.
    pub(super) fn called(&self, premises: Premises) -> &str {
        match (premises == self.side, self.other) {
            (true, _) => &self.hostname,
            (false, Other::ExchangeOnline) => "Exchange Online",
            (false, _) => self.other_by_name(),
        }
    }

    /// The connectors and the MX know the other side by this host.
    pub(super) fn host_of(&self, premises: Premises) -> &str {
        if premises == self.side { &self.hostname } else { self.other_by_name() }
    }

    /// An MX names a host, never an address. RFC 5321 section 5.1.
    fn other_by_name(&self) -> &str {
        match host_only(&self.other_host) {
            address if address.parse::<IpAddr>().is_ok() => &self.other_name,
            host => host,
        }
    }

    /// Internet mail comes in here.
    pub(super) fn is_mx(&self) -> bool {
        self.scenario.mx == self.side
    }

    /// Internet mail leaves from here, or may: whatever has been on-premises never goes back there, so the cloud side
    /// always needs a way out.
    pub(super) fn has_way_out(&self) -> bool {
        self.scenario.egress() == self.side || self.side == Premises::Cloud
    }

    /// The value of `internet`.
    pub(super) fn internet(&self) -> &'static str {
        if self.scenario.sends_through_other(self.side) { self.side.other().word() } else { "direct" }
    }

    /// The other side's Internet mail passes through this relay.
    pub(super) fn relays_for_other(&self) -> bool {
        self.scenario.sends_through_other(self.side.other())
    }

    /// The authority behind the certificates of the servers on `premises`; `None`: a public one. Exchange Online has
    /// Microsoft's, whoever issued ours.
    pub(super) fn authority(&self, premises: Premises) -> Option<&str> {
        let public = premises != self.side && self.other == Other::ExchangeOnline;
        self.ca_file.as_deref().filter(|_| !public)
    }

    /// What the other side may say its organization is. Exchange Online writes the tenant's first domain into
    /// `X-OriginatorOrg`; a relay names in XOORG the first domain that it takes for authoritative, which is the routing
    /// domain where it does not know all recipients of the other. So both count.
    pub(super) fn originators(&self) -> Vec<String> {
        let second = match self.other {
            Other::ExchangeOnline => {
                let tenant = self.routing_domain.strip_suffix(".mail.onmicrosoft.com");
                tenant.map(|tenant| format!("{tenant}.onmicrosoft.com"))
            }
            Other::Causeway | Other::ExchangeServer => Some(self.routing_domain.clone()),
        };
        std::iter::once(self.domain.clone()).chain(second).collect()
    }

    /// The port that the other side must be let in at.
    pub(super) fn port(&self) -> &str {
        self.listen.first().and_then(|listen| listen.rsplit_once(':')).map_or("25", |(_, port)| port)
    }

    /// A path of the configuration, seen from the folder the command runs in.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        match self.output.as_deref().and_then(Path::parent) {
            Some(folder) => folder.join(path),
            None => PathBuf::from(path),
        }
    }
}

/// `host` of `host`, `host:port` and `[host]:port`.
pub(super) fn host_only(host: &str) -> &str {
    if let Some((host, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host;
    }
    host.split_once(':').map_or(host, |(host, _)| host)
}

/// The port in `host:port` and `[host]:port`.
pub(super) fn port_of(host: &str) -> &str {
    let rest = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    rest.split_once(':').map_or("25", |(_, port)| port)
}
