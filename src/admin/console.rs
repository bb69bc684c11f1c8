//! The console: one page and its files, in the binary, for a browser.
//!
//! Nothing of it needs the token, because nothing of it says anything of the mail: the page asks for the token and then asks
//! the rest of this interface. `guard` watches over it as over everything else. Scripts and styles come from here only, and
//! nothing may stand in the markup: what came from mail could not run even if the page made a mistake with it.
//!
//! Standards: Content Security Policy Level 3, Fetch metadata, RFC 9110 section 13 (If-None-Match), RFC 9111 section 5.2.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::{Error, Shared};

/// Only what comes from here, no markup that runs, no other site around it, and no form that goes anywhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Other windows and other sites' pages get no hold of it.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// What a page could ask a browser for and this one never does.
const PERMISSIONS: HeaderName = HeaderName::from_static("permissions-policy");

/// One file.
struct File {
    /// Its place below `/console/`, as below `src/admin/console/`.
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! files {
    ($($name:literal $kind:ident,)*) => {
        &[$(File { name: $name, kind: $kind, text: include_str!(concat!("console/", $name)) },)*]
    };
}

/// Everything there is. The page is the first.
static FILES: &[File] = files![
    "index.html" HTML,
    "console.css" CSS,
    "icon.svg" SVG,
    "theme.js" JS,
    "app.js" JS,
    "api.js" JS,
    "change.js" JS,
    "connectors.js" JS,
    "dom.js" JS,
    "explain.js" JS,
    "flow.js" JS,
    "load.js" JS,
    "queue.js" JS,
    "shell.js" JS,
    "status.js" JS,
    "trace.js" JS,
    "vendor/README.txt" TEXT,
    "vendor/d3-array/LICENSE" TEXT,
    "vendor/d3-array/max.js" JS,
    "vendor/d3-array/min.js" JS,
    "vendor/d3-array/sum.js" JS,
    "vendor/d3-sankey/LICENSE" TEXT,
    "vendor/d3-sankey/align.js" JS,
    "vendor/d3-sankey/constant.js" JS,
    "vendor/d3-sankey/sankey.js" JS,
    "vendor/uplot/LICENSE" TEXT,
    "vendor/uplot/uPlot.esm.js" JS,
    "vendor/uplot/uPlot.min.css" CSS,
];

/// Where the page is, and where its files are.
const PAGE: &str = "/";
const FOLDER: &str = "/console/";

/// The page and its files. They are no part of the API, and of its document: a browser reads them, no program.
pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route(PAGE, get(async |headers: HeaderMap| answer("index.html", &headers)))
        .route("/console/{*name}", get(async |Path(name): Path<String>, headers: HeaderMap| answer(&name, &headers)))
}

/// Is this the page, or one of its files?
pub(super) fn is_ours(path: &str) -> bool {
    path == PAGE || path.strip_prefix(FOLDER).is_some_and(|name| find(name).is_some())
}

fn find(name: &str) -> Option<(usize, &'static File)> {
    FILES.iter().enumerate().find(|(_, file)| file.name == name)
}

/// One tag for each file. It has to differ where the content does, no more: this is no secret.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    let tag = |file: &File| {
        let mut hasher = DefaultHasher::new();
        file.text.hash(&mut hasher);
        HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()))
            .expect("digits between quotes are a header's value")
    };
    FILES.iter().map(tag).collect()
});

fn answer(name: &str, asked: &HeaderMap) -> Response {
    let Some((number, file)) = find(name) else {
        return Error::new(StatusCode::NOT_FOUND, "there is no such file; the console is at /").into_response();
    };
    let tag = &TAGS[number];
    let known = asked.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag);
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { file.text.into_response() };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, file.kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // Kept, but asked for each time whether it is still so: after an upgrade nobody sees half of the old page.
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (OPENER_POLICY, "same-origin"),
        (RESOURCE_POLICY, "same-origin"),
        (PERMISSIONS, "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(ETAG, tag.clone());
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path as FilePath;

    use super::*;

    fn ask(name: &str) -> Response {
        answer(name, &HeaderMap::new())
    }

    /// Sources that are ours.
    fn own() -> impl Iterator<Item = &'static File> {
        FILES.iter().filter(|file| !file.name.starts_with("vendor/"))
    }

    /// What stands between quotes behind each `before`.
    fn quoted<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    /// `vendor/d3-sankey/sankey.js` and `../d3-array/max.js`: `vendor/d3-array/max.js`.
    fn beside(name: &str, other: &str) -> String {
        let mut parts: Vec<&str> = name.split('/').collect();
        parts.pop();
        for part in other.split('/') {
            match part {
                "." => {}
                ".." => assert!(parts.pop().is_some(), "{name} names {other}"),
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    #[test]
    fn every_file_that_is_named_is_served() {
        let mut named = BTreeSet::from(["index.html".to_owned()]);
        let page = FILES[0].text;
        for place in quoted(page, " href=\"").into_iter().chain(quoted(page, " src=\"")) {
            named.insert(place.strip_prefix(FOLDER).expect(place).to_owned());
        }
        for file in FILES.iter().filter(|file| file.kind == JS) {
            for other in quoted(file.text, "import \"").into_iter().chain(quoted(file.text, "from \"")) {
                // A name without a dot in front would need an import map, which would be inline script.
                assert!(other.starts_with("./") || other.starts_with("../"), "{}: {other}", file.name);
                named.insert(beside(file.name, other));
            }
        }
        assert!(named.len() > 20, "{named:?}");
        for name in &named {
            let response = ask(name);
            assert_eq!(response.status(), StatusCode::OK, "{name}");
            let kind = match FilePath::new(name).extension().and_then(|kind| kind.to_str()) {
                Some("js") => JS,
                Some("css") => CSS,
                Some("svg") => SVG,
                _ => HTML,
            };
            assert_eq!(response.headers()[CONTENT_TYPE], kind, "{name}");
            assert!(is_ours(&format!("{FOLDER}{name}")), "{name}");
        }
        // And nothing is carried along that nobody asks for, but for licences and where things come from.
        for file in FILES.iter().filter(|file| file.kind != TEXT) {
            assert!(named.contains(file.name), "{} is not used", file.name);
        }
    }

    #[test]
    fn s161_the_policy_lets_nothing_run_that_stands_in_markup() {
        for file in FILES {
            let response = ask(file.name);
            let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'; "), "{policy}");
            assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
            for part in ["script-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
                assert!(policy.split("; ").any(|found| found == part), "{part}");
            }
            assert_eq!(response.headers()[CACHE_CONTROL], "no-cache");
            assert_eq!(response.headers()[X_FRAME_OPTIONS], "DENY");
        }
    }

    /// A handler as an attribute: ` onclick="`, ` onload =`.
    fn has_handler(text: &str) -> bool {
        text.match_indices(" on").any(|(at, _)| {
            let rest = text[at + 3..].trim_start_matches(|c: char| c.is_ascii_lowercase());
            let name = text.len() - at - 3 - rest.len();
            name > 2 && rest.trim_start().starts_with('=') && !rest.trim_start().starts_with("==")
        })
    }

    #[test]
    fn s161_what_came_from_mail_cannot_become_markup() {
        assert!(has_handler("<a onclick=\"x()\">") && !has_handler("const on = 1; go on == 1"));
        for file in own() {
            let (name, text) = (file.name, file.text);
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "createContextualFragment",
                "DOMParser",
                "srcdoc",
                "eval(",
                "new Function",
                "javascript:",
            ] {
                assert!(!text.contains(word), "{name}: {word}");
            }
            assert!(!has_handler(text), "{name}: a handler as an attribute");
            for inline in ["style=\"", "setAttribute(\"style", "cssText", "<style"] {
                assert!(!text.contains(inline), "{name}: {inline}");
            }
            // Nothing from elsewhere; the name of the namespace of pictures is no address.
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{name}: another site");
        }
        for script in FILES[0].text.split("<script").skip(1) {
            let (attributes, rest) = script.split_once('>').unwrap();
            assert!(attributes.contains(" src=\"/console/") && rest.starts_with("</script>"), "inline: {script}");
        }
        // Of what is not ours, what would act on a string.
        for file in FILES.iter().filter(|file| file.name.starts_with("vendor/") && file.kind == JS) {
            for word in ["innerHTML", "insertAdjacentHTML", "eval(", "new Function"] {
                assert!(!file.text.contains(word), "{}: {word}", file.name);
            }
        }
    }

    #[test]
    fn licences_travel_along() {
        let folders: BTreeSet<&str> = FILES
            .iter()
            .filter_map(|file| file.name.strip_prefix("vendor/")?.split_once('/').map(|(folder, _)| folder))
            .collect();
        assert_eq!(folders.len(), 3);
        let readme = FILES.iter().find(|file| file.name == "vendor/README.txt").unwrap();
        for folder in folders {
            let licence = FILES.iter().find(|file| file.name == format!("vendor/{folder}/LICENSE")).expect(folder);
            assert!(licence.text.contains("Copyright") && licence.text.len() > 500, "{folder}");
            assert!(readme.text.contains(folder), "{folder}");
        }
    }

    #[test]
    fn the_folder_holds_what_is_served() {
        fn walk(folder: &FilePath, prefix: &str, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), found);
                } else {
                    found.insert(name);
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/console"), "", &mut found);
        assert_eq!(found, FILES.iter().map(|file| file.name.to_owned()).collect());
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let tag = ask("app.js").headers()[ETAG].clone();
        assert_ne!(tag, ask("dom.js").headers()[ETAG]);
        for (known, expected) in [
            (tag.to_str().unwrap().to_owned(), StatusCode::NOT_MODIFIED),
            (format!("\"other\", W/{}", tag.to_str().unwrap()), StatusCode::NOT_MODIFIED),
            ("\"other\"".to_owned(), StatusCode::OK),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, known.parse().unwrap());
            assert_eq!(answer("app.js", &headers).status(), expected, "{known}");
        }
    }

    #[test]
    fn only_what_there_is_is_public() {
        for (path, expected) in [
            ("/", true),
            ("/console/app.js", true),
            ("/console/vendor/uplot/uPlot.esm.js", true),
            ("/console/", false),
            ("/console", false),
            ("/console/../api/v1/status", false),
            ("/console/%61pp.js", false),
            ("/api/v1/status", false),
            ("//", false),
        ] {
            assert_eq!(is_ours(path), expected, "{path}");
        }
    }
}
