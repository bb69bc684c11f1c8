//! Who may ask at all, before anything is looked at.
//!
//! The listener is on loopback, where every user of the host and every page in a browser on it can reach it. So each
//! request must name a loopback host (a page that had its own name point here names that: DNS rebinding), must not come
//! from another site's page, must carry the token (but for the two questions of health), and must not change anything by
//! GET. S-160, S-161.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::{Error, Shared, TIME_LIMIT, is_public};

/// Says whether a page of another site makes the browser ask. Fetch metadata request headers, W3C.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets through what may be asked, within the time there is for an answer.
pub(super) async fn watch(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let checked = match check(&shared, &request) {
        Err(Refused::WrongToken(error)) => {
            shared.throttle.wait().await;
            Err(error)
        }
        Err(Refused::Other(error)) => Err(error),
        Ok(()) => Ok(()),
    };
    let mut response = match checked {
        Ok(()) => match tokio::time::timeout(TIME_LIMIT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let text = format!("not answered within {TIME_LIMIT:?}; ask for less at a time");
                Error::new(StatusCode::SERVICE_UNAVAILABLE, text).into_response()
            }
        },
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Why somebody may not ask.
enum Refused {
    /// It is not the token.
    WrongToken(Error),
    Other(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn check(shared: &Shared, request: &Request) -> Result<(), Refused> {
    let headers = request.headers();
    let host = host(headers)?;
    check_site(headers, host)?;
    if is_public(request.uri().path()) {
        return Ok(());
    }
    check_token(shared, headers)?;
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_json(headers) {
        // What a form of another site's page can send is never this.
        let text = "a change is asked for in application/json";
        return Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into());
    }
    Ok(())
}

/// The host that the request names, which must be a loopback one.
fn host(headers: &HeaderMap) -> Result<&str, Error> {
    let mut all = headers.get_all(HOST).iter();
    let host = match (all.next(), all.next()) {
        (Some(host), None) => host.to_str().ok(),
        _ => None,
    };
    let host = host.ok_or_else(|| Error::new(StatusCode::BAD_REQUEST, "one Host header is needed"))?;
    if is_loopback(host) {
        Ok(host)
    } else {
        Err(Error::new(StatusCode::FORBIDDEN, "this is not the host that was asked for; name localhost or 127.0.0.1"))
    }
}

/// `localhost`, `127.0.0.1:8025`, `[::1]:8025`.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// A page of another site may not ask, whatever the browser would let it read.
fn check_site(headers: &HeaderMap, host: &str) -> Result<(), Error> {
    let forbidden = || Error::new(StatusCode::FORBIDDEN, "pages of other sites may not ask here");
    for origin in headers.get_all(ORIGIN) {
        let same = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if !same.is_some_and(|same| same.eq_ignore_ascii_case(host)) {
            return Err(forbidden());
        }
    }
    for site in headers.get_all(SEC_FETCH_SITE) {
        if site != "same-origin" && site != "none" {
            return Err(forbidden());
        }
    }
    Ok(())
}

fn check_token(shared: &Shared, headers: &HeaderMap) -> Result<(), Refused> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let said = match (all.next(), all.next()) {
        (Some(said), None) => said.as_bytes(),
        _ => b"",
    };
    // RFC 6750 section 2.1; RFC 9110 section 11.1: the scheme is not case-sensitive.
    let token = said.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
    match token {
        Some((_, token)) if shared.token.load().is(token) => Ok(()),
        Some(_) => {
            Err(Refused::WrongToken(Error::new(StatusCode::UNAUTHORIZED, "this is not the token in token_file")))
        }
        None => {
            let text = "the token in token_file is needed: Authorization: Bearer …";
            Err(Error::new(StatusCode::UNAUTHORIZED, text).into())
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|said| said.to_str().ok()).unwrap_or_default();
    said.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn s161_only_loopback_names_are_ours() {
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:8025", true),
            ("127.0.0.1:8025", true),
            ("127.9.9.9", true),
            ("[::1]:8025", true),
            ("[::1]", true),
            ("::1", false),
            ("evil.example:8025", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("192.0.2.1", false),
            ("[::ffff:192.0.2.1]", false),
            ("[", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host:?}");
        }
    }

    #[test]
    fn s161_pages_of_other_sites_may_not_ask() {
        let host = "localhost:8025";
        for (pairs, expected) in [
            (&[][..], true),
            (&[("origin", "http://localhost:8025")], true),
            (&[("origin", "http://localhost:8025"), ("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("origin", "http://127.0.0.1:8025")], false),
            (&[("origin", "https://localhost:8025")], false),
            (&[("origin", "http://evil.example")], false),
            (&[("origin", "null")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("origin", "http://localhost:8025"), ("origin", "http://evil.example")], false),
        ] {
            assert_eq!(check_site(&headers(pairs), host).is_ok(), expected, "{pairs:?}");
        }
    }

    #[test]
    fn forms_send_something_else() {
        for (said, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("text/plain; application/json", false),
        ] {
            assert_eq!(is_json(&headers(&[("content-type", said)])), expected, "{said:?}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
