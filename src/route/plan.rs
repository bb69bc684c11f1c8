//! Bifurcation: recipients with equal connector and hop share one copy.
use super::*;
/// One copy per next hop.
pub fn plan(routed: Vec<Routed>) -> Vec<HopCopy> {
    let mut copies: Vec<HopCopy> = Vec::new();
    for one in routed {
        let r = CopyRecipient { asked: one.asked, recipient: one.recipient };
        match copies.iter_mut().find(|c| c.via == one.route.via && c.hop == one.route.hop) {
            Some(c) => {
                if !c.recipients.iter().any(|x| x.recipient.address == r.recipient.address) {
                    c.recipients.push(r)
                }
            }
            None => copies.push(HopCopy { via: one.route.via, hop: one.route.hop, recipients: vec![r] }),
        }
    }
    copies
}
