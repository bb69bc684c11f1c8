//! `causeway init`: the configuration of one side of a hybrid scenario, and what the rest of the world must know of it.
//!
//! Here are the flags and the files. Where answers come from is in `answers`, what they mean in `plan`, the text of the
//! configuration in `configuration`, and what DNS, the firewall and the other servers need in `guide`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use self::answers::Questions;
use self::plan::{Other, Plan, Premises, Scenario};
use crate::config::value;

mod answers;
mod configuration;
mod guide;
mod plan;

/// What may stand behind `init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// 1: MX and exit in the cloud; 2: the same, all of it passing on-premises; 3: MX and exit on-premises; 4: MX
    /// on-premises, exit in the cloud
    #[arg(long, value_name = "N", value_parser = Scenario::parse)]
    scenario: Option<Scenario>,
    /// Where this relay stands: on-premises (the default) or cloud
    #[arg(long, value_name = "S", value_parser = Premises::parse)]
    side: Option<Premises>,
    /// What stands on the other side: exchange-online, exchange-server or causeway [default: exchange-online in the
    /// cloud, causeway on-premises]
    #[arg(long, value_name = "K", value_parser = Other::parse)]
    other: Option<Other>,
    /// Domain of the organization
    #[arg(long, value_name = "DOMAIN", value_parser = answers::domain)]
    domain: Option<String>,
    /// Host name of this relay
    #[arg(long, value_name = "HOST", value_parser = answers::domain_name)]
    hostname: Option<String>,
    /// Where it listens; may be repeated
    #[arg(long, value_name = "ADDRESS", value_parser = listen, default_values = ["0.0.0.0:25", "[::]:25"])]
    listen: Vec<String>,
    /// Host of the other side, or host:port
    #[arg(long, value_name = "HOST", value_parser = answers::host)]
    other_host: Option<String>,
    /// Name in the other side's certificate [default: its host name; for Exchange Online mail.protection.outlook.com]
    #[arg(long, value_name = "NAME", value_parser = value::tls_name)]
    other_name: Option<String>,
    /// Where the cloud knows its mailboxes: local-part@ this domain
    #[arg(long, value_name = "DOMAIN", value_parser = answers::domain_name)]
    routing_domain: Option<String>,
    /// Certificate chain of this relay (PEM); as all paths, relative to the folder of the configuration
    #[arg(long, value_name = "FILE", value_parser = answers::something)]
    certificate: Option<String>,
    /// Its private key
    #[arg(long, value_name = "FILE", value_parser = answers::something)]
    key: Option<String>,
    /// An authority of your own that issued the certificates of these servers, but for Exchange Online's [default: the
    /// system's roots]
    #[arg(long, value_name = "FILE", value_parser = answers::something)]
    ca_file: Option<String>,
    /// Recipient directory; an example is written if there is none
    #[arg(long, value_name = "FILE", value_parser = answers::something)]
    directory: Option<String>,
    /// Host of the mailbox server behind this relay, or host:port
    #[arg(long, value_name = "HOST", value_parser = answers::host)]
    mailbox_host: Option<String>,
    /// Name in its certificate
    #[arg(long, value_name = "NAME", value_parser = value::tls_name)]
    mailbox_name: Option<String>,
    /// Networks it sends from, if it can show no certificate; may be repeated
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    mailbox_networks: Vec<String>,
    /// Where admin API and console listen, on loopback; of two relays on one host one needs another [default:
    /// 127.0.0.1:8025]
    #[arg(long, value_name = "ADDRESS", value_parser = admin)]
    admin: Option<String>,
    /// An address from which mail leaves for the Internet, for SPF; may be repeated
    #[arg(long = "egress-ip", value_name = "IP", value_parser = ip)]
    egress_ips: Vec<String>,
    /// Spool folder
    #[arg(long, value_name = "FOLDER", value_parser = answers::something)]
    spool: Option<String>,
    /// Folder of the tracking files
    #[arg(long, value_name = "FOLDER", value_parser = answers::something, default_value = "/var/log/causeway")]
    tracking: String,
    /// Where the configuration goes; - is standard output [default: ./causeway.toml]
    #[arg(short, long, value_name = "FILE", value_parser = answers::something)]
    output: Option<String>,
    /// Overwrite the configuration that is there
    #[arg(long)]
    force: bool,
}

fn listen(text: &str) -> Result<String, String> {
    value::listen(text).map(|address| address.to_string())
}

fn admin(text: &str) -> Result<String, String> {
    match value::listen(text)? {
        address if address.ip().is_loopback() => Ok(address.to_string()),
        _ => Err("expected a loopback address such as \"127.0.0.1:8025\": there is no TLS there".to_owned()),
    }
}

fn network(text: &str) -> Result<String, String> {
    match value::network(text)? {
        // All the world would make this an open relay.
        world if world.prefix_len() == 0 => {
            Err("expected the networks of your own servers, not all the world".to_owned())
        }
        network => Ok(network.to_string()),
    }
}

fn ip(text: &str) -> Result<String, String> {
    text.parse::<std::net::IpAddr>()
        .map(|ip| ip.to_string())
        .map_err(|_| r#"expected an address such as "192.0.2.25""#.to_owned())
}

/// Writes the configuration and prints the rest. Exit status 1: a file is in the way, or cannot be written; 2:
/// something is missing or does not go together.
pub fn run(args: Args) -> ExitCode {
    let force = args.force;
    let (mut input, mut output) = (io::stdin().lock(), io::stderr());
    // Questions go to stderr: stdout may be the configuration.
    let person: Option<(&mut dyn io::BufRead, &mut dyn io::Write)> =
        if input.is_terminal() && output.is_terminal() { Some((&mut input, &mut output)) } else { None };
    let mut questions = Questions { person, missing: Vec::new() };
    let plan = match answers::plan(args, &mut questions) {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("causeway: init: {why}");
            return ExitCode::from(super::WRONG);
        }
    };
    let text = configuration::text(&plan);
    let Some(path) = plan.output.clone() else {
        let written = io::stdout().write_all(text.as_bytes());
        eprint!("{}", guide::text(&plan, &[]));
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    match write(&plan, &path, &text, force) {
        Ok(notes) => {
            // A reader that went away (`init | head`) changes nothing about what was written.
            let _ = io::stdout().write_all(guide::text(&plan, &notes).as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("causeway: init: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the configuration, and the example of a directory if there is none; gives what is to be told of them.
fn write(plan: &Plan, path: &Path, text: &str, force: bool) -> Result<Vec<String>, String> {
    let failed = |path: &Path, error: &io::Error| format!("{} cannot be written: {error}", path.display());
    let directory = plan.resolve(&plan.directory);
    let mut made = Vec::new();
    for folder in
        [path, &directory].into_iter().filter_map(Path::parent).filter(|folder| !folder.as_os_str().is_empty())
    {
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
            // A slip in -o would hide the files.
            made.push(format!("The folder {} is made for it.", folder.display()));
        }
    }
    let file = if force { File::create(path) } else { create_new(path) };
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => format!("{} is there already; --force overwrites it", path.display()),
        _ => failed(path, &error),
    })?;
    let mut notes = vec![format!("{} is written.", path.display())];
    notes.append(&mut made);

    let example = configuration::recipients(plan);
    match create_new(&directory).and_then(|mut file| file.write_all(example.as_bytes())) {
        Ok(()) => notes.push(format!("{} holds examples: put your own recipients there.", directory.display())),
        // Somebody's recipients are never overwritten, whatever was forced.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(&directory, &error)),
    }
    for file in [Some(&plan.certificate), Some(&plan.key), plan.ca_file.as_ref()].into_iter().flatten() {
        let file = plan.resolve(file);
        if !file.exists() {
            notes.push(format!("{} is missing yet.", file.display()));
        }
    }
    Ok(notes)
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}
