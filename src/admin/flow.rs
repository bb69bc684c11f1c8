//! What the pictures of flow and load are made of.

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Error, Shared, blocking, json, wrong};
use crate::relay::history::Range;
use crate::relay::recent::{LONGEST, Wanted};

/// Minutes of the picture, unless others are asked for.
const MINUTES: u32 = 15;
/// Recipients of a list, unless others are asked for, and at the most.
const LINES: (usize, usize) = (100, 1000);

/// The part behind the question mark: each name once.
pub(super) fn query(uri: &Uri) -> Result<Map<String, Value>, Error> {
    let pairs: axum::extract::Query<Vec<(String, String)>> =
        axum::extract::Query::try_from_uri(uri).map_err(|error| wrong(error.to_string()))?;
    let mut map = Map::new();
    for (key, value) in pairs.0 {
        if map.insert(key.clone(), value.into()).is_some() {
            return Err(wrong(format!("{key}: said twice")));
        }
    }
    Ok(map)
}

/// Takes a value out of it; what is empty was not said.
pub(super) fn said(query: &mut Map<String, Value>, key: &str) -> Option<String> {
    match query.remove(key) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// A number in these bounds.
pub(super) fn number<T>(query: &mut Map<String, Value>, key: &str, usual: T, most: T) -> Result<T, Error>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + From<u8>,
{
    let Some(text) = said(query, key) else { return Ok(usual) };
    let number: Option<T> = text.parse().ok().filter(|number| *number >= T::from(1) && *number <= most);
    number.ok_or_else(|| wrong(format!("{key}: expected 1 to {most}")))
}

/// One of the words of a closed set.
fn word<T: DeserializeOwned>(query: &mut Map<String, Value>, key: &str) -> Result<Option<T>, Error> {
    let read =
        |text: String| serde_json::from_value(Value::String(text)).map_err(|error| wrong(format!("{key}: {error}")));
    said(query, key).map(read).transpose()
}

/// Nothing is left that nobody understood.
pub(super) fn finish(query: &Map<String, Value>) -> Result<(), Error> {
    match query.keys().next() {
        Some(key) => Err(wrong(format!("unknown field `{key}`; see /api/v1/openapi.json"))),
        None => Ok(()),
    }
}

pub(super) async fn flow(State(admin): State<Shared>, uri: Uri) -> Result<Response, Error> {
    let mut query = query(&uri)?;
    let minutes = number(&mut query, "minutes", MINUTES, LONGEST)?;
    finish(&query)?;
    let relay = admin.relay.clone();
    let flow = blocking(move || relay.flow(minutes)).await?;
    Ok(json(StatusCode::OK, &flow))
}

pub(super) async fn messages(State(admin): State<Shared>, uri: Uri) -> Result<Response, Error> {
    let mut query = query(&uri)?;
    let minutes = number(&mut query, "minutes", MINUTES, LONGEST)?;
    let limit = number(&mut query, "limit", LINES.0 as u32, LINES.1 as u32)? as usize;
    let wanted = Wanted {
        origin: said(&mut query, "origin").unwrap_or_default(),
        receive_connector: said(&mut query, "receive_connector").unwrap_or_default(),
        verdict: word(&mut query, "verdict")?,
        connector: said(&mut query, "connector").unwrap_or_default(),
        hop: said(&mut query, "hop").unwrap_or_default(),
        state: word(&mut query, "state")?,
    };
    finish(&query)?;
    let relay = admin.relay.clone();
    let listed = blocking(move || relay.flow_messages(minutes, &wanted, limit)).await?;
    Ok(json(StatusCode::OK, &listed))
}

pub(super) async fn load(State(admin): State<Shared>, uri: Uri) -> Result<Response, Error> {
    let mut query = query(&uri)?;
    let range = match said(&mut query, "range").as_deref() {
        None | Some("10m") => Range::Minutes,
        Some("2h") => Range::Hours,
        Some("24h") => Range::Day,
        Some(_) => return Err(wrong("range: expected 10m, 2h or 24h")),
    };
    finish(&query)?;
    Ok(json(StatusCode::OK, &admin.relay.load_over(range)))
}
