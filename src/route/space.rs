//! Address spaces: most specific, then cheapest, then first in the file.
//!
//! A disabled connector is not considered, but named among the losers, so that whoever wonders why mail goes another
//! way finds it. Where nothing but disabled connectors matches, the mail can wait for one (451) rather than be
//! returned. Size is no criterion: a connector too small for a message is not passed over for a weaker one.

use std::cmp::Reverse;
use std::sync::Arc;

use super::Reason;
use crate::config::value::Pattern;
use crate::config::{AddressSpace, ConnectorName, SendConnector};
use crate::message::Domain;

/// What the address spaces say of a domain.
#[derive(Debug)]
pub enum Choice<'a> {
    /// This connector, and the reason.
    Won(&'a Arc<SendConnector>, Reason),
    /// The best of those that match is this one, and all are disabled.
    Disabled(ConnectorName),
    /// Nothing matches.
    Nothing,
}

/// Chooses the send connector for `domain`.
pub fn choose<'a>(connectors: &'a [Arc<SendConnector>], domain: &Domain) -> Choice<'a> {
    choose_without(connectors, domain, None)
}

/// The same, but never `barred`: that leads to where the message has been. It stands among those that lost.
pub fn choose_without<'a>(
    connectors: &'a [Arc<SendConnector>],
    domain: &Domain,
    barred: Option<&ConnectorName>,
) -> Choice<'a> {
    let is_barred = |connector: &SendConnector| barred == Some(&connector.name);
    let matching = || {
        connectors.iter().flat_map(|connector| {
            let spaces = connector.serves.iter().filter(|space| matches(&space.pattern, domain));
            spaces.map(move |space| (connector, space))
        })
    };
    // `min_by_key` gives the first of equals: the order in the file.
    let rank = |(_, space): &(&Arc<SendConnector>, &AddressSpace)| (Reverse(specificity(&space.pattern)), space.cost);
    let open = || matching().filter(|(connector, _)| !is_barred(connector));
    let Some((via, won)) = open().filter(|(connector, _)| connector.enabled).min_by_key(rank) else {
        return match open().min_by_key(rank) {
            Some((connector, _)) => Choice::Disabled(connector.name.clone()),
            None => Choice::Nothing,
        };
    };
    let lost = matching().filter(|(connector, space)| !(Arc::ptr_eq(connector, via) && std::ptr::eq(*space, won)));
    let why = |connector: &SendConnector, space: &AddressSpace| match is_barred(connector) {
        true => "the message has been there",
        false => why(connector, space, won),
    };
    let lost = lost.map(|(connector, space)| (connector.name.clone(), space.clone(), why(connector, space)));
    Choice::Won(via, Reason::Space { via: via.name.clone(), won: won.clone(), lost: lost.collect() })
}

/// Why `space` lost against `won`.
fn why(connector: &SendConnector, space: &AddressSpace, won: &AddressSpace) -> &'static str {
    if !connector.enabled {
        "disabled"
    } else if specificity(&space.pattern) < specificity(&won.pattern) {
        "less specific"
    } else if space.cost > won.cost {
        "costs more"
    } else {
        "later in the file"
    }
}

fn matches(pattern: &Pattern, domain: &Domain) -> bool {
    match pattern {
        Pattern::Exact(exact) => exact == domain,
        Pattern::Suffix(suffix) => domain.is_within(suffix),
        Pattern::Any => true,
    }
}

/// The domain itself beats any pattern with `*`, and of those the longer name wins; plain `*` is last.
fn specificity(pattern: &Pattern) -> (u8, usize) {
    match pattern {
        Pattern::Exact(_) => (2, 0),
        Pattern::Suffix(domain) => (1, domain.as_str().len()),
        Pattern::Any => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::world::World;

    #[test]
    fn the_most_specific_then_the_cheapest_then_the_first_in_the_file() {
        let world = World::plain()
            .connector("all", &["*;5"])
            .connector("all-cheap", &["*"])
            .connector("below", &["*.example.com;1"])
            .connector("deeper", &["*.b.example.com;50"])
            .connector("exact", &["example.com;90", "example.org"])
            .connector("exact-first", &["example.net;3"])
            .connector("exact-second", &["example.net;3"])
            .connector("exact-cheap", &["example.edu;2", "example.edu;7"])
            .connector("off", &["example.org;1", "example.mil", "a.example.com"])
            .disabled("off");
        for (domain, expected) in [
            ("fabrikam.com", "address space *: all-cheap (cost 1); lost: all by * (costs more)"),
            (
                "example.com",
                "address space example.com: exact (cost 90); lost: all by * (less specific), all-cheap by * (less specific), \
                 below by *.example.com (less specific)",
            ),
            (
                "x.example.com",
                "address space *.example.com: below (cost 1); lost: all by * (less specific), all-cheap by * (less specific)",
            ),
            (
                "a.example.com",
                "address space *.example.com: below (cost 1); lost: all by * (less specific), all-cheap by * (less specific), \
                 off by a.example.com (disabled)",
            ),
            (
                "x.b.example.com",
                "address space *.b.example.com: deeper (cost 50); lost: all by * (less specific), all-cheap by * \
                 (less specific), below by *.example.com (less specific)",
            ),
            ("notexample.com", "address space *: all-cheap (cost 1); lost: all by * (costs more)"),
            (
                "example.net",
                "address space example.net: exact-first (cost 3); lost: all by * (less specific), all-cheap by * \
                 (less specific), exact-second by example.net (later in the file)",
            ),
            (
                "example.edu",
                "address space example.edu: exact-cheap (cost 2); lost: all by * (less specific), all-cheap by * \
                 (less specific), exact-cheap by example.edu (costs more)",
            ),
            (
                "example.org",
                "address space example.org: exact (cost 1); lost: all by * (less specific), all-cheap by * (less specific), \
                 off by example.org (disabled)",
            ),
            ("[192.0.2.1]", "address space *: all-cheap (cost 1); lost: all by * (costs more)"),
        ] {
            match choose(&world.config.send_connectors, &Domain::parse(domain).unwrap()) {
                Choice::Won(_, reason) => assert_eq!(reason.to_string(), expected, "{domain}"),
                other => panic!("{domain}: {other:?}"),
            }
        }
    }

    #[test]
    fn nothing_but_disabled_connectors_is_not_nothing() {
        let world = World::plain().connector("off", &["example.org"]).disabled("off");
        let choose = |domain| choose(&world.config.send_connectors, &Domain::parse(domain).unwrap());
        assert!(matches!(choose("example.org"), Choice::Disabled(name) if name.to_string() == "off"));
        assert!(matches!(choose("example.com"), Choice::Nothing));
    }
}
