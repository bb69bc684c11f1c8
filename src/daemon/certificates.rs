//! What the log says about our own certificates and roots: that they end soon, that a chain is not whole, that a new
//! pair was left alone, that a renewed one lacks names that the one before it carried.
//!
//! Each thing is said once, when it comes to pass: 30, 14 and 7 days before the end, then daily. `now` is an argument;
//! the daemon has the timer.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tracing::{error, info, warn};

use crate::config::Config;
use crate::tls::{Expiry, Roots, store};

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// Of each certificate that ends soon: the last mark that it passed.
    marks: HashMap<Which, Mark>,
    /// What is wrong with chains as they are sent.
    gaps: Vec<String>,
    /// Which names were lost by renewals.
    lost: Vec<String>,
    /// What is not taken because it is worse than what is in use.
    kept: Vec<String>,
}

/// A certificate by its name, for people, and its end: the next one under that name has another.
type Which = (String, Timestamp);

/// How near the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Within 30 days.
    Thirty,
    /// Within 14.
    Fourteen,
    /// Within 7: in the last days, counted from the end.
    Days(i64),
    /// Over, for so many whole days.
    Over(i64),
}

impl Mark {
    fn of(at: Timestamp, now: Timestamp) -> Option<Self> {
        const DAY: SignedDuration = SignedDuration::from_hours(24);
        let left = at.duration_since(now);
        match left {
            _ if now > at => Some(Self::Over(-left.as_hours() / 24)),
            // Begun days: the seventh before the end is not over after its first hour.
            _ if left <= DAY * 7 => Some(Self::Days((left.as_secs() - 1) / DAY.as_secs() + 1)),
            _ if left <= DAY * 14 => Some(Self::Fourteen),
            _ if left <= store::SOON => Some(Self::Thirty),
            _ => None,
        }
    }
}

impl Certificates {
    /// Looks at all there is to say: after a start, and when the files were read again. The system's roots may have to
    /// be read for it, which blocks.
    pub(super) async fn look(&mut self, config: &Arc<Config>, now: Timestamp) {
        self.look_at_dates(config, now);
        for lost in self.newly_lost(config) {
            warn!("{lost}");
        }
        let config = Arc::clone(config);
        let gaps = tokio::task::spawn_blocking(move || gaps(&config, now)).await.unwrap_or_default();
        for gap in gaps.iter().filter(|gap| !self.gaps.contains(gap)) {
            warn!("{gap}");
        }
        self.gaps = gaps;
    }

    /// Looks at the dates only.
    pub(super) fn look_at_dates(&mut self, config: &Config, now: Timestamp) {
        for (expiry, mark) in self.passed(expiries(config), now) {
            let Expiry { what, at } = expiry;
            match mark {
                Mark::Over(_) => error!(
                    "{what} was valid until {at}: who checks it refuses it; put a new one in its place, no restart is needed"
                ),
                Mark::Thirty | Mark::Fourteen | Mark::Days(_) => {
                    warn!(
                        "{what} ends in {}, at {at}; put a new one in its place, no restart is needed",
                        store::left(at, now)
                    );
                }
            }
        }
    }

    /// Those that passed a mark since they were last looked at.
    fn passed(&mut self, expiries: Vec<Expiry>, now: Timestamp) -> Vec<(Expiry, Mark)> {
        let mut marks = HashMap::new();
        let mut passed = Vec::new();
        for expiry in expiries {
            let Some(mark) = Mark::of(expiry.at, now) else { continue };
            let which = (expiry.what.clone(), expiry.at);
            // Several connectors may name it.
            let known = marks.insert(which.clone(), mark).is_some() || self.marks.get(&which) == Some(&mark);
            if !known {
                passed.push((expiry, mark));
            }
        }
        // What is no longer in use is forgotten with it.
        self.marks = marks;
        passed
    }

    /// What is to be said of names that renewals have lost, and was not yet.
    fn newly_lost(&mut self, config: &Config) -> Vec<String> {
        let lost = lost(config);
        let new = lost.iter().filter(|lost| !self.lost.contains(lost)).cloned().collect();
        self.lost = lost;
        new
    }

    /// These files were left alone, and why; those of before that are not among them were taken.
    pub(super) fn kept(&mut self, kept: Vec<String>) {
        for why in kept.iter().filter(|why| !self.kept.contains(why)) {
            warn!("{why}; what is in use stays until the file changes again");
        }
        if kept.is_empty() && !self.kept.is_empty() {
            info!("the certificates are in order again and taken");
        }
        self.kept = kept;
    }
}

fn expiries(config: &Config) -> Vec<Expiry> {
    let roots = config.roots().flat_map(Roots::expiries);
    config.identities().flat_map(|identity| identity.expiries()).chain(roots).collect()
}

fn lost(config: &Config) -> Vec<String> {
    let mut all = Vec::new();
    for identity in config.identities() {
        let lost = identity.lost();
        if lost.is_empty() {
            continue;
        }
        let (file, lost, names) = (identity.certificate.display(), lost.join(", "), identity.names().join(", "));
        let text = format!(
            "{file}: the certificate no longer carries {lost}, as the one before it did; it is for {names}. Others that \
             look for the former name take us for somebody else: put one with all names in its place, or agree on the new \
             name"
        );
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

fn gaps(config: &Config, now: Timestamp) -> Vec<String> {
    let known: Vec<Roots> = config.roots().cloned().collect();
    let mut gaps = Vec::new();
    for identity in config.identities() {
        if let Some(finding) = identity.gap_among(&known, now) {
            let gap = format!("{}: {}", identity.certificate.display(), finding.text);
            if !gaps.contains(&gap) {
                gaps.push(gap);
            }
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, Identity};

    /// One renewal a row: what the certificate is for, and which of the former names are lost then.
    #[test]
    fn a_renewal_that_loses_names_is_told() {
        crate::tls::install_provider();
        let authority = Authority::new("CA");
        let mut serving: Option<Identity> = None;
        for (names, lost) in [
            (&["mail.contoso.com", "smtp.contoso.com"][..], &[][..]),
            (&["mail.contoso.com", "smtp.contoso.com"], &[]),
            (&["SMTP.contoso.com", "mail.contoso.com", "more.contoso.com"], &[]),
            (&["mail.contoso.com"], &["SMTP.contoso.com", "more.contoso.com"]),
            (&["mail.fabrikam.com"], &["mail.contoso.com", "SMTP.contoso.com", "more.contoso.com"]),
            (&["*.contoso.com"], &["mail.fabrikam.com"]),
            (&["*.contoso.com", "mail.fabrikam.com"], &[]),
            (&["mail.contoso.com", "mail.fabrikam.com"], &["*.contoso.com"]),
            (&["*.contoso.com", "*.fabrikam.com"], &[]),
        ] {
            let new = authority.identity(names);
            let new = match &serving {
                Some(serving) => new.succeeding(serving),
                None => new,
            };
            let mut found = new.lost();
            found.sort_by_key(|name| lost.iter().position(|lost| lost == name));
            assert_eq!(found, lost, "{names:?}");
            // Read again, it is the same certificate, and what was lost with it stays lost.
            let again = new.clone().succeeding(&new);
            assert_eq!(again.lost().len(), lost.len());
            serving = Some(new);
        }
    }

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    /// S-067: a certificate of 40 days, looked at every hour until two days after its end.
    #[test]
    fn s067_each_mark_is_told_once() {
        let begin: Timestamp = "2026-01-01T00:30:00Z".parse().unwrap();
        let end = begin + HOUR * 24 * 40;
        let expiry = || Expiry { what: "the certificate".to_owned(), at: end };
        let mut certificates = Certificates::default();
        let mut told = Vec::new();
        for hour in 0..24 * 42 {
            // Two connectors have it: it is told once.
            let passed = certificates.passed(vec![expiry(), expiry()], begin + HOUR * hour);
            assert!(passed.len() <= 1, "hour {hour}: {passed:?}");
            told.extend(passed.into_iter().map(|(_, mark)| (hour, mark)));
        }
        let day = |day: i32| day * 24;
        let mut expected = vec![(day(10), Mark::Thirty), (day(26), Mark::Fourteen)];
        expected.extend((0..7).map(|number| (day(33 + number), Mark::Days(7 - i64::from(number)))));
        expected.extend([(day(40) + 1, Mark::Over(0)), (day(41), Mark::Over(1))]);
        assert_eq!(told, expected);
    }

    /// At a start within 30 days of the end it is told at once; a renewed one is another, and one that went is forgotten.
    #[test]
    fn s067_a_start_near_the_end_and_a_renewal() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let in_days = |days: i32| vec![Expiry { what: "the certificate".to_owned(), at: now + HOUR * 24 * days }];
        let mut certificates = Certificates::default();
        for (expiries, expected) in [
            (in_days(31), None),
            (in_days(20), Some(Mark::Thirty)),
            (in_days(20), None),
            (in_days(90), None),
            (in_days(20), Some(Mark::Thirty)),
            (in_days(10), Some(Mark::Fourteen)),
            (in_days(3), Some(Mark::Days(3))),
            (in_days(-3), Some(Mark::Over(3))),
            (Vec::new(), None),
        ] {
            let passed = certificates.passed(expiries.clone(), now).pop().map(|(_, mark)| mark);
            assert_eq!(passed, expected, "{expiries:?}");
        }
    }
}
