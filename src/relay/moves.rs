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
use super::work::Tried;
use super::{Relay, Snapshot};
use crate::config::{ConnectorName, Origin};
use crate::message::{Address, Body, Envelope, Recipient, body};
use crate::outcome::Setback;
use crate::outcome::tracking::EventKind;
use crate::route::resolve::{Asking, Resolution, Rules};
use crate::route::{CopyRecipient, HopCopy, Reason, Routed, plan};
use crate::spool::disk::blocking;
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
            let Ok(standing) = blocking(move || spool.standing(key.0)).await else { return false };
            let copy = standing.as_ref().and_then(|message| message.copies.iter().find(|copy| copy.number == key.1));
            let (Some(message), Some(copy)) = (&standing, copy) else {
                self.disputed(|disputed| disputed.remove(&key));
                continue;
            };
            let snapshot = self.snapshot();
            let plans: Vec<&HopCopy> = message.copies.iter().map(|copy| &copy.plan).collect();
            let moves = |index: &u16| {
                let one = copy.plan.recipients.get(usize::from(*index));
                one.is_some_and(|one| end_now(&snapshot, &message.connector, &plans, &copy.plan, one).is_some())
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
        let mut hand = {
            let mut queue = self.queue();
            if queue.is_held(key) {
                // An operator has the last word; it is looked at when it is tried again.
                return true;
            }
            match queue.grasp(key) {
                Grasp::Ours => self.grasped(&queue, standing, copy),
                Grasp::Busy => return false,
            }
        };
        // What was done to it before is known for certain once it is on disk; what the disk has not taken is true all the
        // same.
        let unwritten = self.0.spool.flush().await;
        if !self.still_waits(standing, copy, &unwritten, &mut hand) {
            return true;
        }
        if self.0.spool.is_broken() {
            return true;
        }
        // Not by `fetch`: that gives what cannot be read now a place in the schedule.
        let Ok((message, mut open)) = self.load(key.0, key.1).await else { return true };
        self.queue().leave_out_done(key, &mut open);
        if let Some(tried) = hand.tried(&message) {
            let _ = self.send_on(&self.snapshot(), &tried, &open).await;
        }
        true
    }

    /// Takes those out of what is tried `again` and what has `failed` whom this side would send elsewhere by now. The others
    /// of them are remembered. True: somebody has moved and cannot be sent on now, so none of those has failed.
    pub(super) async fn follow_move(&self, tried: &Tried<'_>, setbacks: [&mut Vec<(u16, Setback)>; 2]) -> bool {
        let disputed: Vec<u16> = setbacks
            .iter()
            .flat_map(|list| list.iter().filter(|(_, setback)| is_disagreement(setback)).map(|(index, _)| *index))
            .collect();
        if disputed.is_empty() {
            return false;
        }
        // First remembered, then looked at: what is replaced in between is noticed by the one or by the other.
        let key = tried.item.key();
        self.disputed(|known| (known.len() < LIMIT).then(|| known.insert(key)));
        let snapshot = self.snapshot();
        let [again, failed] = setbacks;
        if self.queue().is_held(key) {
            // An operator has the last word: whoever would go elsewhere waits for that, and does not fail.
            let (elsewhere, _) = elsewhere(&snapshot, tried, &disputed);
            again.extend(failed.extract_if(.., |(index, _)| elsewhere.contains(index)));
            return false;
        }
        match self.send_on(&snapshot, tried, &disputed).await {
            Ok(moved) => {
                for list in [again, failed] {
                    list.retain(|(index, _)| !moved.contains(index));
                }
                false
            }
            // Their way is known, so nobody hears that there is none.
            Err(elsewhere) => {
                again.extend(failed.extract_if(.., |(index, _)| elsewhere.contains(index)));
                true
            }
        }
    }

    /// Sends those of `indexes` on as a message of their own whose way is another by now; returns them.
    ///
    /// # Errors
    /// Whose way is another, where the spool takes no such message now.
    async fn send_on(&self, snapshot: &Snapshot, tried: &Tried<'_>, indexes: &[u16]) -> Result<Vec<u16>, Vec<u16>> {
        let message = tried.message;
        let (moved, mut routed) = elsewhere(snapshot, tried, indexes);
        if moved.is_empty() {
            return Ok(moved);
        }
        let id = self.0.spool.next_id();
        let content = match self.copy_of(&message.content).await {
            Ok(content) => content,
            Err(error) => {
                warn!(id = %message.id, %error, "a message cannot be sent another way now; it waits");
                return Err(moved);
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
                return Err(moved);
            }
        };
        info!(id = %message.id, on = %id, recipients = moved.len(), "routed again: the mailbox has moved");
        self.track_moved(tried, &moved, id);
        self.flow_moved(tried, &moved, &receipt.message, &noted);
        self.track_plan(&receipt.message, &noted);
        {
            // An operator who held it while it was written means what goes on.
            let mut queue = self.queue();
            if queue.is_held(tried.item.key()) {
                (0u16..).zip(&receipt.message.copies).for_each(|(copy, _)| queue.hold((id, copy)));
            }
        }
        self.schedule_at(&receipt.message, message.accepted, Duration::ZERO, tried.item.warned);
        Ok(moved)
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
                    let read = blocking(move || content.read(offset, body::BLOCK)).await;
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

/// Those of `indexes` whose way is another by now, and their ways.
fn elsewhere(snapshot: &Snapshot, tried: &Tried<'_>, indexes: &[u16]) -> (Vec<u16>, Vec<Routed>) {
    let (message, copy) = (tried.message, tried.copy());
    let plans: Vec<&HopCopy> = message.copies.iter().collect();
    let end = |&index: &u16| {
        let one = copy.recipients.get(usize::from(index))?;
        Some((index, end_now(snapshot, &message.connector, &plans, copy, one)?))
    };
    indexes.iter().filter_map(end).unzip()
}

/// Where a recipient of `copy` goes by now; `None`: where it went, or nobody can tell. `plans` are all copies of the
/// message that are known.
fn end_now(snapshot: &Snapshot, by: &str, plans: &[&HopCopy], copy: &HopCopy, one: &CopyRecipient) -> Option<Routed> {
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
    let mut end: Option<Routed> = None;
    for origin in origins {
        let asking = Asking { origin, connector: &connector, may_relay, size: None };
        let now = end_of(&rules, rules.expand(&asking, &asked).ok()?, plans, copy, one)?;
        match &end {
            Some(before) if way(before) != way(&now) => return None,
            Some(_) => {}
            None => end = Some(now),
        }
    }
    end
}

fn way(one: &Routed) -> (&ConnectorName, &crate::route::Hop, &Address) {
    (&one.route.via, &one.route.hop, &one.route.to)
}

/// Of two mailboxes of ours: their names have no case.
fn is_same(one: &Address, other: &Address) -> bool {
    one.domain() == other.domain() && one.local().eq_ignore_ascii_case(other.local())
}

/// Is the mailbox at this end the one that was known by the address `before`? Every premises has its own name for it, and
/// another mailbox may have the same local part.
fn is_mailbox(rules: &Rules<'_>, before: &Address, end: &Routed) -> bool {
    let mut own = &end.route.to;
    for reason in end.route.because.iter().rev() {
        match reason.plain() {
            Reason::FoundBehind { owner, .. } => own = owner,
            Reason::Rewritten { from, to } | Reason::SentAs { from, to } | Reason::TagDropped { from, to, .. }
                if to == own =>
            {
                own = from;
            }
            _ => {}
        }
    }
    if before.domain() == own.domain() {
        return is_same(before, own);
    }
    rules.owner(before).is_some_and(|owner| is_same(&owner, own))
}

fn end_of(
    rules: &Rules<'_>,
    resolution: Resolution,
    plans: &[&HopCopy],
    copy: &HopCopy,
    one: &CopyRecipient,
) -> Option<Routed> {
    let before = &one.recipient.address;
    // It may have been named by another spelling than that under which it went.
    let is_as_before =
        |end: &Routed| end.route.via == copy.via && end.route.hop == copy.hop && is_same(before, &end.route.to);
    if resolution.routed.iter().any(is_as_before) {
        return None;
    }
    // Another name of the same mailbox in the same copy goes wherever this one goes.
    let is_other = |plan: &HopCopy, other: &CopyRecipient| {
        other.recipient.address != *before || plan.via != copy.via || plan.hop != copy.hop
    };
    let has_it = |end: &Routed| {
        plans.iter().any(|plan| {
            let mut others = plan.recipients.iter().filter(|other| is_other(plan, other));
            others.any(|other| is_same(&other.recipient.address, &end.route.to))
        })
    };
    // Behind a group stand others, who have the message; how many of them is not known here: who was named twice stands
    // under one of the names, and who was sent on already is in another message. So a member is only ever itself. One that
    // left the group goes where it went.
    let is_group = resolution.is_group();
    let is_it = |end: &Routed| !is_group || is_mailbox(rules, &one.recipient.address, end);
    let mut ends = resolution.routed.into_iter().filter(|end| is_it(end) && !has_it(end));
    let end = ends.next()?;
    ends.next().is_none().then_some(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use jiff::Timestamp;
    use nix::errno::Errno;

    use super::*;
    use crate::deliver::Attempt;
    use crate::message::MessageId;
    use crate::relay::PUT_LIMIT;
    use crate::relay::tests::{Fixture, snapshot_of};
    use crate::relay::visits::tests::HYBRID;
    use crate::relay::work::Item;
    use crate::smtp::{Reply, Status};
    use crate::spool::Deferral;
    use crate::spool::model::{Fault, Model, Op};

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
            .replace("[[receive_connector]]", "[[accepted_domain]]\nname = \"tailspin.example\"\n[[receive_connector]]")
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
        let tried = to_cloud(fixture);
        answer_to(fixture, tried, code).await
    }

    async fn answer_to(fixture: &Fixture, (lane, item): (crate::relay::LaneId, Item), code: u16) -> MessageId {
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
        let more = "all@contoso.com,group,zoe@contoso.com kim@contoso.com lea@contoso.com\n";
        let (lea_there, lea_here) = ("lea@contoso.com,cloud,\n", "lea@contoso.com,on-premises,\n");
        let (all, moved) = (format!("{cloud}{more}{lea_there}"), format!("{cloud}{more}{lea_here}"));
        let alone = moved.replace("zoe@contoso.com kim@contoso.com lea@contoso.com", "lea@contoso.com");
        let shrunk = alone.replace("group,lea@contoso.com", "group,kim@contoso.com");
        let namesake =
            here.replace("group,zoe@contoso.com", "group,zoe@tailspin.example") + "zoe@tailspin.example,on-premises,\n";
        let other = "zoe@tailspin.example,cloud,z@contoso.mail.onmicrosoft.com\n";
        let [two, two_here] = [&cloud, &here].map(|csv| csv.replace("group,", "group,zoe@tailspin.example ") + other);
        let two_there = "to-cloud: z@contoso.mail.onmicrosoft.com kim@contoso.mail.onmicrosoft.com";
        let instead = "zoe@contoso.com,forward,max@contoso.com\n";
        let zoe = "to-cloud: zoe@contoso.mail.onmicrosoft.com";
        let kim = cloud.replace("kim@contoso.com,cloud", "kim@contoso.com,on-premises");
        let both_there = "to-cloud: zoe@contoso.mail.onmicrosoft.com kim@contoso.mail.onmicrosoft.com";
        let all_there = &format!("{both_there} lea@contoso.mail.onmicrosoft.com")[..];
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
            ("a namesake who came to the group", "team", &cloud, 451, &cloud, &namesake, &[both_there]),
            (
                "a namesake who was in the group",
                "team",
                &two,
                451,
                &two,
                &two_here,
                &[two_there, "to-on-premises: zoe@contoso.com"],
            ),
            // Of a group whose others stand under another name one alone is left; it is a group all the same.
            (
                "the rest of a group",
                "team all",
                &all,
                451,
                &moved,
                &moved,
                &[both_there, "to-on-premises: lea@contoso.com"],
            ),
            (
                "all that is left of the group",
                "team all",
                &all,
                451,
                &all,
                &alone,
                &[both_there, "to-on-premises: lea@contoso.com"],
            ),
            ("nothing of it is left in the group", "team all", &all, 451, &all, &shrunk, &[all_there]),
            (
                "one who is named, and a group",
                "zoe team",
                &cloud,
                451,
                &kim,
                &kim,
                &[zoe, "to-on-premises: kim@contoso.com"],
            ),
            (
                "it stands for another who has it",
                "zoe max",
                IN_CLOUD,
                451,
                instead,
                instead,
                &[zoe, "to-on-premises: max@contoso.com"],
            ),
            ("it stands for another", "zoe", IN_CLOUD, 451, instead, instead, &["to-on-premises: max@contoso.com"]),
        ] {
            let to: Vec<String> = to.split(' ').map(|to| format!("{to}@contoso.com")).collect();
            let fixture = posted(before, &to.iter().map(String::as_str).collect::<Vec<_>>()).await;
            let came = waits(&fixture);
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
            let moved = usize::from(came != expected);
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
        let warned =
            Deferral { id, copy: 0, until: Timestamp::now(), attempts: 2, warned: true, held: false, panics: 0 };
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

    /// Who has moved does not fail because the spool takes no message just now: no report, and the next look finds the way.
    #[tokio::test]
    async fn what_cannot_be_sent_on_now_waits() {
        let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
        fixture.relay.replace(snapshot(HERE));
        // Others have all the room there is for content.
        let mut others = fixture.relay.0.spool.draft();
        others.push(CONTENT.into()).await.unwrap();
        fixture.relay.0.spool.limit_drafts(1);
        answer(&fixture, 550).await;
        assert_eq!(waits(&fixture), ["to-cloud: zoe@contoso.mail.onmicrosoft.com"]);
        assert_eq!((fixture.count("DSN", ""), fixture.count("FAIL", ""), fixture.count("DEFER", "")), (0, 0, 1));
        drop(others);
        wake(&fixture);
        assert!(!fixture.relay.follow_moves().await);
        fixture.relay.0.spool.flush().await;
        assert_eq!(waits(&fixture), ["to-on-premises: zoe@contoso.com"]);
        assert_eq!((fixture.count("DSN", ""), fixture.count("FAIL", "")), (0, 0));
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

    /// What the spool knows of the one message that waits, and of its one copy.
    fn standing(fixture: &Fixture) -> (Standing, CopyStanding) {
        let (mut messages, _) = fixture.relay.0.spool.walk(crate::spool::Step::default());
        assert_eq!(messages.len(), 1, "{messages:?}");
        let mut message = messages.remove(0).1;
        assert_eq!(message.copies.len(), 1, "{message:?}");
        let copy = message.copies.remove(0);
        (message, copy)
    }

    /// What a worker finds in the lane to the cloud, when everything is due.
    fn next(fixture: &Fixture) -> Option<(crate::relay::LaneId, Item)> {
        let mut queue = fixture.relay.queue();
        let lane = queue.find(&ConnectorName("to-cloud".into()), &crate::route::Hop::SmartHosts)?;
        let later = Instant::now() + Duration::from_secs(48 * 3600);
        let _ = queue.due(later);
        let is_worked = queue.depth(lane).active > 0;
        Some((lane, if is_worked { queue.next(lane, later) } else { None }?))
    }

    /// Its message cannot be read at the moment: it has one place in the schedule, as before.
    #[tokio::test]
    async fn what_cannot_be_read_now_waits_once() {
        let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
        answer(&fixture, 451).await;
        wake(&fixture);
        fixture.relay.replace(snapshot(HERE));
        let (message, copy) = standing(&fixture);
        fixture.disk.inject(Fault { op: Op::Read, after: 0, errno: Errno::EIO, lasts: true });
        assert!(fixture.relay.take_along(&message, &copy).await);
        assert!(fixture.disk.fired() > 0, "it was to be read");
        fixture.disk.heal();
        assert!(next(&fixture).is_some());
        assert!(next(&fixture).is_none(), "one copy, two places");
        assert_eq!(waits(&fixture), ["to-cloud: zoe@contoso.mail.onmicrosoft.com"]);
    }

    /// All of it was delivered, and the disk has not taken that: it is neither sent on nor tried again.
    #[tokio::test]
    async fn what_is_done_but_not_written_goes_nowhere() {
        let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
        answer(&fixture, 451).await;
        let (lane, item) = next(&fixture).unwrap();
        let key = item.key();
        let message = fixture.relay.0.spool.load(key.0).unwrap().message;
        fixture.disk.inject(Fault { op: Op::Write, after: 0, errno: Errno::EIO, lasts: true });
        let delivered = crate::deliver::Delivered {
            host: "cloud".into(),
            reply: Reply::ok(),
            proof: Arc::new(crate::tls::Proof::Plain),
            dsn: false,
        };
        let tried = Tried { message: &message, item, lane };
        let attempt = Attempt { results: vec![(0, Ok(delivered))] };
        fixture.relay.settle(&fixture.relay.snapshot(), tried, attempt, Timestamp::now()).await;
        fixture.relay.queue().let_down(key);
        wake(&fixture);
        fixture.relay.replace(snapshot(HERE));
        assert!(!fixture.relay.follow_moves().await);
        assert_eq!(waits(&fixture), ["to-cloud: zoe@contoso.mail.onmicrosoft.com"], "as far as is written");
        assert!(next(&fixture).is_none(), "it would be resent");
    }

    /// The record of its new way takes longer than any wait: nobody tries it the old way meanwhile.
    #[tokio::test]
    async fn what_moves_is_not_tried() {
        let fixture = Arc::new(posted(IN_CLOUD, &["zoe@contoso.com"]).await);
        let key = (answer(&fixture, 451).await, 0);
        wake(&fixture);
        fixture.relay.replace(snapshot(HERE));
        let of = Arc::clone(&fixture);
        let moving = hang(&fixture, async move { of.relay.follow_moves().await }).await;
        while !fixture.relay.queue().is_tried(key) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(next(&fixture).is_none(), "it would be delivered here and there");
        fixture.disk.release();
        assert!(!moving.await.unwrap());
        assert_eq!(waits(&fixture), ["to-on-premises: zoe@contoso.com"]);
        assert!(next(&fixture).is_none());
    }

    /// Begins this on a disk that hangs; it goes on until it has written something, and waits for the disk.
    async fn hang<T: Send + 'static>(
        fixture: &Fixture,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        fixture.relay.0.spool.flush().await;
        fixture.disk.hold();
        let (before, deadline) = (fixture.disk.written(), Instant::now() + Duration::from_secs(60));
        let task = tokio::spawn(work);
        while fixture.disk.written() == before {
            assert!(Instant::now() < deadline, "nothing was written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task
    }

    /// An operator holds it while it is tried, and it comes back when the directory knows better: it is held, whatever was
    /// answered, and goes on when it is released and tried.
    #[tokio::test]
    async fn what_is_held_while_it_is_tried_stays() {
        for code in [451, 550] {
            let fixture = posted(IN_CLOUD, &["zoe@contoso.com"]).await;
            let tried = to_cloud(&fixture);
            let key = tried.1.key();
            fixture.relay.queue().hold(key);
            fixture.relay.replace(snapshot(HERE));
            answer_to(&fixture, tried, code).await;
            assert_eq!(waits(&fixture), ["to-cloud: zoe@contoso.mail.onmicrosoft.com"], "{code}");
            assert!(standing(&fixture).1.held && next(&fixture).is_none(), "{code}");
            assert_eq!((fixture.count("FAIL", ""), fixture.count("DSN", "")), (0, 0), "{code}");
            let item = fixture.relay.queue().release(key).expect("it was laid aside");
            let lane = fixture.relay.queue().find(&ConnectorName("to-cloud".into()), &crate::route::Hop::SmartHosts);
            answer_to(&fixture, (lane.unwrap(), item), code).await;
            assert_eq!(waits(&fixture), ["to-on-premises: zoe@contoso.com"], "{code}");
        }
    }

    /// The operator holds it while the record of its new way is written.
    #[tokio::test]
    async fn what_is_held_while_it_moves_is_held_afterwards() {
        let fixture = Arc::new(posted(IN_CLOUD, &["zoe@contoso.com"]).await);
        let tried = to_cloud(&fixture);
        let key = tried.1.key();
        fixture.relay.replace(snapshot(HERE));
        let of = Arc::clone(&fixture);
        let answering = hang(&fixture, async move { answer_to(&of, tried, 451).await }).await;
        fixture.relay.queue().hold(key);
        fixture.disk.release();
        answering.await.unwrap();
        assert_eq!(waits(&fixture), ["to-on-premises: zoe@contoso.com"]);
        let (message, copy) = standing(&fixture);
        assert!(copy.held && fixture.relay.queue().is_held((message.id, 0)));
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
        let asked = Address::parse("zoe@contoso.com").unwrap();
        let to = Address::parse("zoe@contoso.mail.onmicrosoft.com").unwrap();
        let recipient = Recipient { address: to, notify: crate::message::Notify::Unsaid, orcpt: None };
        let one = CopyRecipient { asked, recipient };
        let copy = HopCopy {
            via: ConnectorName("to-cloud".into()),
            hop: crate::route::Hop::SmartHosts,
            recipients: vec![one.clone()],
        };
        let snapshot = snapshot(HERE);
        assert!(end_now(&snapshot, by, &[&copy], &copy, &one).is_some());
        assert!(end_now(&snapshot, "", &[&copy], &copy, &one).is_some(), "a report");
        assert!(
            end_now(&snapshot, "gone", &[&copy], &copy, &one).is_none(),
            "the connector is not configured any more"
        );
    }
}
