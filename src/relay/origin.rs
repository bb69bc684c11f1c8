//! Where a message counts as coming from, once its header is known.
//!
//! A connector may list the organizations whose mail it is for. Where XOORG did not name the author's on MAIL, the header
//! does, and that is there only when all recipients have been accepted. A message of somebody else then counts as from
//! the Internet: all of its recipients are resolved again, and it is taken as a whole or refused as a whole.

use std::sync::Arc;

use tracing::info;

use super::{Peer, ROUTED_LIMIT, Relay, Snapshot, work};
use crate::config::ReceiveConnector;
use crate::message::{Envelope, header};
use crate::route::resolve::{Asking, Resolution, Rules};
use crate::route::trust::{Clause, Verdict, Words, originator};
use crate::route::{Refusal, Routed};
use crate::smtp::Reply;

impl Relay {
    /// May a stranger, who counts as from the Internet whatever the connector, send as this sender?
    ///
    /// # Errors
    /// The reply that says why not.
    pub fn check_stranger(&self, snapshot: &Snapshot, envelope: &Envelope) -> Result<(), Reply> {
        let rules = Rules { config: &snapshot.config, directory: snapshot.directory.as_ref() };
        rules.check_stranger(envelope.sender.as_ref())
    }

    /// What the message is now that its header is known. `routed` is made anew where that changes its origin.
    ///
    /// # Errors
    /// The reply to the end of data: as from there it may not come, or not to all of its recipients.
    pub(super) fn judge_header(
        &self,
        snapshot: &Snapshot,
        (connector, peer, verdict): (&ReceiveConnector, &Peer, Arc<Verdict>),
        (envelope, head, size): (&Envelope, &[u8], u64),
        routed: &mut Vec<Routed>,
    ) -> Result<Arc<Verdict>, Reply> {
        if connector.originator_org.is_empty() || verdict.originator_org != Clause::NotAsked {
            return Ok(verdict);
        }
        let clause = originator(&connector.originator_org, header::originators(head));
        let verdict = Arc::new(verdict.with_originator(clause));
        if !verdict.is_stranger() {
            return Ok(verdict);
        }
        let why = Words::Originator(&verdict.originator_org);
        info!(peer = %peer.ip, connector = %connector.name, "a message counts as from the Internet: {why}");
        self.check_stranger(snapshot, envelope).inspect_err(|reply| {
            self.track_refused_message(envelope, connector, peer, &verdict, reply.status_or_class(), reply);
        })?;
        *routed = self.resolve_again(snapshot, &verdict, envelope, size).map_err(|refusal| {
            let status = refusal.status().1;
            self.track_refused_message(
                envelope,
                connector,
                peer,
                &verdict,
                status,
                &format_args!("{}: {refusal}", refusal.asked),
            );
            refusal.to_reply()
        })?;
        if routed.len() > ROUTED_LIMIT {
            let reply = Reply::too_many_recipients(ROUTED_LIMIT);
            self.track_refused_message(envelope, connector, peer, &verdict, reply.status_or_class(), &reply);
            return Err(reply);
        }
        Ok(verdict)
    }

    /// Every accepted recipient, resolved as `verdict` says. One that is refused for good refuses the message, also
    /// where another cannot be judged now: it would be refused the next time too.
    fn resolve_again(
        &self,
        snapshot: &Snapshot,
        verdict: &Verdict,
        envelope: &Envelope,
        size: u64,
    ) -> Result<Vec<Routed>, Box<Refusal>> {
        let rules = Rules { config: &snapshot.config, directory: snapshot.directory.as_ref() };
        let asking = Asking {
            origin: verdict.origin,
            connector: &verdict.claim.connector,
            may_relay: verdict.may_relay,
            size: Some(size),
        };
        let (mut all, mut later) = (Vec::new(), None);
        for recipient in &envelope.recipients {
            match rules.expand(&asking, recipient) {
                Ok(Resolution { mut routed, failed }) => {
                    all.append(&mut routed);
                    all.extend(failed.into_iter().map(|member| work::nowhere(recipient, member)));
                }
                Err(refusal) if refusal.is_temporary() => {
                    later.get_or_insert(Box::new(refusal));
                }
                Err(refusal) => return Err(Box::new(refusal)),
            }
        }
        later.map_or(Ok(all), Err)
    }
}
