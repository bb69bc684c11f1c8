//! The queue over HTTP: what was asked, as the relay understands it.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, Shared, blocking, body, json, trace, wrong};
use crate::outcome::tracking::search::{Query, Traced};
use crate::outcome::tracking::{Record, Try};
use crate::relay::queue::{Attempted, By, Change, Filter, Listing, Page, Shown, Sort, Unanswered, parse_id};

/// Entries of one page, unless more are asked for.
const PAGE: usize = 100;
/// Entries of one page at the most: a megabyte or so.
const LONGEST_PAGE: usize = 1000;
/// So long a walk over the queue may take; then there are some seconds left to say so.
const WALK: Duration = Duration::from_secs(25);
/// So long one request goes on changing; who asks then goes on with `next`.
const CHANGING: Duration = Duration::from_secs(10);
/// Attempts of a copy that are shown, the newest of them.
const ATTEMPTS: usize = 50;
/// Recipients that each of them names.
const ATTEMPT_RECIPIENTS: usize = 100;
/// So long they are looked for: who asks wants to see the message first of all.
const ATTEMPTS_TIME: Duration = Duration::from_secs(8);
/// The longest name and reason.
const WORDS: usize = 200;

/// What the body of a change says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// Which copies.
    pub filter: Filter,
    /// Everything: needed where the filter is empty.
    pub all: bool,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// To go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl From<Unanswered> for Error {
    fn from(why: Unanswered) -> Self {
        let status = match why {
            Unanswered::Wrong(_) => StatusCode::BAD_REQUEST,
            Unanswered::TooLong | Unanswered::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, why.to_string())
    }
}

/// The part behind the question mark.
fn listing(uri: &Uri) -> Result<Listing, Error> {
    let pairs: axum::extract::Query<Vec<(String, String)>> =
        axum::extract::Query::try_from_uri(uri).map_err(|error| wrong(error.to_string()))?;
    let mut listing = Listing { filter: Filter::default(), sort: None, descending: false, limit: PAGE, cursor: None };
    let mut filter = Map::new();
    for (key, value) in pairs.0 {
        let number = || value.parse::<u64>().map_err(|_| wrong(format!("{key}: expected a number")));
        match key.as_str() {
            "limit" => {
                listing.limit = usize::try_from(number()?).unwrap_or(usize::MAX);
                if !(1..=LONGEST_PAGE).contains(&listing.limit) {
                    return Err(wrong(format!("limit: expected 1 to {LONGEST_PAGE}")));
                }
            }
            "cursor" => listing.cursor = Some(value),
            "descending" => {
                listing.descending = value.parse().map_err(|_| wrong("descending: expected true or false"))?;
            }
            "sort" => {
                let sort: Result<Sort, _> = serde_json::from_value(Value::String(value));
                listing.sort = Some(sort.map_err(|error| wrong(format!("sort: {error}")))?);
            }
            "older_than" | "younger_than" => {
                let number = number()?;
                filter.insert(key, number.into());
            }
            _ => {
                if filter.insert(key.clone(), value.into()).is_some() {
                    return Err(wrong(format!("{key}: said twice")));
                }
            }
        }
    }
    listing.filter = serde_json::from_value(Value::Object(filter)).map_err(|error| wrong(error.to_string()))?;
    Ok(listing)
}

pub(super) async fn list(State(admin): State<Shared>, uri: Uri) -> Result<Response, Error> {
    let listing = listing(&uri)?;
    let _place = admin.walks.acquire().await;
    let relay = admin.relay.clone();
    let deadline = Instant::now() + WALK;
    let page: Page = blocking(move || relay.list(&listing, deadline)).await??;
    Ok(json(StatusCode::OK, &page))
}

pub(super) async fn show(State(admin): State<Shared>, Path(id): Path<String>) -> Result<Response, Error> {
    let id = parse_id(&id)?;
    let relay = admin.relay.clone();
    let Some(mut shown) = blocking(move || relay.show(id)).await? else {
        let text = format!("{id} does not wait here; trace knows what became of it");
        return Err(Error::new(StatusCode::NOT_FOUND, text));
    };
    if admin.relay.snapshot().config.tracking.is_some() {
        match trace::find(&admin, Query { id: Some(id), limit: 1, ..Query::default() }, ATTEMPTS_TIME).await {
            Ok((traced, _)) => tell_attempts(&mut shown, &traced),
            // What waits is known all the same.
            Err(error) => shown.remarks.push(error.text),
        }
    }
    Ok(json(StatusCode::OK, &shown))
}

/// Gives each copy what was tried of it.
fn tell_attempts(shown: &mut Shown, traced: &Traced) {
    shown.remarks.extend(traced.remarks.iter().cloned());
    // Another message with the same Message-ID is of the same story. A change by an operator has no status.
    let is_attempt = |record: &&Record| {
        matches!(record.event.as_str(), "SEND" | "DEFER" | "FAIL")
            && record.id.as_deref() == Some(&shown.id)
            && record.status.is_some()
    };
    let stories = traced.stories.iter().flat_map(|story| story.events.iter().rev());
    let attempts: Vec<&Record> = stories.map(|told| &told.record).filter(is_attempt).collect();
    for copy in &mut shown.copies {
        let is_of_copy = |record: &&&Record| {
            record.connector.as_deref() == Some(&copy.entry.connector)
                && record.to.iter().any(|to| copy.recipients.iter().any(|recipient| recipient.to == *to))
        };
        let of_copy = attempts.iter().filter(is_of_copy).take(ATTEMPTS);
        copy.attempts = of_copy.map(|record| attempted(record)).collect();
    }
}

fn attempted(record: &Record) -> Attempted {
    // What went well has the words of the host, and nothing behind them.
    let (reply, which) = match record.detail.as_deref() {
        Some(detail) if record.event != "SEND" => Try::split(detail),
        detail => (detail.unwrap_or_default(), None),
    };
    Attempted {
        time: record.time.clone(),
        event: record.event.clone(),
        to: record.to.iter().take(ATTEMPT_RECIPIENTS).cloned().collect(),
        host: record.peer.clone(),
        tls: record.tls.clone(),
        status: record.status.clone(),
        reply: record.detail.is_some().then(|| reply.to_owned()),
        attempt: which.map(|which| which.number),
        next: which.and_then(|which| which.next),
    }
}

pub(super) async fn hold(state: State<Shared>, body: Body) -> Result<Response, Error> {
    change(state, body, Change::Hold).await
}

pub(super) async fn release(state: State<Shared>, body: Body) -> Result<Response, Error> {
    change(state, body, Change::Release).await
}

pub(super) async fn retry(state: State<Shared>, body: Body) -> Result<Response, Error> {
    change(state, body, Change::Retry).await
}

pub(super) async fn bounce(state: State<Shared>, body: Body) -> Result<Response, Error> {
    change(state, body, Change::Bounce).await
}

pub(super) async fn remove(state: State<Shared>, body: Body) -> Result<Response, Error> {
    change(state, body, Change::Remove).await
}

async fn change(State(admin): State<Shared>, sent: Body, change: Change) -> Result<Response, Error> {
    let wanted: Wanted = body(sent).await?;
    if wanted.filter.is_empty() != wanted.all {
        return Err(wrong("say which in filter, or \"all\": true, and not both"));
    }
    for text in [&wanted.by, &wanted.reason].into_iter().flatten() {
        // They stand in the log, in tracking and in reports.
        if text.len() > WORDS || text.chars().any(char::is_control) {
            return Err(wrong(format!("by and reason: at most {WORDS} bytes, without control characters")));
        }
    }
    let who = match wanted.by.as_deref().map(str::trim).filter(|by| !by.is_empty()) {
        Some(by) => format!("{by} over the admin interface"),
        None => "somebody over the admin interface".to_owned(),
    };
    let by = By { who, reason: wanted.reason.filter(|reason| !reason.trim().is_empty()) };
    let _place = admin.walks.acquire().await;
    // Who asked may be gone before the end; what was begun is not left half done.
    let deadline = Instant::now() + CHANGING;
    let relay = admin.relay.clone();
    let task =
        tokio::spawn(
            async move { relay.change(change, &wanted.filter, &by, wanted.cursor.as_deref(), deadline).await },
        );
    let changed = task.await.map_err(|error| Error::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))??;
    Ok(json(StatusCode::OK, &changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_may_say() {
        for (query, expected) in [
            ("", Ok(())),
            ("sender=a%40example.com&domain=example.net&status=held&older_than=60&sort=age&descending=true", Ok(())),
            ("limit=1000&cursor=w1.2.3", Ok(())),
            ("limit=0", Err("limit: expected 1 to 1000")),
            ("limit=1001", Err("limit: expected 1 to 1000")),
            ("limit=-1", Err("limit: expected a number")),
            ("older_than=soon", Err("older_than: expected a number")),
            ("status=odd", Err("unknown variant")),
            ("sort=odd", Err("sort: unknown variant")),
            ("descending=1", Err("descending: expected true or false")),
            ("recipent=a", Err("unknown field `recipent`")),
            ("sender=a&sender=b", Err("sender: said twice")),
        ] {
            let uri: Uri = format!("/api/v1/queue?{query}").parse().unwrap();
            match (listing(&uri), expected) {
                (Ok(_), Ok(())) => {}
                (Err(error), Err(words)) => assert!(error.text.contains(words), "{query}: {}", error.text),
                (found, _) => panic!("{query}: {found:?}"),
            }
        }
    }
}
