//! The hybrid matrix as one match: it reads like the table under `[hybrid]` in docs/configuration.md.
//!
//! `partner` counts as the Internet and `client` as the relay's own side, so the rows know three origins only. Where
//! Internet mail leaves through the other premises, that decides for everything that is not of the organization: no
//! address space is asked, not even a more specific one, because the organization said through which premises its
//! Internet mail leaves. But mail that has been on-premises never goes back there, whatever an address space says: it
//! would come here again, and so on until the loop is cut.
//!
//! Not here: who may send to the Internet at all, and what a recipient is (`resolve`).

pub use crate::config::Side;
use crate::config::{ConnectorName, FirstHop, Hybrid, Internet, Origin};

/// What a recipient turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A mailbox on-premises.
    OnPremisesMailbox,
    /// A mailbox in the cloud.
    CloudMailbox,
    /// In an internal-relay domain, and the directory does not know it.
    Unknown,
    /// Postmaster, whom nobody knows.
    Postmaster,
    /// None of the organization's.
    Internet,
}

/// How the message came to this recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// Under the address that RCPT named, or another name of the same mailbox.
    ByName,
    /// A forward or a group of ours led to it: whoever sent the message does not know of it.
    Led,
}

/// Where a row sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// To this send connector.
    To(&'a ConnectorName),
    /// By address space.
    AddressSpace,
    /// By address space, but not by this connector: it leads back to where the message has been.
    AddressSpaceWithout(&'a ConnectorName),
    /// Nowhere: neither premises knows it.
    Refuse,
    /// Nowhere: each side holds the mailbox to be at the other.
    Disagree,
}

/// One row of the matrix, and the words by which it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The recipient's column.
    pub row: &'static str,
    /// The key that decided.
    pub key: &'static str,
    /// What follows.
    pub way: Way<'a>,
}

/// The row for a message from `origin` to a recipient that it `reached` and that is `bound` there.
pub fn row(hybrid: &Hybrid, origin: Origin, reached: Reached, bound: Bound) -> Row<'_> {
    use Bound::{CloudMailbox, OnPremisesMailbox, Postmaster, Unknown};
    use Reached::{ByName, Led};

    const ON_PREMISES: Side = Side::OnPremises;
    const CLOUD: Side = Side::Cloud { inbound_first_hop: FirstHop::Here };
    const CLOUD_SECOND: Side = Side::Cloud { inbound_first_hop: FirstHop::OnPremises };

    let side = hybrid.side;
    let from = match origin {
        Origin::Partner => Origin::Internet,
        Origin::Client => side.origin(),
        Origin::Internet | Origin::OnPremises | Origin::Cloud => origin,
    };
    let to_on_premises = Way::To(&hybrid.on_premises);
    let to_cloud = Way::To(&hybrid.cloud);
    let by_space = Way::AddressSpace;
    let never_back = Way::AddressSpaceWithout(&hybrid.on_premises);

    let (row, key, way) = match (side, from, bound, reached) {
        (ON_PREMISES, _, OnPremisesMailbox, _) => ("on-premises mailbox", "hybrid.on_premises", to_on_premises),
        (ON_PREMISES, _, CloudMailbox, _) => ("cloud mailbox", "hybrid.cloud", to_cloud),
        (ON_PREMISES, _, Bound::Internet, _) => match hybrid.internet {
            Internet::Direct => ("to the Internet", "hybrid.internet = \"direct\"", by_space),
            Internet::OtherPremises => ("to the Internet", "hybrid.cloud, by internet = \"cloud\"", to_cloud),
        },
        (ON_PREMISES, Origin::Cloud, Unknown, _) => ("unknown on both premises", "none", Way::Refuse),
        (ON_PREMISES, _, Unknown, _) => ("unknown here, so for the other premises", "hybrid.cloud", to_cloud),
        (ON_PREMISES, _, Postmaster, _) => ("postmaster, to the own side", "hybrid.on_premises", to_on_premises),

        (CLOUD_SECOND, Origin::Internet, OnPremisesMailbox, _) => {
            ("on-premises mailbox", "hybrid.on_premises, by inbound_first_hop = \"on-premises\"", to_on_premises)
        }
        (CLOUD_SECOND, Origin::Internet, CloudMailbox, _) => {
            ("cloud mailbox", "hybrid.on_premises first, by inbound_first_hop = \"on-premises\"", to_on_premises)
        }
        (CLOUD | CLOUD_SECOND, _, CloudMailbox, _) => ("cloud mailbox", "hybrid.cloud", to_cloud),
        (CLOUD | CLOUD_SECOND, Origin::OnPremises, OnPremisesMailbox, ByName) => {
            ("on-premises mailbox, though it was sent here from there", "none", Way::Disagree)
        }
        (CLOUD | CLOUD_SECOND, Origin::OnPremises, OnPremisesMailbox, Led) => {
            ("on-premises mailbox, by forward or group", "hybrid.on_premises", to_on_premises)
        }
        (CLOUD | CLOUD_SECOND, _, OnPremisesMailbox, _) => {
            ("on-premises mailbox", "hybrid.on_premises", to_on_premises)
        }
        (CLOUD | CLOUD_SECOND, Origin::OnPremises, Bound::Internet, _) => {
            ("to the Internet, and it has been on-premises", "address space", never_back)
        }
        (CLOUD | CLOUD_SECOND, _, Bound::Internet, _) => match hybrid.internet {
            Internet::Direct => ("to the Internet", "hybrid.internet = \"direct\"", by_space),
            Internet::OtherPremises => {
                ("to the Internet", "hybrid.on_premises first, by internet = \"on-premises\"", to_on_premises)
            }
        },
        (CLOUD | CLOUD_SECOND, Origin::OnPremises, Unknown, _) => ("unknown on both premises", "none", Way::Refuse),
        (CLOUD | CLOUD_SECOND, _, Unknown, _) => {
            ("unknown here, so for the other premises", "hybrid.on_premises", to_on_premises)
        }
        (CLOUD | CLOUD_SECOND, _, Postmaster, _) => ("postmaster, to the own side", "hybrid.cloud", to_cloud),
    };
    Row { row, key, way }
}

/// `from the Internet`, and so on.
pub fn from_words(origin: Origin) -> &'static str {
    match origin {
        Origin::Internet => "from the Internet",
        Origin::OnPremises => "from on-premises",
        Origin::Cloud => "from the cloud",
        Origin::Partner => "from a partner",
        Origin::Client => "from a client",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::route::world::World;

    /// What the interface's table speaks of: a mailbox on each side, each also reached by a forward and a group, the
    /// Internet by name, forward and group, somebody whom nobody knows, and postmaster.
    fn organization(world: World) -> World {
        world
            .accepted("relay.example", "internal-relay")
            .mailbox("anna@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .forward("fwd-anna@contoso.com", "anna@contoso.com")
            .forward("fwd-david@contoso.com", "david@contoso.com")
            .forward("kate@contoso.com", "kate@tailspintoys.com")
            .group("team@contoso.com", "anna@contoso.com david@contoso.com eve@fabrikam.com")
            .alias("a.s@contoso.com", "anna@contoso.com")
    }

    const TO: [&str; 9] = [
        "anna@contoso.com",
        "a.s@contoso.com",
        "david@contoso.com",
        "fwd-anna@contoso.com",
        "fwd-david@contoso.com",
        "kate@contoso.com",
        "eve@fabrikam.com",
        "nobody@relay.example",
        "postmaster@contoso.com",
    ];

    const ON: &str = "to-on-premises";
    const CLOUD: &str = "to-cloud";
    const OUT: &str = "to-internet";
    const UNKNOWN: &str = "550 5.1.1";
    const DENIED: &str = "550 5.7.1";
    const DISAGREE: &str = "550 5.4.6";

    /// The connector of each of [`TO`], or the refusal's code; and of the group's three members.
    fn check(world: &World, origins: &[&str], expected: [&str; 9], group: [&str; 3]) {
        for origin in origins {
            for (to, expected) in TO.iter().zip(expected) {
                let shown = world.route(origin, to);
                let got = shown.split(": ").next().unwrap();
                assert_eq!(got, expected, "{origin} -> {to}: {shown}");
            }
            let shown = world.route(origin, "team@contoso.com");
            let got: Vec<_> = shown.split("; ").map(|end| end.split(": ").next().unwrap()).collect();
            assert_eq!(got, group, "{origin} -> team: {shown}");
        }
    }

    #[test]
    fn every_row_for_every_origin_on_the_on_premises_side() {
        for (internet, out) in [("direct", OUT), ("cloud", CLOUD)] {
            let world = organization(World::on_premises()).internet(internet);
            let row = |eve, nobody| [ON, ON, CLOUD, ON, CLOUD, out, eve, nobody, ON];
            let group = [ON, CLOUD, out];
            // Unknown here, so for the cloud.
            check(&world, &["internet", "partner"], row(DENIED, CLOUD), group);
            check(&world, &["on-premises", "client"], row(out, CLOUD), group);
            // Unless it came from there.
            check(&world, &["cloud"], row(out, UNKNOWN), group);
        }
    }

    #[test]
    fn every_row_for_every_origin_on_the_cloud_side() {
        for (internet, out) in [("direct", OUT), ("on-premises", ON)] {
            for (first_hop, cloud) in [("here", CLOUD), ("on-premises", ON)] {
                let world = organization(World::cloud()).internet(internet).first_hop(first_hop);
                // From the Internet to a mailbox of the organization: there first, if it says so.
                let from_outside = [ON, ON, cloud, ON, cloud, out, DENIED, ON, CLOUD];
                check(&world, &["internet", "partner"], from_outside, [ON, cloud, out]);
                // Never the long way.
                let from_inside = [ON, ON, CLOUD, ON, CLOUD, out, out, ON, CLOUD];
                check(&world, &["cloud", "client"], from_inside, [ON, CLOUD, out]);
                // It has been on-premises: what is there by name should not have come, and what is for the Internet
                // leaves here, whatever `internet` says.
                let from_there = [DISAGREE, DISAGREE, CLOUD, ON, CLOUD, OUT, OUT, UNKNOWN, CLOUD];
                check(&world, &["on-premises"], from_there, [ON, CLOUD, OUT]);
            }
        }
    }

    #[test]
    fn a_cloud_mailbox_keeps_its_address_on_the_cloud_side() {
        let world = World::cloud()
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "dora.x@contoso.mail.onmicrosoft.com")
            .alias("d@contoso.com", "david@contoso.com");
        for origin in ["internet", "on-premises", "cloud", "partner", "client"] {
            for (to, expected) in [
                ("david@contoso.com", "to-cloud: david@contoso.com"),
                ("David+news@contoso.com", "to-cloud: David+news@contoso.com"),
                ("dora@contoso.com", "to-cloud: dora@contoso.com"),
                ("d@contoso.com", "to-cloud: david@contoso.com"),
            ] {
                assert_eq!(world.route(origin, to), expected, "{origin} -> {to}");
            }
        }
        let there_first = world.first_hop("on-premises");
        assert_eq!(there_first.route("internet", "dora@contoso.com"), "to-on-premises: dora@contoso.com");
    }

    #[test]
    fn the_rows_say_side_origin_and_key() {
        let direct = organization(World::cloud());
        let central = organization(World::cloud()).internet("on-premises").first_hop("on-premises");
        for (world, origin, to, expected) in [
            (&direct, "internet", "david@contoso.com", "side cloud, from the Internet, cloud mailbox: hybrid.cloud"),
            (
                &central,
                "partner",
                "david@contoso.com",
                "side cloud, from a partner, cloud mailbox: hybrid.on_premises first, by inbound_first_hop = \"on-premises\"",
            ),
            (
                &central,
                "client",
                "eve@fabrikam.com",
                "side cloud, from a client, to the Internet: hybrid.on_premises first, by internet = \"on-premises\"",
            ),
            (
                &central,
                "on-premises",
                "eve@fabrikam.com",
                "side cloud, from on-premises, to the Internet, and it has been on-premises: address space",
            ),
            (
                &direct,
                "on-premises",
                "fwd-anna@contoso.com",
                "anna@contoso.com: side cloud, from on-premises, on-premises mailbox, by forward or group: hybrid.on_premises",
            ),
            (
                &direct,
                "on-premises",
                "anna@contoso.com",
                "side cloud, from on-premises, on-premises mailbox, though it was sent here from there: none",
            ),
        ] {
            let reasons = world.reasons(origin, to).concat();
            assert!(reasons.iter().any(|reason| reason == expected), "{origin} -> {to}: {reasons:?}");
        }
    }

    #[test]
    fn what_has_been_on_premises_does_not_go_back_by_an_address_space_either() {
        let world =
            organization(World::cloud()).internet("on-premises").serving("to-on-premises", &["fabrikam.com", "*"]);
        assert_eq!(world.route("on-premises", "eve@fabrikam.com"), "to-internet: eve@fabrikam.com");
        assert_eq!(
            world.reasons("on-premises", "eve@fabrikam.com")[0].last().unwrap(),
            "address space *: to-internet (cost 1); lost: to-on-premises by fabrikam.com (the message has been there), \
             to-on-premises by * (the message has been there)"
        );
        // Nothing but that connector: then nowhere, and not in circles.
        let only =
            organization(World::cloud()).serving("to-on-premises", &["*"]).serving("to-internet", &["example.org"]);
        assert_eq!(only.route("on-premises", "eve@fabrikam.com"), "550 5.4.4");
        assert_eq!(only.route("on-premises", "kate@contoso.com"), "550 5.4.4");
        assert_eq!(only.route("cloud", "eve@fabrikam.com"), "to-on-premises: eve@fabrikam.com");
    }

    proptest! {
        /// Whatever the address spaces, the keys and the way to the address: never back where it has been.
        #[test]
        fn internet_mail_that_has_been_on_premises_never_goes_back(
            internet in proptest::sample::select(vec!["direct", "on-premises"]),
            first_hop in proptest::sample::select(vec!["here", "on-premises"]),
            there in proptest::sample::subsequence(vec!["*", "*.example", "a.example;5", "b.example"], 0..=4),
            out in proptest::sample::subsequence(vec!["*;7", "*.example", "a.example", "b.example;3"], 0..=4),
            to in "[a-c]\\.(example|test)",
            by in 0..4_usize,
        ) {
            let member = format!("eve@{to}");
            let world = World::cloud()
                .mailbox("anna@contoso.com")
                .forward("kate@contoso.com", &member)
                .group("team@contoso.com", &format!("kate@contoso.com {member}"))
                .alias("k@contoso.com", "kate@contoso.com")
                .internet(internet)
                .first_hop(first_hop)
                .serving("to-on-premises", &there)
                .serving("to-internet", &out);
            let asked = [&member[..], "kate@contoso.com", "team@contoso.com", "k@contoso.com"][by];
            let shown = world.route("on-premises", asked);
            prop_assert!(!shown.contains("to-on-premises"), "{}: {}", asked, shown);
            // And it does go where an address space leads elsewhere.
            if out.contains(&"*;7") {
                prop_assert_eq!(shown, format!("to-internet: {member}"));
            }
        }
    }
}
