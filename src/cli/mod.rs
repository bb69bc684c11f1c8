//! The command line: prints and asks; decides nothing.
//!
//! Exit status: 0 done; 1 it ran and the answer is no; 2 the command line or the configuration is wrong; 3 the daemon
//! could not be reached.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::admin::client::{Client, Failure};
use crate::config;

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
        default_value = "/etc/causeway/causeway.toml",
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
    Cli::command()
}

/// Runs the command that the command line names.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
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
            Self::Failed(failure @ Failure::Refused { status: 400, .. }) => (failure.to_string(), WRONG),
            // Another daemon's token, or one that was replaced: it is not ours that answers.
            Self::Failed(failure @ Failure::Refused { status: 401, .. }) => (failure.to_string(), UNREACHABLE),
            Self::Failed(failure) => (failure.to_string(), 1),
        };
        eprintln!("causeway: {text}");
        ExitCode::from(status)
    }
}

/// Speaks with the daemon that runs by the configuration at `path`; else says why not.
fn admin_client(path: &std::path::Path) -> Result<Client, ExitCode> {
    let config = config::load(path).map_err(|problems| {
        eprint!("{problems}");
        Asking::Wrong("the configuration cannot be used".to_owned()).tell()
    })?;
    let Some(admin) = &config.admin else {
        let text = "[admin] is off in the configuration (listen = \"\"): the daemon cannot be asked";
        return Err(Asking::Wrong(text.to_owned()).tell());
    };
    Client::new(admin).map_err(|error| {
        let text = match error.kind() {
            io::ErrorKind::NotFound => format!("{error}; the daemon makes it when it starts"),
            io::ErrorKind::PermissionDenied => format!("{error}; ask as root or as the daemon's user"),
            _ => error.to_string(),
        };
        Asking::Failed(Failure::Unreachable(text)).tell()
    })
}

/// To standard output. Whoever closed the pipe has read enough.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = anstream::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
