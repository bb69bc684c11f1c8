//! SPF records of strangers, as `check --live` reads them. A case is a domain's TXT records, one a line.

use causeway::probe::spf::{self, LOOKUPS};

pub fn spf(data: &[u8]) {
    // A TXT record may hold anything; what is no UTF-8 comes to us so.
    let text = String::from_utf8_lossy(data);
    let texts: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let spf = spf::read(&texts);
    assert!(spf.mistakes.iter().all(|mistake| !mistake.is_empty()));
    for mistake in &spf.mistakes {
        assert!(!mistake.chars().any(char::is_control), "a stranger's control characters: {mistake:?}");
        assert!(mistake.chars().count() < 1000 + 130 * texts.len(), "a stranger's novel");
    }
    let records = texts.iter().filter(|text| {
        let version = text.as_bytes().get(..6);
        version.is_some_and(|version| version.eq_ignore_ascii_case(b"v=spf1"))
            && matches!(text.as_bytes().get(6), None | Some(b' '))
    });
    match records.collect::<Vec<_>>()[..] {
        [] => assert!(spf.record.is_none() && spf.lookups == 0 && spf.includes.is_empty()),
        // RFC 7208 section 3.2: of several none holds.
        [_, _, ..] => assert!(spf.record.is_none() && spf.mistakes.len() == 1),
        [record] => {
            assert_eq!(spf.record.as_ref(), Some(record));
            assert!(spf.includes.len() <= spf.lookups);
            assert_eq!(spf.lookups > LOOKUPS, spf.mistakes.iter().any(|mistake| mistake.contains("DNS look-ups")));
            // Blanks between terms, and case, mean nothing. RFC 7208 sections 4.6.1 and 12.
            let spread = record.replace(' ', "   ");
            let again = spf::read(&[spread]);
            assert_eq!(
                (again.lookups, &again.includes, again.mistakes.len()),
                (spf.lookups, &spf.includes, spf.mistakes.len())
            );
            let upper = spf::read(&[record.to_ascii_uppercase()]);
            assert_eq!(
                (upper.lookups, upper.mistakes.len()),
                (spf.lookups, spf.mistakes.len()),
                "{:?}",
                upper.mistakes
            );
            // Records beside it are nobody's business.
            let beside = spf::read(&[record.clone(), "google-site-verification=x".to_owned()]);
            assert_eq!(beside, spf);
        }
    }
}
