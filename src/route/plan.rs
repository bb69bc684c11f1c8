//! Bifurcation: recipients with equal connector and hop share one copy.
//!
//! Copies and their recipients keep the order in which they were first named. Who is reached twice under one address,
//! directly and through a group for instance, or under two spellings of a mailbox of ours, gets the message once, and all
//! wishes for reports are kept. Where several of its own names came with such a wish, spellings or aliases, each of them
//! stays in the copy, with one address: `deliver` says it once, and each name gets its report.

use super::{CopyRecipient, HopCopy, Reached, Routed};
use crate::message::{Address, Notify};
use crate::random::HashMap;

/// Up to so many recipients it is faster to look at all of them than to hash them.
const FEW: usize = 16;

/// One copy for each next hop.
pub fn plan(mut routed: Vec<Routed>) -> Vec<HopCopy> {
    unify_spellings(&mut routed);
    if routed.len() <= FEW { plan_few(routed) } else { plan_many(routed) }
}

/// Mailboxes of ours have no case in their names: of several spellings the first one holds. The routes' reasons say whose
/// mailboxes they are; where those are taken out before [`plan()`], this comes first.
pub fn unify_spellings(routed: &mut [Routed]) {
    if routed.len() <= FEW {
        for at in 1..routed.len() {
            let (before, rest) = routed.split_at_mut(at);
            if let Some(first) = before.iter().find(|first| is_other_spelling(first, &rest[0])) {
                respell(&mut rest[0], first.route.to.clone());
            }
        }
        return;
    }
    // The first of each spelling that counts, by address without regard to case.
    let mut firsts: HashMap<String, Vec<usize>> = HashMap::default();
    for at in 0..routed.len() {
        if !is_ours(&routed[at]) {
            continue;
        }
        let alike = firsts.entry(routed[at].route.to.key()).or_default();
        match alike.iter().find(|first| has_same_way(&routed[**first], &routed[at])) {
            Some(&first) if routed[first].route.to == routed[at].route.to => {}
            Some(&first) => {
                let to = routed[first].route.to.clone();
                respell(&mut routed[at], to);
            }
            None => alike.push(at),
        }
    }
}

fn has_same_way(one: &Routed, other: &Routed) -> bool {
    one.route.via == other.route.via && one.route.hop == other.route.hop
}

/// Only the host of a mailbox may say that its local part has no case. RFC 5321 section 2.4.
fn is_other_spelling(first: &Routed, again: &Routed) -> bool {
    let (one, other) = (&first.route.to, &again.route.to);
    one.domain() == other.domain()
        && one.local().len() == other.local().len()
        && one != other
        && has_same_way(first, again)
        && is_ours(first)
        && is_ours(again)
        && one.key() == other.key()
}

/// The directory knows it, so it is a mailbox whose name has no case.
fn is_ours(one: &Routed) -> bool {
    one.route.because.iter().any(|reason| reason.found().is_some())
}

fn respell(one: &mut Routed, to: Address) {
    one.recipient.address = to.clone();
    one.route.to = to;
}

fn plan_few(routed: Vec<Routed>) -> Vec<HopCopy> {
    let mut copies: Vec<HopCopy> = Vec::with_capacity(1);
    for one in routed {
        let Some(at) = copies.iter().position(|copy| copy.via == one.route.via && copy.hop == one.route.hop) else {
            copies.push(copy_for(one));
            continue;
        };
        let recipients = &mut copies[at].recipients;
        let known = |known: &usize| recipients[*known].recipient.address == one.recipient.address;
        let known: Vec<usize> = (0..recipients.len()).filter(known).collect();
        let _ = place(recipients, &known, one);
    }
    copies
}

fn plan_many(routed: Vec<Routed>) -> Vec<HopCopy> {
    let mut copies: Vec<HopCopy> = Vec::new();
    let mut hops = HashMap::default();
    // The numbers of a recipient in its copy, by copy and address.
    let mut numbers: HashMap<(usize, Address), Vec<usize>> = HashMap::default();
    for one in routed {
        let at = *hops.entry((one.route.via.clone(), one.route.hop.clone())).or_insert_with(|| {
            copies.push(HopCopy { via: one.route.via.clone(), hop: one.route.hop.clone(), recipients: Vec::new() });
            copies.len() - 1
        });
        let known = numbers.entry((at, one.recipient.address.clone())).or_default();
        if let Some(number) = place(&mut copies[at].recipients, known, one) {
            known.push(number);
        }
    }
    copies
}

fn copy_for(one: Routed) -> HopCopy {
    let Routed { asked, recipient, route, .. } = one;
    HopCopy { via: route.via, hop: route.hop, recipients: vec![CopyRecipient { asked, recipient }] }
}

/// Puts a recipient into its copy, where `known` are the numbers of those with its address. Gives its number if it is
/// one more.
fn place(recipients: &mut Vec<CopyRecipient>, known: &[usize], again: Routed) -> Option<usize> {
    let Routed { asked, recipient, reached, .. } = again;
    let again = CopyRecipient { asked, recipient };
    let Some(&first) = known.first() else {
        recipients.push(again);
        return Some(recipients.len() - 1);
    };
    let wish = again.recipient.notify;
    // Reports go by the name that was given with the wish for them.
    let silent = |known: &&usize| recipients[**known].recipient.notify == Notify::Never;
    if let Some(&silent) = known.iter().find(silent)
        && wish != Notify::Never
    {
        recipients[silent] = again;
        return None;
    }
    let is_same = |known: &&usize| {
        let known = &recipients[**known];
        known.asked == again.asked && known.recipient.orcpt == again.recipient.orcpt
    };
    let same = known.iter().find(is_same);
    // The sender does not know whom groups and forwards lead to: who has the message under another name is not told of once
    // more for those.
    if same.is_none() && reached == Reached::ByName && wish != Notify::Never {
        recipients.push(again);
        return Some(recipients.len() - 1);
    }
    let notify = &mut recipients[*same.unwrap_or(&first)].recipient.notify;
    *notify = both(*notify, wish);
    None
}

/// What satisfies both wishes. RFC 3461 has no rule for it: the sender named the recipient twice, so is told of
/// whatever one of the two asked for.
pub fn both(one: Notify, other: Notify) -> Notify {
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
            reached: Reached::ByName,
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

    /// Two names, whether the directory knows them, and how many recipients the hop is told.
    #[test]
    fn the_same_mailbox_twice_is_one_delivery() {
        for (one, other, ours, expected) in [
            ("anna@contoso.com", "anna@contoso.com", true, 1),
            ("anna@contoso.com", "anna@CONTOSO.com", false, 1),
            ("anna@contoso.com", "\"anna\"@contoso.com", false, 1),
            ("anna@contoso.com", "ANNA@contoso.com", true, 1),
            ("j\u{fc}rgen@contoso.com", "J\u{dc}RGEN@contoso.com", true, 1),
            ("anna@fabrikam.com", "ANNA@fabrikam.com", false, 2),
            ("anna@contoso.com", "anna@fabrikam.com", true, 2),
        ] {
            let all = || {
                vec![routed("a", Hop::SmartHosts, one, UNSAID, ours), routed("a", Hop::SmartHosts, other, UNSAID, ours)]
            };
            let many = || {
                let others = (0..FEW).map(|n| routed("b", Hop::SmartHosts, &format!("u{n}@contoso.com"), UNSAID, true));
                all().into_iter().chain(others).collect::<Vec<_>>()
            };
            for copies in [plan(all()), plan(many())] {
                assert_eq!(copies[0].recipients.len(), expected, "{one} {other}");
                assert_eq!(copies[0].recipients[0].recipient.address.to_string(), one, "{one} {other}");
            }
        }
    }

    /// What was asked for, with its wish; and what stands in the copy.
    #[test]
    fn each_name_of_a_mailbox_keeps_its_wish_for_reports() {
        let failure = Notify::On { success: false, failure: true, delay: false };
        let success = Notify::On { success: true, failure: false, delay: false };
        let named = |name: &str, notify: Notify| {
            let to = name.strip_prefix("team").map_or(name, |_| "anna@contoso.com");
            let asked = Address::parse(name).unwrap();
            let orcpt = OriginalRecipient { kind: "rfc822".into(), address: name.into() };
            let one = routed("a", Hop::SmartHosts, to, notify, true);
            let reached = if to == name { Reached::ByName } else { Reached::Led };
            Routed { asked, recipient: Recipient { orcpt: Some(orcpt), ..one.recipient.clone() }, reached, ..one }
        };
        for (all, expected) in [
            (vec![("anna@contoso.com", UNSAID), ("ANNA@contoso.com", UNSAID)], "anna Unsaid, ANNA Unsaid"),
            (vec![("ANNA@contoso.com", failure), ("anna@contoso.com", success)], "ANNA failure, anna success"),
            (vec![("anna@contoso.com", UNSAID), ("team@contoso.com", UNSAID)], "anna Unsaid"),
            (vec![("anna@contoso.com", failure), ("team@contoso.com", success)], "anna both"),
            (vec![("team@contoso.com", failure), ("anna@contoso.com", success)], "team failure, anna success"),
            (vec![("anna@contoso.com", failure), ("anna@contoso.com", success)], "anna both"),
            (vec![("anna@contoso.com", UNSAID), ("ANNA@contoso.com", Notify::Never)], "anna Unsaid"),
            (vec![("anna@contoso.com", Notify::Never), ("ANNA@contoso.com", UNSAID)], "ANNA Unsaid"),
            (vec![("anna@contoso.com", Notify::Never), ("ANNA@contoso.com", Notify::Never)], "anna Never"),
        ] {
            let first = all[0].0.replace("team", "anna");
            let all: Vec<_> = all.iter().map(|(name, notify)| named(name, *notify)).collect();
            let copies = plan(all.clone());
            assert_eq!(copies.len(), 1, "{expected}");
            let mut unified = all;
            unify_spellings(&mut unified);
            assert_eq!(plan_many(unified), copies, "{expected}");
            let shown = copies[0].recipients.iter().map(|one| {
                assert_eq!(one.recipient.address.to_string(), first, "{expected}");
                assert_eq!(&*one.recipient.orcpt.as_ref().unwrap().address, one.asked.to_string());
                let wish = match one.recipient.notify {
                    Notify::On { success: true, failure: true, .. } => "both".to_owned(),
                    Notify::On { success: true, .. } => "success".to_owned(),
                    Notify::On { .. } => "failure".to_owned(),
                    other => format!("{other:?}"),
                };
                format!("{} {wish}", one.asked.local())
            });
            assert_eq!(shown.collect::<Vec<_>>().join(", "), expected);
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
