//! Bifurcation: recipients with equal connector and hop share one copy.
//!
//! Copies and their recipients keep the order in which they were first named. Who is reached under one address
//! twice, directly and through a group for instance, gets the message once, and both wishes for reports are kept.

use super::{CopyRecipient, HopCopy, Routed};
use crate::message::{Address, Notify};
use crate::random::HashMap;

/// Up to so many recipients it is faster to look at all of them than to hash them.
const FEW: usize = 16;

/// One copy for each next hop.
pub fn plan(routed: Vec<Routed>) -> Vec<HopCopy> {
    if routed.len() <= FEW { plan_few(routed) } else { plan_many(routed) }
}

fn plan_few(routed: Vec<Routed>) -> Vec<HopCopy> {
    let mut copies: Vec<HopCopy> = Vec::with_capacity(1);
    // Which recipients are mailboxes of the organization, copy by copy. A bit is enough: there are few.
    let mut ours: Vec<u16> = Vec::with_capacity(1);
    for one in routed {
        let own = is_ours(&one);
        let Some(at) = copies.iter().position(|copy| copy.via == one.route.via && copy.hop == one.route.hop) else {
            copies.push(copy_for(one));
            ours.push(u16::from(own));
            continue;
        };
        let recipients = &mut copies[at].recipients;
        let known = recipients.iter().enumerate().position(|(number, known)| {
            same(&known.recipient.address, &one.recipient.address, own && ours[at] & (1 << number) != 0)
        });
        match known {
            Some(known) => merge(&mut recipients[known], one),
            None => {
                ours[at] |= u16::from(own) << recipients.len();
                recipients.push(recipient(one));
            }
        }
    }
    copies
}

fn plan_many(routed: Vec<Routed>) -> Vec<HopCopy> {
    let mut copies: Vec<HopCopy> = Vec::new();
    let mut hops = HashMap::default();
    // The number of a recipient in its copy, and whether it is ours, by copy and address without regard to case.
    let mut numbers: HashMap<(usize, String), Vec<(usize, bool)>> = HashMap::default();
    for one in routed {
        let own = is_ours(&one);
        let at = *hops.entry((one.route.via.clone(), one.route.hop.clone())).or_insert_with(|| {
            copies.push(HopCopy { via: one.route.via.clone(), hop: one.route.hop.clone(), recipients: Vec::new() });
            copies.len() - 1
        });
        let recipients = &mut copies[at].recipients;
        let alike = numbers.entry((at, one.recipient.address.key())).or_default();
        let known = alike
            .iter()
            .find(|(number, ours)| same(&recipients[*number].recipient.address, &one.recipient.address, own && *ours));
        match known {
            Some((number, _)) => merge(&mut recipients[*number], one),
            None => {
                alike.push((recipients.len(), own));
                recipients.push(recipient(one));
            }
        }
    }
    copies
}

fn copy_for(one: Routed) -> HopCopy {
    let Routed { asked, recipient, route } = one;
    HopCopy { via: route.via, hop: route.hop, recipients: vec![CopyRecipient { asked, recipient }] }
}

fn recipient(one: Routed) -> CopyRecipient {
    CopyRecipient { asked: one.asked, recipient: one.recipient }
}

/// The directory knows it, so it is a mailbox whose name has no case.
fn is_ours(one: &Routed) -> bool {
    one.route.because.iter().any(|reason| reason.found().is_some())
}

/// Only the host of a mailbox may say that its local part has no case. RFC 5321 section 2.4.
fn same(one: &Address, other: &Address, ignore_case: bool) -> bool {
    one == other || (ignore_case && one.domain() == other.domain() && one.key() == other.key())
}

fn merge(known: &mut CopyRecipient, again: Routed) {
    // Reports go by the name that was given with the wish for them.
    let silent = known.recipient.notify == Notify::Never && again.recipient.notify != Notify::Never;
    let notify = both(known.recipient.notify, again.recipient.notify);
    if silent {
        known.asked = again.asked;
        known.recipient.orcpt = again.recipient.orcpt;
    }
    known.recipient.notify = notify;
}

/// What satisfies both wishes. RFC 3461 has no rule for it: the sender named the recipient twice, so is told of
/// whatever one of the two asked for.
fn both(one: Notify, other: Notify) -> Notify {
    match (one, other) {
        (Notify::Never, wish) | (wish, Notify::Never) => wish,
        (Notify::Unsaid, Notify::Unsaid) => Notify::Unsaid,
        (one, other) => Notify::On {
            success: one.success() || other.success(),
            failure: one.failure() || other.failure(),
            delay: one.delay() || other.delay(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::ConnectorName;
    use crate::message::{OriginalRecipient, Recipient};
    use crate::route::{Hop, Reason, Route};

    fn routed(via: &str, hop: Hop, to: &str, notify: Notify, ours: bool) -> Routed {
        let to = Address::parse(to).unwrap();
        let found = Reason::Found { source: "recipients.csv".into(), kind: "cloud mailbox".into(), untagged: false };
        Routed {
            asked: Address::parse("asked@contoso.com").unwrap(),
            recipient: Recipient { address: to.clone(), notify, orcpt: None },
            route: Route {
                via: ConnectorName(via.into()),
                hop,
                to,
                because: if ours { vec![found] } else { Vec::new() },
            },
        }
    }

    fn mx(domain: &str) -> Hop {
        Hop::Mx(crate::message::Domain::parse(domain).unwrap())
    }

    fn shown(copies: &[HopCopy]) -> Vec<String> {
        let recipients = |copy: &HopCopy| {
            copy.recipients.iter().map(|one| one.recipient.address.to_string()).collect::<Vec<_>>().join(" ")
        };
        copies.iter().map(|copy| format!("{}, {}: {}", copy.via, copy.hop, recipients(copy))).collect()
    }

    const UNSAID: Notify = Notify::Unsaid;

    #[test]
    fn one_copy_for_each_next_hop_in_the_order_they_were_named() {
        let all = vec![
            routed("to-cloud", Hop::SmartHosts, "david@c.example", UNSAID, true),
            routed("to-internet", mx("b.example"), "x@b.example", UNSAID, false),
            routed("to-on-premises", Hop::SmartHosts, "anna@contoso.com", UNSAID, true),
            routed("to-internet", mx("a.example"), "x@a.example", UNSAID, false),
            routed("to-cloud", Hop::SmartHosts, "dora@c.example", UNSAID, true),
            routed("to-partner", mx("a.example"), "z@a.example", UNSAID, false),
            routed("to-internet", mx("b.example"), "y@b.example", UNSAID, false),
        ];
        let expected = [
            "to-cloud, its smart hosts: david@c.example dora@c.example",
            "to-internet, the MX of b.example: x@b.example y@b.example",
            "to-on-premises, its smart hosts: anna@contoso.com",
            "to-internet, the MX of a.example: x@a.example",
            "to-partner, the MX of a.example: z@a.example",
        ];
        assert_eq!(shown(&plan_few(all.clone())), expected);
        assert_eq!(shown(&plan_many(all)), expected);
        assert_eq!(plan(Vec::new()), []);
    }

    #[test]
    fn c065_the_same_mailbox_twice_is_one_delivery() {
        for (one, other, ours, expected) in [
            ("anna@contoso.com", "anna@contoso.com", true, 1),
            ("anna@contoso.com", "anna@CONTOSO.com", false, 1),
            ("anna@contoso.com", "\"anna\"@contoso.com", false, 1),
            ("anna@contoso.com", "ANNA@contoso.com", true, 1),
            ("anna@fabrikam.com", "ANNA@fabrikam.com", false, 2),
            ("anna@contoso.com", "anna@fabrikam.com", true, 2),
        ] {
            let all = || {
                vec![routed("a", Hop::SmartHosts, one, UNSAID, ours), routed("a", Hop::SmartHosts, other, UNSAID, ours)]
            };
            for copies in [plan_few(all()), plan_many(all())] {
                assert_eq!(copies.len(), 1, "{one} {other}");
                assert_eq!(copies[0].recipients.len(), expected, "{one} {other}");
                assert_eq!(copies[0].recipients[0].recipient.address.to_string(), one, "{one} {other}");
            }
        }
    }

    #[test]
    fn both_wishes_for_reports_are_kept() {
        let on = |success, failure, delay| Notify::On { success, failure, delay };
        for (one, other, expected) in [
            (Notify::Never, Notify::Never, Notify::Never),
            (Notify::Never, UNSAID, UNSAID),
            (UNSAID, Notify::Never, UNSAID),
            (Notify::Never, on(true, false, false), on(true, false, false)),
            (UNSAID, UNSAID, UNSAID),
            (UNSAID, on(true, false, false), on(true, true, true)),
            (on(true, false, false), on(false, true, false), on(true, true, false)),
        ] {
            assert_eq!(both(one, other), expected, "{one:?} {other:?}");
            assert_eq!(both(other, one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn reports_go_by_the_name_that_asked_for_them() {
        let mut again = routed("a", Hop::SmartHosts, "anna@contoso.com", UNSAID, true);
        again.asked = Address::parse("team@contoso.com").unwrap();
        again.recipient.orcpt = Some(OriginalRecipient { kind: "rfc822".into(), address: "team@contoso.com".into() });
        let first = routed("a", Hop::SmartHosts, "anna@contoso.com", Notify::Never, true);
        let copies = plan(vec![first, again.clone()]);
        assert_eq!(copies[0].recipients, [CopyRecipient { asked: again.asked, recipient: again.recipient }]);
    }

    proptest! {
        #[test]
        fn everybody_is_in_exactly_one_copy_of_the_right_hop(
            picks in proptest::collection::vec((0..3_usize, 0..3_usize, 0..6_usize), 0..60),
        ) {
            let all: Vec<Routed> = picks
                .iter()
                .map(|(via, hop, who)| {
                    let hop = [Hop::SmartHosts, mx("a.example"), mx("b.example")][*hop].clone();
                    routed(["x", "y", "z"][*via], hop, &format!("u{who}@contoso.com"), UNSAID, true)
                })
                .collect();
            let copies = plan(all.clone());
            prop_assert_eq!(&copies, &plan_many(all.clone()));
            for one in &all {
                let places = copies.iter().filter(|copy| {
                    let there = copy.recipients.iter().filter(|there| there.recipient.address == one.route.to).count();
                    copy.via == one.route.via && copy.hop == one.route.hop && there == 1
                });
                prop_assert_eq!(places.count(), 1);
            }
            for (number, copy) in copies.iter().enumerate() {
                prop_assert!(!copy.recipients.is_empty());
                prop_assert!(copies[..number].iter().all(|other| other.via != copy.via || other.hop != copy.hop));
                for recipient in &copy.recipients {
                    let known = |one: &Routed| {
                        one.route.via == copy.via && one.route.hop == copy.hop && one.route.to == recipient.recipient.address
                    };
                    prop_assert!(all.iter().any(known));
                }
            }
        }
    }
}
