//! An organization for tests: a configuration and a directory, built by sentences.
//!
//! contoso.com is authoritative; `hybrid` has a mailbox server on-premises, a cloud service and a way to the Internet,
//! `plain` only what a test adds.

use std::path::Path;
use std::sync::Arc;

use super::{Asking, Refusal, Resolution, Routed, Rules};
use crate::config::{self, Config, ConnectorName, Origin};
use crate::directory::{Directory, Entry, table::Builder};
use crate::message::{Address, Notify, Recipient};

/// The world. Methods that take `self` add to it.
pub(crate) struct World {
    pub(crate) config: Config,
    hybrid: Option<Sides>,
    /// Of the one receive connector, for those who ask by it.
    origin: &'static str,
    postmaster: Option<&'static str>,
    accepted: Vec<(String, &'static str)>,
    connectors: Vec<Connector>,
    disabled: Vec<&'static str>,
    entries: Vec<(Address, Entry)>,
    unavailable: bool,
}

/// `[hybrid]`: side, internet, inbound_first_hop.
#[derive(Clone, Copy)]
struct Sides {
    side: &'static str,
    internet: &'static str,
    first_hop: &'static str,
}

struct Connector {
    name: &'static str,
    spaces: Vec<&'static str>,
    smart_host: Option<&'static str>,
    tls: &'static str,
    rest: String,
}

pub(crate) fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

impl World {
    /// The hybrid world, on-premises side, Internet mail leaving directly.
    pub(crate) fn on_premises() -> Self {
        Self::hybrid("on-premises")
    }

    /// The same world seen from the cloud side.
    pub(crate) fn cloud() -> Self {
        Self::hybrid("cloud")
    }

    fn hybrid(side: &'static str) -> Self {
        Self::plain()
            .change(|world| world.hybrid = Some(Sides { side, internet: "direct", first_hop: "here" }))
            .smart("to-on-premises", &[], "mail.inside.contoso.com")
            .smart("to-cloud", &["contoso.mail.onmicrosoft.com"], "contoso-com.mail.protection.outlook.com")
            .connector("to-internet", &["*"])
    }

    /// A plain relay.
    pub(crate) fn plain() -> Self {
        let mut world = Self {
            config: config::parse(&Self::text(None, "internet", None, &[], &[]), Path::new("causeway.toml")).unwrap(),
            hybrid: None,
            origin: "internet",
            postmaster: None,
            accepted: vec![("contoso.com".into(), "authoritative")],
            connectors: Vec::new(),
            disabled: Vec::new(),
            entries: Vec::new(),
            unavailable: false,
        };
        world.build();
        world
    }

    /// `[hybrid] internet`
    pub(crate) fn internet(self, internet: &'static str) -> Self {
        self.change(|world| world.hybrid.as_mut().unwrap().internet = internet)
    }

    /// `[hybrid] inbound_first_hop`
    pub(crate) fn first_hop(self, first_hop: &'static str) -> Self {
        self.change(|world| world.hybrid.as_mut().unwrap().first_hop = first_hop)
    }

    /// What the receive connector says of its senders, for those who ask by it.
    pub(crate) fn origin(self, origin: &'static str) -> Self {
        self.change(|world| world.origin = origin)
    }

    /// The configured postmaster.
    pub(crate) fn postmaster(self, postmaster: &'static str) -> Self {
        self.change(|world| world.postmaster = Some(postmaster))
    }

    /// One more accepted domain.
    pub(crate) fn accepted(self, name: &str, kind: &'static str) -> Self {
        self.change(|world| world.accepted.push((name.to_owned(), kind)))
    }

    /// A send connector that goes by MX.
    pub(crate) fn connector(self, name: &'static str, spaces: &[&'static str]) -> Self {
        let spaces = spaces.to_vec();
        self.change(|world| {
            world.connectors.push(Connector {
                name,
                spaces,
                smart_host: None,
                tls: "opportunistic",
                rest: String::new(),
            })
        })
    }

    /// One with a smart host.
    pub(crate) fn smart(self, name: &'static str, spaces: &[&'static str], host: &'static str) -> Self {
        let spaces = spaces.to_vec();
        let connector = Connector { name, spaces, smart_host: Some(host), tls: "opportunistic", rest: String::new() };
        self.change(|world| world.connectors.push(connector))
    }

    /// These address spaces instead of those it had.
    pub(crate) fn serving(self, name: &str, spaces: &[&'static str]) -> Self {
        self.change(|world| {
            let connector = world.connectors.iter_mut().find(|connector| connector.name == name).unwrap();
            connector.spaces = spaces.to_vec();
        })
    }

    /// `enabled = false`, even where the configuration's check would not have it.
    pub(crate) fn disabled(self, name: &'static str) -> Self {
        self.change(|world| world.disabled.push(name))
    }

    /// `max_message_size`, in bytes.
    pub(crate) fn limit(self, name: &str, bytes: u64) -> Self {
        self.with(name, &format!("max_message_size = \"{bytes}B\""))
    }

    /// `tags = "drop"`.
    pub(crate) fn drops_tags(self, name: &str) -> Self {
        self.with(name, "tags = \"drop\"")
    }

    /// What its next hops must prove.
    pub(crate) fn tls(self, name: &str, tls: &'static str) -> Self {
        self.change(|world| {
            let connector = world.connectors.iter_mut().find(|connector| connector.name == name).unwrap();
            connector.tls = tls;
        })
    }

    fn with(self, name: &str, line: &str) -> Self {
        self.change(|world| {
            let connector = world.connectors.iter_mut().find(|connector| connector.name == name).unwrap();
            connector.rest = format!("{}{line}\n", connector.rest);
        })
    }

    /// A mailbox on-premises.
    pub(crate) fn mailbox(self, name: &str) -> Self {
        self.entry(name, Entry::OnPremises)
    }

    /// A mailbox in the cloud.
    pub(crate) fn cloud_mailbox(self, name: &str) -> Self {
        self.entry(name, Entry::Cloud(None))
    }

    /// A mailbox in the cloud, under this hybrid routing address.
    pub(crate) fn cloud_mailbox_at(self, name: &str, target: &str) -> Self {
        self.entry(name, Entry::Cloud(Some(address(target))))
    }

    /// A forward.
    pub(crate) fn forward(self, name: &str, to: &str) -> Self {
        self.entry(name, Entry::Forward(address(to)))
    }

    /// Another name.
    pub(crate) fn alias(self, name: &str, of: &str) -> Self {
        self.entry(name, Entry::Alias(address(of)))
    }

    /// A group; members are separated by blanks.
    pub(crate) fn group(self, name: &str, members: &str) -> Self {
        self.entry(name, Entry::Group(members.split_whitespace().map(address).collect()))
    }

    /// Any entry.
    pub(crate) fn entry(mut self, name: &str, entry: Entry) -> Self {
        self.entries.push((address(name), entry));
        self
    }

    /// One that stands before all others, so that it holds.
    pub(crate) fn entry_first(mut self, name: &str, entry: Entry) -> Self {
        self.entries.retain(|(other, _)| *other != address(name));
        self.entries.insert(0, (address(name), entry));
        self
    }

    /// A directory that cannot answer.
    pub(crate) fn unavailable(mut self) -> Self {
        self.unavailable = true;
        self
    }

    /// The directory of this world.
    pub(crate) fn directory(&self) -> Directory {
        if self.unavailable {
            return Directory::of("recipients.csv", None);
        }
        let mut table = Builder::default();
        for (address, entry) in &self.entries {
            table.insert(address, entry).unwrap();
        }
        Directory::of("recipients.csv", Some(table.finish()))
    }

    /// What becomes of a recipient; `size` as MAIL declared it.
    pub(crate) fn resolve(&self, origin: &str, to: &str, size: Option<u64>) -> Result<Resolution, Refusal> {
        let recipient = Recipient { address: address(to), notify: Notify::Unsaid, orcpt: None };
        self.resolve_recipient(origin, &recipient, size)
    }

    /// The same, with all that RCPT said.
    pub(crate) fn resolve_recipient(
        &self,
        origin: &str,
        recipient: &Recipient,
        size: Option<u64>,
    ) -> Result<Resolution, Refusal> {
        let (origin, may_relay) = match origin {
            "internet" => (Origin::Internet, false),
            "partner" => (Origin::Partner, false),
            "on-premises" => (Origin::OnPremises, true),
            "cloud" => (Origin::Cloud, true),
            "client" => (Origin::Client, true),
            other => panic!("no origin {other}"),
        };
        let directory = self.directory();
        let rules = Rules { config: &self.config, directory: &directory };
        rules.expand(&Asking { origin, connector: &ConnectorName("door".into()), may_relay, size }, recipient)
    }

    /// `to-cloud: david@…; to-internet: eve@…`, or `550 5.1.1`; failed members of groups in brackets.
    pub(crate) fn route(&self, origin: &str, to: &str) -> String {
        shown(self.resolve(origin, to, None))
    }

    /// The reasons of each end, or of the refusal.
    pub(crate) fn reasons(&self, origin: &str, to: &str) -> Vec<Vec<String>> {
        let words = |because: &[super::Reason]| because.iter().map(ToString::to_string).collect();
        match self.resolve(origin, to, None) {
            Ok(resolution) => resolution.routed.iter().map(|one| words(&one.route.because)).collect(),
            Err(refusal) => vec![words(&refusal.because)],
        }
    }

    fn change(mut self, how: impl FnOnce(&mut Self)) -> Self {
        how(&mut self);
        self.build();
        self
    }

    fn build(&mut self) {
        // `[hybrid]` names connectors that come later.
        let ready = self.connectors.len() >= 2;
        let hybrid = self.hybrid.filter(|_| ready);
        let text = Self::text(hybrid, self.origin, self.postmaster, &self.accepted, &self.connectors);
        self.config = config::parse(&text, Path::new("causeway.toml")).unwrap_or_else(|problems| panic!("{problems}"));
        for connector in &mut self.config.send_connectors {
            let connector = Arc::get_mut(connector).unwrap();
            connector.enabled = !self.disabled.iter().any(|name| connector.name.0[..] == **name);
        }
    }

    fn text(
        hybrid: Option<Sides>,
        origin: &str,
        postmaster: Option<&str>,
        accepted: &[(String, &str)],
        connectors: &[Connector],
    ) -> String {
        let mut text = String::from("hostname = \"mail.contoso.com\"\n");
        text += &format!("postmaster = {:?}\n", postmaster.unwrap_or("postmaster@contoso.com"));
        text += "[spool]\npath = \"spool\"\n";
        if let Some(Sides { side, internet, first_hop }) = hybrid {
            text += &format!(
                "[hybrid]\nside = {side:?}\ninbound_first_hop = {first_hop:?}\non_premises = \"to-on-premises\"\ncloud = \"to-cloud\"\n\
                 routing_domain = \"contoso.mail.onmicrosoft.com\"\ninternet = {internet:?}\n"
            );
        }
        for (name, kind) in accepted {
            text += &format!("[[accepted_domain]]\nname = {name:?}\ntype = {kind:?}\n");
        }
        // Who may relay is not all the world.
        let from = if matches!(origin, "internet" | "partner") { "0.0.0.0/0" } else { "10.0.0.0/8" };
        text += &format!(
            "[[receive_connector]]\nname = \"door\"\nlisten = [\"192.0.2.25:25\"]\nremote_ips = [{from:?}]\n\
             origin = {origin:?}\ntls = \"off\"\n"
        );
        for Connector { name, spaces, smart_host, tls, rest } in connectors {
            text += &format!("[[send_connector]]\nname = {name:?}\naddress_spaces = {spaces:?}\ntls = {tls:?}\n");
            if let Some(host) = smart_host {
                text += &format!("smart_hosts = [{host:?}]\n");
            }
            text += rest;
        }
        text
    }
}

/// In the words of a test's table.
pub(crate) fn shown(resolution: Result<Resolution, Refusal>) -> String {
    let code = |refusal: &Refusal| format!("{} {}", refusal.status().0, refusal.status().1);
    match resolution {
        Err(refusal) => code(&refusal),
        Ok(Resolution { routed, failed }) => {
            let end = |one: &Routed| format!("{}: {}", one.route.via, one.route.to);
            let failed = failed.iter().map(|failed| format!("[{}: {}]", failed.address, code(&failed.refusal)));
            routed.iter().map(end).chain(failed).collect::<Vec<_>>().join("; ")
        }
    }
}
