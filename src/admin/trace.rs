//! What became of messages, from the tracking files, with the bounds that a daemon at work needs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use jiff::Timestamp;

use super::flow::{finish, number, query, said};
use super::{Error, Shared, blocking, json, wrong};
use crate::outcome::tracking::search::{self, Query, Relay, Traced, moment};

/// Messages of an answer, unless others are asked for, and at the most.
const MESSAGES: (usize, usize) = (20, 200);
/// So long is searched; what was found so far is then said, and that it is not all.
const SEARCH: Duration = Duration::from_secs(20);
/// The longest address or Message-ID that is looked for.
const WORDS: usize = 1000;

pub(super) async fn trace(State(admin): State<Shared>, uri: Uri) -> Result<Response, Error> {
    let asked = asked(&uri, Timestamp::now())?;
    let (traced, name) = find(&admin, asked, SEARCH).await?;
    let mut answer = traced.json(&[&name]);
    answer["remarks"] = traced.remarks.into();
    Ok(json(StatusCode::OK, &answer))
}

fn asked(uri: &Uri, now: Timestamp) -> Result<Query, Error> {
    let mut query = query(uri)?;
    let mut text = |key: &str| match said(&mut query, key) {
        Some(text) if text.len() > WORDS => Err(wrong(format!("{key}: at most {WORDS} bytes"))),
        text => Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())),
    };
    let asked = Query {
        id: text("id")?.map(|id| search::id(&id)).transpose().map_err(|why| wrong(format!("id: {why}")))?,
        message_id: text("message_id")?,
        from: text("from")?,
        to: text("to")?,
        since: text("since")?
            .map(|text| moment(&text, now, false))
            .transpose()
            .map_err(|why| wrong(format!("since: {why}")))?,
        until: text("until")?
            .map(|text| moment(&text, now, true))
            .transpose()
            .map_err(|why| wrong(format!("until: {why}")))?,
        ..Query::default()
    };
    let limit = number(&mut query, "limit", MESSAGES.0 as u32, MESSAGES.1 as u32)? as usize;
    finish(&query)?;
    if asked.id.is_none()
        && asked.message_id.is_none()
        && asked.from.is_none()
        && asked.to.is_none()
        && asked.since.is_none()
        && asked.until.is_none()
    {
        return Err(wrong("say at least one of id, message_id, from, to, since and until"));
    }
    Ok(Query { limit, ..asked })
}

/// Searches the files of the relay that runs, one search at a time and on one core less than there are. Also gives the
/// relay's name.
pub(super) async fn find(admin: &Shared, query: Query, time: Duration) -> Result<(Traced, String), Error> {
    let snapshot = admin.relay.snapshot();
    let Some(tracking) = snapshot.config.tracking.clone() else {
        let text = "the configuration says [tracking] path = \"\": no events are written, so none can be found";
        return Err(Error::new(StatusCode::NOT_FOUND, text));
    };
    let name = snapshot.config.hostname.to_string();
    let relay = admin.relay.clone();
    let place = Arc::clone(&admin.searches).acquire_owned().await;
    let found = blocking(move || {
        // Who asked may be gone before the end; the next search waits for it all the same.
        let _place = place;
        // What happened a moment ago is asked about most.
        relay.flush_events();
        let files =
            Relay::open(&name, &tracking.path).map_err(|error| format!("{}: {error}", tracking.path.display()))?;
        let query = Query { deadline: Some(Instant::now() + time), gentle: true, ..query };
        Ok::<_, String>((search::trace(&[files], &query), name))
    })
    .await?;
    found.map_err(|why| Error::new(StatusCode::INTERNAL_SERVER_ERROR, why))
}
