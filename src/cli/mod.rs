//! The command line: prints and asks; decides nothing.
//!
//! Exit status: 0 done; 1 it ran and the answer is no; 2 the command line or the configuration is wrong; 3 the daemon
//! could not be reached.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::admin::client::{Client, Failure};
use crate::config::{self, Glance, Problems};

pub mod check;
pub mod demo;
pub mod directory;
pub mod explain;
mod hash_password;
mod health;
pub mod init;
mod page;
mod queue;
mod run;
mod status;
pub mod trace;

/// The command line or the configuration is wrong.
pub const WRONG: u8 = 2;

/// Where the configuration stands unless `-c` says otherwise.
const CONFIGURATION: &str = "/etc/causeway/causeway.toml";

#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    version,
    about = "An SMTP relay for mail that lives partly on-premises and partly in the cloud",
    max_term_width = 100
)]
struct Cli {
    /// The configuration
    #[arg(
        short = 'c',
        long = "config",
        value_name = "FILE",
        default_value = CONFIGURATION,
        global = true
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon, in the foreground
    Run,
    /// Check the whole configuration and every file it names
    Check(check::Args),
    /// What would happen to a message, and why; sends nothing
    Explain(explain::Args),
    /// A whole hybrid world in one process on loopback
    Demo(demo::Args),
    /// Ask a listener for its greeting: exit status 0 if it says 220
    Health(health::Args),
    /// Write the configuration of one side of a hybrid scenario, and what DNS and the other servers need
    Init(Box<init::Args>),
    /// What waits in the running daemon, and hold, release, retry, bounce or remove it
    Queue(Box<queue::Args>),
    /// Every event of matching messages, as a timeline
    Trace(trace::Args),
    /// One recipient as the relay sees it, the faults of the recipient files, and importing them from Exchange
    Directory(directory::Args),
    /// Read a password, and print the line for `users_file`
    HashPassword(hash_password::Args),
    /// How the running daemon does: connectors, certificates, what waits, rates
    Status(status::StatusArgs),
    /// The same, refreshing until Ctrl-C
    Top(status::TopArgs),
}

/// The command line itself, for manual pages and completions.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    // It can be said everywhere; where it changes nothing the help does not speak of it.
    let config = command.get_arguments().find(|argument| argument.get_id() == "config").cloned();
    if let Some(config) = config {
        for name in ["demo", "health", "init", "hash-password"] {
            command = command.mut_subcommand(name, |subcommand| subcommand.arg(config.clone().hide(true)));
        }
    }
    command
}

/// Runs the command that the command line names.
pub fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli.command {
        Command::Run => run::run(&cli.config),
        Command::Check(args) => check::run(&cli.config, &args),
        Command::Explain(args) => explain::run(&cli.config, &args),
        Command::Demo(args) => demo::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Init(args) => init::run(*args),
        Command::Queue(args) => queue::run(&cli.config, &args),
        Command::Trace(args) => trace::run(&cli.config, &args),
        Command::Directory(args) => directory::run(&cli.config, &args),
        Command::HashPassword(args) => hash_password::run(&args),
        Command::Status(args) => status::status(&cli.config, &args),
        Command::Top(args) => status::top(&cli.config, &args),
    }
}

/// The daemon could not be reached.
const UNREACHABLE: u8 = 3;

/// Why the running daemon did not do what was asked.
enum Asking {
    /// The question is wrong.
    Wrong(String),
    /// The daemon did not answer, or said no.
    Failed(Failure),
}

impl From<Failure> for Asking {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Asking {
    /// Says so.
    fn tell(&self) -> ExitCode {
        let (text, status) = match self {
            Self::Wrong(text) => (text.clone(), WRONG),
            Self::Failed(failure @ Failure::Unreachable(_)) => (failure.to_string(), UNREACHABLE),
            Self::Failed(failure @ Failure::Refused { status: 400 | 401, .. }) => (failure.to_string(), WRONG),
            Self::Failed(failure) => (failure.to_string(), 1),
        };
        eprintln!("causeway: {text}");
        ExitCode::from(status)
    }
}

/// Speaks with the daemon that runs by the configuration at `path`; else says why not. Of the configuration only `[admin]`
/// must be right: a daemon does well with a file that somebody mends just now.
fn admin_client(path: &Path) -> Result<Client, ExitCode> {
    let glance = glance(path)?;
    let admin = glance.admin.map_err(|problems| unusable(&problems))?;
    let Some(admin) = admin else {
        let text = "[admin] is off in the configuration (listen = \"\"): the daemon cannot be asked";
        return Err(Asking::Wrong(text.to_owned()).tell());
    };
    Client::new(&admin).map_err(|error| {
        let cure = match error.kind() {
            io::ErrorKind::NotFound => "; the daemon makes it when it starts",
            io::ErrorKind::PermissionDenied => "; ask as root or as the daemon's user",
            _ => "",
        };
        Asking::Wrong(format!("there is no token for {}: {error}{cure}", admin.listen)).tell()
    })
}

/// Looks at the configuration for what leads to the daemon and its files, and says that there are faults.
fn glance(path: &Path) -> Result<Glance, ExitCode> {
    let glance = config::glance(path).map_err(|problems| unusable(&problems))?;
    if glance.faults > 0 {
        let faults = counted(glance.faults, "fault", "faults");
        eprintln!("causeway: the configuration has {faults}; run {} check", ourselves(path));
    }
    Ok(glance)
}

/// What is needed cannot be made out.
fn unusable(problems: &Problems) -> ExitCode {
    eprint!("{problems}");
    Asking::Wrong("the configuration cannot be used".to_owned()).tell()
}

/// How the command line begins that asks about the same daemon.
fn ourselves(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+=:@%,".contains(&byte) || !byte.is_ascii();
    match path.as_str() {
        CONFIGURATION => "causeway".to_owned(),
        plain if plain.bytes().all(is_plain) => format!("causeway -c {plain}"),
        odd => format!("causeway -c '{}'", odd.replace('\'', r"'\''")),
    }
}

/// `1 copy`, `2 copies`.
fn counted<N: std::fmt::Display + PartialEq + From<u8>>(count: N, one: &str, many: &str) -> String {
    let noun = if count == N::from(1) { one } else { many };
    format!("{count} {noun}")
}

/// To standard output. Whoever closed the pipe has read enough.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = anstream::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_offered_where_it_is_read() {
        let mut command = command();
        command.build();
        for subcommand in command.get_subcommands_mut().filter(|subcommand| subcommand.get_name() != "help") {
            let name = subcommand.get_name().to_owned();
            let expected = !["demo", "health", "init", "hash-password"].contains(&name.as_str());
            assert_eq!(subcommand.render_long_help().to_string().contains("--config"), expected, "{name}");
        }
        let cli = |words: &str| Cli::from_arg_matches(&super::command().get_matches_from(words.split(' '))).unwrap();
        for words in ["causeway -c x.toml status", "causeway status -c x.toml", "causeway health --config x.toml"] {
            assert_eq!(cli(words).config, Path::new("x.toml"), "{words}");
        }
        assert_eq!(cli("causeway health").config, Path::new(CONFIGURATION));
    }

    #[test]
    fn the_next_command_names_the_same_file() {
        for (path, expected) in [
            (CONFIGURATION, "causeway"),
            ("causeway.toml", "causeway -c causeway.toml"),
            ("/srv/a b/it's.toml", r"causeway -c '/srv/a b/it'\''s.toml'"),
        ] {
            assert_eq!(ourselves(Path::new(path)), expected);
        }
    }
}
