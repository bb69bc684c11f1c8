//! AUTH, as the server hears it and as the client answers it. A case is the arguments of AUTH, then a line for each
//! further thing the client says.

use causeway::smtp::Reply;
use causeway::smtp::auth::{Credentials, Exchange, Heard, Hearing, Next};

pub fn exchange(data: &[u8]) {
    let mut lines = data.split(|&octet| octet == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut heard = Hearing::begin(lines.next().unwrap_or_default());
    let mut asked = 0;
    loop {
        // Never what may be a password, in whatever is logged or said.
        let shown = format!("{heard:?}");
        match heard {
            Ok(Heard::More(hearing, challenge)) => {
                asked += 1;
                assert!(asked <= 2, "a login has three lines at most");
                assert!(challenge.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"+/=".contains(&octet)));
                let Some(line) = lines.next() else { return };
                heard = hearing.hear(line);
            }
            Ok(Heard::Whole(credentials)) => return check(&credentials, &shown),
            Ok(Heard::ForAnother) => return,
            Err(reply) => {
                assert!(matches!(reply.code, 501 | 504) && reply.is_permanent(), "{reply}");
                return;
            }
        }
    }
}

/// What was heard can be said again, by either mechanism, and is heard the same.
fn check(credentials: &Credentials, shown: &str) {
    let Credentials { username, password } = credentials;
    assert!(password.len() < 8 || username.contains(&**password) || !shown.contains(&**password), "{shown}");
    for mechanism in ["PLAIN", "LOGIN"] {
        // PLAIN has NUL between its parts (RFC 4616 section 2); LOGIN can say it, and then only LOGIN.
        if mechanism == "PLAIN" && (username.contains('\0') || password.contains('\0')) {
            continue;
        }
        let (mut exchange, command) = Exchange::begin(&[mechanism.into()], credentials).expect("it was offered");
        assert!(command.ends_with("\r\n") && command.matches('\n').count() == 1, "{command:?}");
        let mut heard = Hearing::begin(command.strip_prefix("AUTH ").expect("it is AUTH").trim_end().as_bytes());
        let again = loop {
            match heard {
                Ok(Heard::More(hearing, challenge)) => match exchange.answer(&Reply::challenge(challenge)) {
                    Next::Say(line) => heard = hearing.hear(line.trim_end().as_bytes()),
                    next => panic!("{next:?} where there is more to say"),
                },
                Ok(Heard::Whole(again)) => break again,
                heard => panic!("{mechanism}: {heard:?}"),
            }
        };
        assert_eq!((&again.username, &again.password), (username, password), "{mechanism}");
        assert_eq!(exchange.answer(&Reply::logged_in()), Next::Done);
        assert_eq!(exchange.answer(&Reply::challenge("")), Next::Refused, "it has more to say than there is");
    }
}
