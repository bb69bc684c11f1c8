//! A trickle of mixed mail, so that a world that stays up is a living one: to both premises, out, a group, a forward, now
//! and then a stranger's guess that is refused, and a big one. The partner has bad spells in which it says 451.
//!
//! The order is fixed: whoever looks at two demos sees the same. [`is_ours`] tells its mail from that of a person.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::client::Client;
use super::hops::Place;
use super::mail::{DAVID, ERIN, JULIE, KATE, SALES};
use super::site::{Behaviour, Site};
use crate::message::received;
use crate::outcome::tracking::Record;
use crate::smtp::Reply;
use crate::smtp::reply::Status;

/// One message after the other: slow enough to follow one with the eye, fast enough that a minute fills the picture.
const PACE: Duration = Duration::from_millis(750);
/// The partner's day, counted in messages: it is all right, then it is not. About a minute.
const SPELL: usize = 80;
const SPELL_BEGINS: usize = 12;
const SPELL_ENDS: usize = 45;

/// Every Message-ID of the trickle ends like this.
const MESSAGE_ID_END: &str = "@trickle.example";

/// Who guesses addresses, and one that nobody has.
const GUESSER: &str = "offers@tailspintoys.com";
const GUESSED: &str = "jobs@contoso.com";

const MEGAN: &str = "megan@fabrikam.com";
const NEWS: &str = "news@tailspintoys.com";
const INFO: &str = "info@contoso.com";
const PARTNER: &str = "nestor@adatum.com";

/// One message of the trickle.
struct Letter {
    from: Place,
    sender: &'static str,
    to: &'static [&'static str],
    subject: &'static str,
    /// So long its body is, at least.
    bytes: usize,
}

const fn letter(from: Place, sender: &'static str, to: &'static [&'static str], subject: &'static str) -> Letter {
    Letter { from, sender, to, subject, bytes: 0 }
}

/// Again and again, in this order. Where a world has no sender at a place, its letters are left out.
const LETTERS: &[Letter] = &[
    letter(Place::Internet, ERIN, &[JULIE], "Lunch on Monday?"),
    letter(Place::Internet, MEGAN, &[DAVID], "The draft of the contract"),
    letter(Place::OnPremises, JULIE, &[DAVID], "Numbers for the board"),
    letter(Place::Internet, NEWS, &[JULIE, DAVID, KATE], "Toys of the week"),
    letter(Place::OnPremises, JULIE, &[ERIN], "Re: Lunch on Monday?"),
    letter(Place::Internet, ERIN, &[SALES], "An order"),
    letter(Place::Cloud, DAVID, &[JULIE], "Re: Numbers for the board"),
    letter(Place::OnPremises, JULIE, &[PARTNER], "Delivery dates"),
    letter(Place::Internet, MEGAN, &[KATE], "Back from holiday?"),
    letter(Place::Internet, GUESSER, &[GUESSED], "You have won"),
    letter(Place::Internet, MEGAN, &[INFO], "Opening hours"),
    letter(Place::OnPremises, JULIE, &[SALES], "Targets"),
    letter(Place::Cloud, DAVID, &[PARTNER], "The second shipment"),
    letter(Place::Internet, ERIN, &[JULIE, DAVID], "Minutes of the meeting"),
    letter(Place::OnPremises, "scanner@contoso.com", &[JULIE], "A scan from the second floor"),
    letter(Place::OnPremises, JULIE, &[MEGAN, DAVID], "Re: Opening hours"),
    Letter { from: Place::Internet, sender: MEGAN, to: &[DAVID], subject: "Photographs of the site", bytes: 2 << 20 },
    letter(Place::OnPremises, "monitor@contoso.com", &[PARTNER], "Stock is low"),
    letter(Place::Cloud, DAVID, &[MEGAN], "Signed"),
];

/// Who sends where from each place.
pub type Ways = HashMap<Place, (Client, SocketAddr)>;

/// The trickle of one world.
#[derive(Debug)]
pub struct Trickle {
    ways: Ways,
    partner: Arc<Site>,
}

impl Trickle {
    pub(super) fn new(ways: Ways, partner: Arc<Site>) -> Self {
        Self { ways, partner }
    }

    /// Sends, until it is dropped.
    pub async fn run(self) {
        let letters = LETTERS.iter().filter(|letter| self.ways.contains_key(&letter.from)).cycle();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for (number, letter) in letters.enumerate() {
            pace.tick().await;
            let is_bad = (SPELL_BEGINS..SPELL_ENDS).contains(&(number % SPELL));
            self.partner.behave(Behaviour { recipient: is_bad.then(busy), ..Behaviour::default() });
            if let Some((client, door)) = self.ways.get(&letter.from) {
                // What becomes of it is seen in the events; a door that closes is the end of the world.
                let _ = client.send(*door, letter.sender, letter.to, "", &letter.content(number)).await;
            }
        }
    }
}

impl Letter {
    fn content(&self, number: usize) -> String {
        let line = "It is all in here, a line of it and another.\r\n";
        format!(
            "From: <{}>\r\nTo: <{}>\r\nSubject: {}\r\nMessage-ID: <{number}{MESSAGE_ID_END}>\r\nDate: {}\r\n\r\n{}",
            self.sender,
            self.to.join(">, <"),
            self.subject,
            received::date(Timestamp::now()),
            line.repeat(1 + self.bytes / line.len()),
        )
    }
}

fn busy() -> Reply {
    Reply { code: 451, status: Some(Status(4, 3, 2)), text: "we are taking stock, come again".into() }
}

/// It tells of the trickle, and not of what a person sends.
pub fn is_ours(record: &Record) -> bool {
    match &record.message_id {
        Some(id) => is_our_id(id),
        // Refused before there was a message.
        None => record.from.as_deref() == Some(GUESSER) && record.to.iter().all(|to| to == GUESSED),
    }
}

/// The message has this Message-ID: the trickle's?
pub fn is_our_id(id: &str) -> bool {
    id.trim_end_matches('>').ends_with(MESSAGE_ID_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_trickle_is_told_in_short() {
        let record = |message_id: Option<&str>, from: &str, to: &str| Record {
            message_id: message_id.map(str::to_owned),
            from: Some(from.to_owned()),
            to: vec![to.to_owned()],
            ..Record::default()
        };
        for (id, from, to, ours) in [
            (Some("<7@trickle.example>"), ERIN, JULIE, true),
            (Some("7@trickle.example"), ERIN, JULIE, true),
            (Some("<7@fabrikam.com>"), GUESSER, GUESSED, false),
            (None, GUESSER, GUESSED, true),
            (None, "you@fabrikam.com", GUESSED, false),
            (None, GUESSER, "nobody@contoso.com", false),
        ] {
            assert_eq!(is_ours(&record(id, from, to)), ours, "{id:?} {from} {to}");
        }
    }

    /// What the first minute is to show is there, whichever places send.
    #[test]
    fn the_mixture_has_everything() {
        let inside_only: Vec<&Letter> = LETTERS.iter().filter(|letter| letter.from != Place::Cloud).collect();
        for letters in [LETTERS.iter().collect(), inside_only] {
            let to = |address| letters.iter().any(|letter: &&Letter| letter.to.contains(&address));
            for address in [JULIE, DAVID, KATE, SALES, INFO, ERIN, PARTNER, GUESSED] {
                assert!(to(address), "{address}");
            }
            assert!(letters.iter().any(|letter| letter.content(0).len() > 2_000_000));
            let lap = letters.len();
            let partners = (SPELL_BEGINS..SPELL_ENDS).filter(|at| letters[at % lap].to.contains(&PARTNER)).count();
            assert!(partners > 2, "the bad spell meets {partners} messages");
        }
        assert!(PACE * u32::try_from(SPELL_ENDS).unwrap() < Duration::from_secs(60));
    }
}
