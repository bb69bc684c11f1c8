//! The command line: prints and asks; decides nothing.
//!
//! Exit status: 0 done; 1 it ran and the answer is no; 2 the command line or the configuration is wrong; 3 the daemon
//! could not be reached.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod check;
pub mod demo;
pub mod directory;
pub mod explain;
mod hash_password;
mod health;
pub mod init;
mod page;
mod run;
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
    /// The queue of the running daemon (not in this version)
    #[command(hide = true)]
    Queue(Unbuilt),
    /// Every event of matching messages, as a timeline
    Trace(trace::Args),
    /// One recipient as the relay sees it, the faults of the recipient files, and importing them from Exchange
    Directory(directory::Args),
    /// Read a password, and print the line for `users_file`
    HashPassword(hash_password::Args),
    /// Health and queue depth (not in this version)
    #[command(hide = true)]
    Status(Unbuilt),
    /// The same, refreshing (not in this version)
    #[command(hide = true)]
    Top(Unbuilt),
}

/// Whatever was said to a command that is not built yet.
#[derive(Debug, clap::Args)]
struct Unbuilt {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
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
        Command::Queue(_) => unbuilt("queue"),
        Command::Trace(args) => trace::run(&cli.config, &args),
        Command::Directory(args) => directory::run(&cli.config, &args),
        Command::HashPassword(args) => hash_password::run(&args),
        Command::Status(_) => unbuilt("status"),
        Command::Top(_) => unbuilt("top"),
    }
}

fn unbuilt(command: &str) -> ExitCode {
    eprintln!("causeway: the command \"{command}\" is not supported in this version");
    ExitCode::from(WRONG)
}
