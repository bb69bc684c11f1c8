//! Mail that is caught in the middle of a mailbox's move: it is routed again once this side knows better.
//!
//! A copy whose hop answered that the two premises disagree waits, since the mailbox may be moving. If it is our own
//! directory or configuration that changes next, trying again is of no use: the way itself was wrong. So each such copy is
//! remembered, and looked at whenever what decides was replaced, and once more before its answer is counted as a setback.
//! A recipient that would go elsewhere now goes on as a message of its own; that message and the end of the old recipient
//! are one record, so no crash can lose or double it.
//!
//! Lost at a restart is only the memory: the next attempt meets the same answer, and is looked at then.
//!
//! Not here: what a disagreement is (`route::disagreement`, `visits`).

use std::collections::BTreeSet;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use tracing::{info, warn};

use super::hands::{Grasp, Key};
use super::settle::settlement;
use super::work::{Tried, nowhere};
use super::{Relay, Snapshot};
use crate::config::{ConnectorName, Origin};
use crate::message::{Body, Envelope, Recipient, body};
use crate::outcome::Setback;
use crate::outcome::tracking::EventKind;
use crate::route::resolve::{Asking, Resolution, Rules};
use crate::route::{CopyRecipient, HopCopy, Routed, plan};
use crate::spool::{CopyStanding, Draft, End, NewMessage, Settlement, Standing};

/// So many copies are remembered. One that finds no room is looked at when it is tried again.
const LIMIT: usize = 100_000;

/// A copy that is being tried just now is looked at again after this.
const BUSY: Duration = Duration::from_secs(1);

/// Copies whose hop holds the mailbox to be elsewhere.
pub(super) type Disputed = BTreeSet<Key>;

impl Relay {
    /// Looks at what waits because of a disagreement whenever something was replaced that may end it.
    pub(super) async fn mind_moves(&self) {
        loop {
            self.0.replaced.notified().await;
            while self.follow_moves().await {
                tokio::time::sleep(BUSY).await;
            }
        }
    }

    /// Routes again what waits because of a disagreement. True: some of it was being tried just now.
    pub(super) async fn follow_moves(&self) -> bool {
        let keys: Vec<Key> = self.disputed(|disputed| disputed.iter().copied().collect());
        let mut busy = false;
        for key in keys {
            if self.is_stopping() {
                return false;
            }
            let spool = self.0.spool.clone();
            let Ok(standing) = tokio::task::spawn_blocking(move || spool.standing(key.0)).await else { return false };
            let copy = standing.as_ref().and_then(|message| message.copies.iter().find(|copy| copy.number == key.1));
            let (Some(message), Some(copy)) = (&standing, copy) else {
                self.disputed(|disputed| disputed.remove(&key));
                continue;
            };
            let snapshot = self.snapshot();
            let plans: Vec<&HopCopy> = message.copies.iter().map(|copy| &copy.plan).collect();
            let moves = |index: &u16| {
                let one = copy.plan.recipients.get(usize::from(*index));
                one.is_some_and(|one| ends_now(&snapshot, &message.connector, &plans, &copy.plan, one).is_some())
            };
            if copy.open.iter().any(moves) {
                busy |= !self.take_along(message, copy).await;
            }
        }
        busy
    }

    /// Takes a copy out of its lane and sends on whom it can. False: somebody tries it.
    async fn take_along(&self, standing: &Standing, copy: &CopyStanding) -> bool {
        let key = (standing.id, copy.number);
        let hand = {
            let mut queue = self.queue();
            if queue.is_held(key) {
                // An operator has the last word; it is looked at when it is tried again.
                return true;
            }
            match queue.grasp(key) {
                Grasp::Ours => self.in_hand(key),
                Grasp::Busy => return false,
            }
        };
        // What was done to it before is known for certain once it is on disk.
        self.0.spool.flush().await;
        let Some(known) = self.still_waits(standing, copy) else { return true };
        // Should it come to nothing, the copy is in the schedule. If it does not, nothing is found there then.
        let (lane, mut item) = self.put_back(standing, copy, known);
        if self.0.spool.is_broken() {
            return true;
        }
        if let Some((message, open)) = self.fetch(lane, &mut item).await {
            let tried = Tried { message: &message, item, lane };
            self.send_on(&self.snapshot(), &tried, &open).await;
        }
        drop(hand);
        true
    }

    /// Takes those out of `setbacks` whom this side would send elsewhere by now. The others of them are remembered.
    pub(super) async fn follow_move(&self, tried: &Tried<'_>, setbacks: [&mut Vec<(u16, Setback)>; 2]) {
        let disputed: Vec<u16> = setbacks
            .iter()
            .flat_map(|list| list.iter().filter(|(_, setback)| is_disagreement(setback)).map(|(index, _)| *index))
            .collect();
        if disputed.is_empty() {
            return;
        }
        // First remembered, then looked at: what is replaced in between is noticed by the one or by the other.
        let key = tried.item.key();
        self.disputed(|known| (known.len() < LIMIT).then(|| known.insert(key)));
        let moved = self.send_on(&self.snapshot(), tried, &disputed).await;
        for list in setbacks {
            list.retain(|(index, _)| !moved.contains(index));
        }
    }

    /// Sends those of `indexes` on as a message of their own whose way is another by now; returns them.
    async fn send_on(&self, snapshot: &Snapshot, tried: &Tried<'_>, indexes: &[u16]) -> Vec<u16> {
        let (message, copy) = (tried.message, tried.copy());
        let plans: Vec<&HopCopy> = message.copies.iter().collect();
        let (mut moved, mut routed) = (Vec::new(), Vec::new());
        for &index in indexes {
            let Some(one) = copy.recipients.get(usize::from(index)) else { continue };
            if let Some(ends) = ends_now(snapshot, &message.connector, &plans, copy, one) {
                moved.push(index);
                routed.extend(ends);
            }
        }
        if moved.is_empty() {
            return moved;
        }
        let id = self.0.spool.next_id();
        let content = match self.copy_of(&message.content).await {
            Ok(content) => content,
            Err(error) => {
                warn!(id = %message.id, %error, "a message cannot be sent another way now; it waits");
                return Vec::new();
            }
        };
        let noted = Self::note_routes(&mut routed);
        let settles: Vec<Settlement> =
            moved.iter().map(|&index| settlement(&tried.item, index, End::Delivered)).collect();
        let new = NewMessage {
            id,
            // Its life began when it came.
            accepted: message.accepted,
            envelope: Envelope { recipients: Vec::new(), ..message.envelope.clone() },
            connector: message.connector.clone(),
            message_id: message.message_id.clone(),
            prefix: message.prefix.clone(),
            organization: message.organization,
            content,
            copies: plan::plan(routed),
            settles,
        };
        let receipt = match self.0.spool.put(new).await {
            Ok(receipt) => receipt,
            Err(error) => {
                warn!(id = %message.id, %error, "a message cannot be sent another way now; it waits");
                return Vec::new();
            }
        };
        info!(id = %message.id, on = %id, recipients = moved.len(), "routed again: the mailbox has moved");
        self.track_moved(tried, &moved, id);
        self.flow_moved(tried, &moved, &receipt.message, &noted);
        self.track_plan(&receipt.message, &noted);
        self.schedule_at(&receipt.message, message.accepted, tried.item.warned);
        moved
    }

    /// The same content once more, as a message that arrives brings it.
    async fn copy_of(&self, content: &Body) -> io::Result<Draft> {
        let mut draft = self.draft();
        let mut offset = 0;
        loop {
            let block = match content {
                Body::Memory(_) => content.read(offset, usize::MAX)?,
                Body::File { .. } => {
                    let content = content.clone();
                    let read = tokio::task::spawn_blocking(move || content.read(offset, body::BLOCK)).await;
                    read.map_err(io::Error::other)??
                }
            };
            if block.is_empty() {
                return Ok(draft);
            }
            offset += block.len() as u64;
            draft.push(block).await?;
        }
    }

    fn track_moved(&self, tried: &Tried<'_>, moved: &[u16], on: crate::message::MessageId) {
        let why = format_args!("routed again as {on}: what this side holds of the mailbox has changed");
        self.track_recipients(tried, EventKind::Transfer, moved, &why);
    }

    fn disputed<R>(&self, look: impl FnOnce(&mut Disputed) -> R) -> R {
        // Nothing in it can be half done.
        look(&mut self.0.disputed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Did the other premises say that it holds the mailbox to be here?
fn is_disagreement(setback: &Setback) -> bool {
    match setback {
        Setback::Disagreed { .. } => true,
        Setback::Expired { last, .. } => is_disagreement(last),
        _ => false,
    }
}

/// Where a recipient of `copy` goes by now; `None`: where it went, or nobody can tell. `plans` are all copies of the
/// message that are known.
fn ends_now(
    snapshot: &Snapshot,
    by: &str,
    plans: &[&HopCopy],
    copy: &HopCopy,
    one: &CopyRecipient,
) -> Option<Vec<Routed>> {
    let config = &snapshot.config;
    let connector = ConnectorName(by.into());
    let asked = Recipient { address: one.asked.clone(), ..one.recipient.clone() };
    let found = config.receive_connectors.iter().find(|connector| *connector.name.0 == *by);
    let (origins, may_relay) = match found {
        // A report of our own comes from our own side, as when it was written.
        None if by.is_empty() => {
            (vec![config.hybrid.as_ref().map_or(Origin::OnPremises, |hybrid| hybrid.side.origin())], true)
        }
        None => return None,
        // Whether a message of a service with many customers counted as ours is not known any more: both must agree.
        Some(found) if !found.originator_org.is_empty() => (vec![found.origin, Origin::Internet], found.relay),
        Some(found) => (vec![found.origin], found.relay),
    };
    let rules = Rules { config, directory: snapshot.directory.as_ref() };
    let mut ends: Option<Vec<Routed>> = None;
    for origin in origins {
        let asking = Asking { origin, connector: &connector, may_relay, size: None };
        let now = ends_of(rules.expand(&asking, &asked).ok()?, &asked, plans, copy, one)?;
        match &ends {
            Some(before) if !before.iter().map(way).eq(now.iter().map(way)) => return None,
            Some(_) => {}
            None => ends = Some(now),
        }
    }
    ends
}

fn way(one: &Routed) -> (&ConnectorName, &crate::route::Hop, &crate::message::Address) {
    (&one.route.via, &one.route.hop, &one.route.to)
}

fn ends_of(
    resolution: Resolution,
    asked: &Recipient,
    plans: &[&HopCopy],
    copy: &HopCopy,
    one: &CopyRecipient,
) -> Option<Vec<Routed>> {
    let Resolution { mut routed, failed } = resolution;
    let as_before = (&copy.via, &copy.hop, &one.recipient.address);
    if routed.iter().any(|end| way(end) == as_before) {
        return None;
    }
    let siblings: Vec<&CopyRecipient> =
        plans.iter().flat_map(|plan| &plan.recipients).filter(|other| other.asked == one.asked).collect();
    if siblings.len() <= 1 {
        routed.extend(failed.into_iter().map(|member| nowhere(asked, member)));
        return Some(routed);
    }
    // A member of a group is known again by its local part, and by being nobody else. One that left the group goes where it
    // went.
    let local = one.recipient.address.local();
    let is_it = |end: &Routed| {
        end.route.to.local().eq_ignore_ascii_case(local)
            && !siblings.iter().any(|other| other.recipient.address == end.route.to && *other != one)
    };
    let mut found: Vec<Routed> = routed.into_iter().filter(is_it).collect();
    if found.len() == 1 { Some(std::mem::take(&mut found)) } else { None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use jiff::Timestamp;

    use super::*;
    use crate::deliver::Attempt;
    use crate::message::MessageId;
    use crate::relay::PUT_LIMIT;
    use crate::relay::tests::{Fixture, snapshot_of};
    use crate::relay::visits::tests::HYBRID;
    use crate::relay::work::Item;
    use crate::smtp::{Reply, Status};
    use crate::spool::Deferral;
    use crate::spool::model::Model;

    const IN_CLOUD: &str = "zoe@contoso.com,cloud,\n";
    const HERE: &str = "zoe@contoso.com,on-premises,\n";
    const CONTENT: &str = "Subject: x\r\n\r\nx\r\n";

    fn snapshot(csv: &str) -> Snapshot {
        let folder = tempfile::tempdir().unwrap();
        let recipients = folder.path().join("recipients.csv");
        std::fs::write(recipients, format!("address,type,target\nmax@contoso.com,on-premises,\n{csv}")).unwrap();
        let text = HYBRID
            .replace(
                "[[receive_connector]]",
                "[[directory]]\nkind = \"file\"\npath = \"recipients.csv\"\n[[receive_connector]]",
            )
            .replace("\"from-cloud\"", "\"internet\"")
            .replace("\"cloud\"\nrelay", "\"internet\"\nrelay");
        snapshot_of(&text, &folder.path().join("causeway.toml"))
    }

    fn says(code: u16) -> Setback {
        let reply = Reply { code, status: Some(Status(code / 100, 4, 6)), text: "it is with you".into() };
        Setback::Answered { host: "cloud".into(), command: "RCPT", reply }
    }

    /// The copy that goes to the cloud, taken out of the schedule as a worker does.
    fn to_cloud(fixture: &Fixture) -> (crate::relay::LaneId, Item) {
        let out = fixture.relay.queue().sweep(|_| false);
        let mut ours = None;
        for (lane, item) in out {
            let mut queue = fixture.relay.queue();
            let is_ours = queue.failures(lane).1.is_some_and(|(via, _)| &*via.0 == "to-cloud");
            queue.let_go(lane);
            if is_ours {
                ours = Some((lane, item));
            } else {
                let _ = queue.ready(lane, item);
            }
        }
        ours.expect("a copy for the cloud")
    }

    /// An attempt at the cloud brings this for every recipient of the copy.
    async fn answer(fixture: &Fixture, code: u16) -> MessageId {
        let (lane, item) = to_cloud(fixture);
        let id = item.id;
        let message = fixture.relay.0.spool.load(id).unwrap().message;
        let recipients = message.copies[usize::from(item.copy)].recipients.len() as u16;
        let results = (0..recipients).map(|index| (index, Err(says(code)))).collect();
        let tried = Tried { message: &message, item, lane };
        fixture.relay.settle(&fixture.relay.snapshot(), tried, Attempt { results }, Timestamp::now()).await;
        fixture.relay.0.spool.flush().await;
        id
    }

    /// All that waits, as `via: recipients`, sorted.
    fn waits(fixture: &Fixture) -> Vec<String> {
        let mut step = Some(crate::spool::Step::default());
        let mut found = Vec::new();
        while let Some(from) = step {
            let (messages, next) = fixture.relay.0.spool.walk(from);
            for copy in messages.iter().flat_map(|(_, message)| &message.copies) {
                let open = copy.open.iter().map(|index| &copy.plan.recipients[usize::from(*index)].recipient.address);
                let open: Vec<String> = open.map(ToString::to_string).collect();
                found.push(format!("{}: {}", copy.plan.via, open.join(" ")));
            }
            step = next;
        }
        found.sort();
        found
    }

    async fn posted(csv: &str, to: &[&str]) -> Fixture {
        let fixture = Fixture::over(Model::new(1), snapshot(csv), PUT_LIMIT);
        fixture.relay.watch_flow();
        let reply = fixture.send_by("internet", "erin@fabrikam.com", to, CONTENT, |_| {}).await;
        assert_eq!(reply.code, 250, "{reply}");
        fixture
    }

    /// Running, so that what is said of moves is followed; nothing is tried, as no worker is started by hand.
    fn wake(fixture: &Fixture) {
        fixture.relay.0.stopping.store(false, std::sync::atomic::Ordering::Release);
    }

    /// What the directory said when the mail came, what the cloud answers, what the directory says by then and later, and
    /// where the mail waits in the end.
    #[tokio::test]
    async fn a_mailbox_that_moved_is_routed_again() {
        let both = "team@contoso.com,group,zoe@contoso.com kim@contoso.com\nkim@contoso.com,cloud,\n";
        let (cloud, here) = (format!("{IN_CLOUD}{both}"), format!("{HERE}{both}"));
        let left = here.replace("zoe@contoso.com kim@contoso.com", "max@contoso.com kim@contoso.com");
        let zoe = "to-cloud: zoe@contoso.mail.onmicrosoft.com";
        for (what, to, before, code, then, later, expected) in [
            ("nothing has changed", "zoe", IN_CLOUD, 451, IN_CLOUD, IN_CLOUD, &[zoe][..]),
            ("it changes while it waits", "zoe", IN_CLOUD, 451, IN_CLOUD, HERE, &["to-on-premises: zoe@contoso.com"]),
            ("it changed during the attempt", "zoe", IN_CLOUD, 451, HERE, HERE, &["to-on-premises: zoe@contoso.com"]),
            ("and the grace is over", "zoe", IN_CLOUD, 550, HERE, HERE, &["to-on-premises: zoe@contoso.com"]),
            ("it is gone: the other side has the word", "zoe", IN_CLOUD, 451, "", "", &[zoe]),
            (
                "one member of a group",
                "team",
                &cloud,
                451,
                &cloud,
                &here,
                &["to-cloud: kim@contoso.mail.onmicrosoft.com", "to-on-premises: zoe@contoso.com"],
            ),
            (
                "one that left the group, and another who came to it",
                "team",
                &cloud,
                451,
                &cloud,
                &left,
                &["to-cloud: zoe@contoso.mail.onmicrosoft.com kim@contoso.mail.onmicrosoft.com"],
            ),
        ] {
            let fixture = posted(before, &[&format!("{to}@contoso.com")]).await;
            fixture.relay.replace(snapshot(then));
            answer(&fixture, code).await;
            wake(&fixture);
            fixture.relay.replace(snapshot(later));
            assert!(!fixture.relay.follow_moves().await, "{what}");
            fixture.relay.0.spool.flush().await;
            assert_eq!(waits(&fixture), expected, "{what}");
            let paths = fixture.relay.flow(60).paths;
            let flows: u64 = paths.iter().map(|path| path.waiting + path.deferred + path.delivered + path.failed).sum();
            let recipients: usize = expected.iter().map(|one| one.split(' ').count() - 1).sum();
            assert_eq!(flows, recipients as u64, "{what}: each counts once: {paths:?}");
            let moved = usize::from(expected.iter().any(|one| one.starts_with("to-on")));
            for (kind, count) in [("RECEIVE", 1), ("DSN", 0), ("FAIL", 0)] {
                assert_eq!(fixture.count(kind, ""), count, "{what}: {kind} {:?}", fixture.events);
            }
            assert_eq!(fixture.count("TRANSFER", "routed again as"), moved, "{what}: {:?}", fixture.events);
        }
    }

    /// The message is the same: content, the time it came, who brought it, and that its sender was warned.
    #[tokio::test]
    async fn what_goes_on_is_the_message_that_came() {
        let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
        let id = answer(&fixture, 451).await;
        let before = fixture.relay.0.spool.load(id).unwrap().message;
        let warned = Deferral { id, copy: 0, until: Timestamp::now(), attempts: 2, warned: true, held: false };
        fixture.relay.defer(warned);
        wake(&fixture);
        fixture.relay.replace(snapshot(HERE));
        fixture.relay.follow_moves().await;
        fixture.relay.0.spool.flush().await;
        let (messages, _) = fixture.relay.0.spool.walk(crate::spool::Step::default());
        let [(_, found)] = messages.as_slice() else { panic!("{messages:?}") };
        assert!(found.id != id && found.copies[0].warned, "{found:?}");
        let after = fixture.relay.0.spool.load(found.id).unwrap().message;
        assert_eq!(after.content.read(0, usize::MAX).unwrap(), CONTENT.as_bytes());
        assert_eq!(
            (after.accepted, &after.prefix, &after.connector),
            (before.accepted, &before.prefix, &before.connector)
        );
        assert_eq!(after.envelope, before.envelope);
        assert!(fixture.relay.disputed(|disputed| disputed.len()) <= 1);
        fixture.relay.follow_moves().await;
        assert!(fixture.relay.disputed(|disputed| disputed.is_empty()), "it is forgotten");
    }

    /// An operator has the last word; and what somebody tries just now is looked at again.
    #[tokio::test]
    async fn what_is_held_or_tried_is_left_alone() {
        let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
        let key = (answer(&fixture, 451).await, 0);
        wake(&fixture);
        fixture.relay.queue().hold(key);
        fixture.relay.replace(snapshot(HERE));
        assert!(!fixture.relay.follow_moves().await);
        assert_eq!(waits(&fixture), ["to-cloud: zoe@contoso.mail.onmicrosoft.com"]);
        let _ = fixture.relay.queue().release(key);
        assert_eq!(fixture.relay.queue().grasp(key), Grasp::Ours);
        assert!(fixture.relay.follow_moves().await, "it is in somebody's hand");
        fixture.relay.queue().let_down(key);
        assert!(!fixture.relay.follow_moves().await);
        assert_eq!(waits(&fixture), ["to-on-premises: zoe@contoso.com"]);
    }

    /// The power fails at every step of it: afterwards the recipient waits once, here or there, and a restart that forgot why
    /// it waits finds out at the next attempt.
    #[tokio::test]
    async fn a_crash_leaves_it_waiting_once() {
        let (mut old, mut new) = (0, 0);
        for step in 0..12 {
            let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
            answer(&fixture, 451).await;
            wake(&fixture);
            fixture.disk.die_after(step);
            fixture.relay.replace(snapshot(HERE));
            let _ = tokio::time::timeout(Duration::from_secs(2), fixture.relay.follow_moves()).await;
            let disk: Arc<Model> = fixture.disk.crash();
            let again = Fixture::over(disk, snapshot(HERE), PUT_LIMIT);
            match waits(&again).as_slice() {
                [one] if one == "to-on-premises: zoe@contoso.com" => new += 1,
                [one] if one == "to-cloud: zoe@contoso.mail.onmicrosoft.com" => {
                    old += 1;
                    wake(&again);
                    let _ = again.relay.queue().due(Instant::now() + Duration::from_secs(48 * 3600));
                    again.relay.begin_stop();
                    answer(&again, 451).await;
                    assert_eq!(waits(&again), ["to-on-premises: zoe@contoso.com"], "step {step}");
                }
                other => panic!("step {step}: {other:?}"),
            }
        }
        assert!(old > 0 && new > 0, "both were seen: {old} {new}");
    }

    /// A mailbox that is served by a service with many customers: whose message it was is not known any more, so only
    /// what holds for both is done.
    #[test]
    fn without_certainty_it_stays() {
        let by = "internet";
        let asked = crate::message::Address::parse("zoe@contoso.com").unwrap();
        let to = crate::message::Address::parse("zoe@contoso.mail.onmicrosoft.com").unwrap();
        let recipient = Recipient { address: to, notify: crate::message::Notify::Unsaid, orcpt: None };
        let one = CopyRecipient { asked, recipient };
        let copy = HopCopy {
            via: ConnectorName("to-cloud".into()),
            hop: crate::route::Hop::SmartHosts,
            recipients: vec![one.clone()],
        };
        let snapshot = snapshot(HERE);
        assert!(ends_now(&snapshot, by, &[&copy], &copy, &one).is_some());
        assert!(ends_now(&snapshot, "", &[&copy], &copy, &one).is_some(), "a report");
        assert!(
            ends_now(&snapshot, "gone", &[&copy], &copy, &one).is_none(),
            "the connector is not configured any more"
        );
    }
}
