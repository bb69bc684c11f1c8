//! `causeway hash-password`: reads a password without echo and prints the line for `users_file`.
//!
//! On a terminal the password is asked for twice; from a pipe its first line is taken. It is never an argument, where the
//! list of processes and the shell's history would show it.
//!
//! Not here: the hash (`directory::users`).

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use zeroize::Zeroizing;

use crate::directory::users;

/// No password is longer, and /dev/zero ends somewhere.
const PASSWORD_LIMIT: u64 = 4096;

/// What may stand behind `hash-password`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose password it is; without it only the hash is printed
    #[arg(long, value_name = "NAME", value_parser = name)]
    user: Option<String>,
}

fn name(text: &str) -> Result<String, String> {
    users::check_name(text).map(|()| text.to_owned())
}

/// Prints the line. Exit status 1: there is no password to hash.
pub fn run(args: &Args) -> ExitCode {
    let hashed = read_password().and_then(|password| users::hash(&password));
    let printed = hashed.and_then(|hash| {
        let line = match &args.user {
            Some(user) => format!("{user}:{hash}\n"),
            None => format!("{hash}\n"),
        };
        io::stdout().write_all(line.as_bytes()).map_err(|error| error.to_string())
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("causeway: {why}");
            ExitCode::FAILURE
        }
    }
}

fn read_password() -> Result<Zeroizing<String>, String> {
    let unread = |error: io::Error| format!("the password cannot be read: {error}");
    if !io::stdin().is_terminal() {
        return piped(io::stdin().lock()).map_err(unread);
    }
    // On /dev/tty: standard output may be the users file.
    let password = Zeroizing::new(rpassword::prompt_password("Password: ").map_err(unread)?);
    if password.is_empty() {
        return Ok(password);
    }
    let again = Zeroizing::new(rpassword::prompt_password("Again: ").map_err(unread)?);
    if password == again { Ok(password) } else { Err("the two passwords differ".to_owned()) }
}

/// The first line, without its end.
fn piped(from: impl io::BufRead) -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    from.take(PASSWORD_LIMIT + 2).read_line(&mut line)?;
    let password = line.strip_suffix('\n').map_or(line.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if password.len() as u64 > PASSWORD_LIMIT {
        return Err(io::Error::other(format!("it is longer than {PASSWORD_LIMIT} octets")));
    }
    // A NUL separates the parts of AUTH PLAIN, so no password can hold one. RFC 4616 section 2.
    if password.contains('\0') {
        return Err(io::Error::other("it has a NUL"));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_pipe_is_the_password() {
        let long = "x".repeat(4096);
        for (given, expected) in [
            ("secret\n", Some("secret")),
            ("secret\r\n", Some("secret")),
            ("secret", Some("secret")),
            (" two words \nmore\n", Some(" two words ")),
            ("", Some("")),
            ("\n", Some("")),
            ("a\0b\n", None),
            (&format!("{long}\r\n"), Some(&*long)),
            (&format!("{long}x\n"), None),
        ] {
            assert_eq!(piped(given.as_bytes()).ok().as_ref().map(|password| password.as_str()), expected, "{given:?}");
        }
        assert!(piped(&b"\xff\n"[..]).is_err(), "not UTF-8, which AUTH must be");
    }
}
