//! The configuration file: whatever stands in it, every mistake is said with its place, and nothing else happens.

use std::path::Path;

use causeway::config::{self, Places, Severity};

/// In a folder that is not there, so that no file which a case names is.
const FILE: &str = "/nonexistent/causeway/causeway.toml";

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new(FILE);
    let first = config::parse(text, path);
    let places = Places::of(text, path);
    let lines: Vec<&str> = text.split('\n').collect();
    let is_place = |(line, column): (usize, usize)| {
        let length = lines.get(line.wrapping_sub(1)).map(|line| line.chars().count());
        length.is_some_and(|length| column >= 1 && column <= length + 1)
    };
    for (section, key) in [("", "hostname"), ("spool", "path"), ("hybrid", "side"), ("directory", "path")] {
        assert!(places.find(section, "", key).is_none_or(is_place));
    }
    // Twice the same, in the same words.
    let again = config::parse(text, path);
    match (first, again) {
        (Ok(one), Ok(two)) => {
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
            // A remark at the end changes nothing.
            let remarked = config::parse(&format!("{text}\n# the end\n"), path);
            assert_eq!(remarked.map(|config| format!("{config:?}")), Ok(format!("{one:?}")));
            for connector in &one.send_connectors {
                assert!(one.send_connector(&connector.name).is_some());
            }
        }
        (Err(one), Err(two)) => {
            assert_eq!(one, two);
            assert!(one.errors().next().is_some(), "refused without a reason");
            for problem in &one.0 {
                assert_eq!(problem.file, path);
                assert!(problem.place.is_none_or(is_place), "{problem:?} is not in the file");
                assert!(!problem.text.is_empty());
                assert!(!problem.text.chars().any(|letter| letter.is_control()), "{:?}", problem.text);
                assert!(problem.text.chars().count() < 2000 + text.len(), "{:?}", problem.text);
            }
            assert!(one.0.is_sorted_by_key(|problem| problem.place));
            let unreadable = one.0.iter().any(|problem| problem.severity == Severity::Unreadable);
            assert_eq!(unreadable, one.unreadable());
        }
        (one, two) => panic!("{one:?} and {two:?}"),
    }
}
