//! Tells what happens in the demo, hop by hop.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anstream::println;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Log;
use crate::demo::hops::Place;
use crate::demo::mail::Scenario;
use crate::demo::{self, Arrival, World};
use crate::outcome::tracking::{Record, Tracker};

mod hybrid;
mod stay;

use stay::Screen;

/// Lines are at most that long, but for those that are to be copied.
const COLUMNS: usize = 80;

/// The message of the demo must have arrived by then.
const PATIENCE: Duration = Duration::from_secs(20);

const SENDER: &str = "erin@fabrikam.com";
const BOTH: [&str; 2] = ["julie@contoso.com", "david@contoso.com"];

const CONTENT: &str = "From: Erin <erin@fabrikam.com>\r\n\
    To: Julie <julie@contoso.com>, David <david@contoso.com>\r\n\
    Subject: Lunch on Friday?\r\n\
    Message-ID: <lunch@fabrikam.com>\r\n\
    Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\
    \r\n\
    At one, at the usual place?\r\n";

/// What the command line says to `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit after the message has arrived: 0 if every copy arrived where it should
    #[arg(long)]
    once: bool,
    /// Both premises with a relay each, in hybrid scenario N: every kind of mail, hop by hop
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    scenario: Option<u8>,
    /// Send no mail by itself after that
    #[arg(long)]
    quiet: bool,
}

/// Runs the demo.
pub fn run(args: &Args) -> ExitCode {
    crate::daemon::start_log(&Log { json: false, level: "warn".to_owned() });
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the runtime: {error}")),
    };
    let folder = match Folder::new() {
        Ok(folder) => folder,
        Err(error) => return failed(&format!("its folder: {error}")),
    };
    let showing = async {
        match args.scenario.and_then(Scenario::numbered) {
            Some(scenario) => hybrid::show(scenario, &folder, args).await,
            None => show(&folder, args).await,
        }
    };
    match runtime.block_on(showing) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("causeway: the demo cannot run: {why}");
    ExitCode::FAILURE
}

/// The world's files, removed at the end.
struct Folder(PathBuf);

impl Folder {
    /// A new folder that is ours alone: its keys are worth nothing, and yet nobody else is to put files there.
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("causeway-demo-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn show(folder: &Folder, args: &Args) -> std::io::Result<bool> {
    let (said, heard) = mpsc::channel();
    let tracker = Tracker::none().watched(move |event| {
        let _ = said.send(event.to_json());
    });
    let mut world = World::start(demo::Plan { tracker, living: !args.once, ..demo::Plan::new(&folder.0) }).await?;
    introduce(&world);

    heading("A message for both comes from the Internet");
    println!("    MAIL FROM:<{SENDER}>");
    for recipient in BOTH {
        println!("    RCPT TO:<{recipient}>");
    }
    let sent = demo::client::send(world.internet_door, SENDER, &BOTH, "", CONTENT).await?;
    if let Some(reply) = &sent.message {
        println!("    the relay answers {GREEN}{reply}{GREEN:#}");
    }
    println!();

    heading("What the relay did with it, and why");
    let arrivals = collect(&mut world, BOTH.len()).await;
    for line in heard.try_iter() {
        tell_line(&line);
    }
    println!();
    heading("What arrived");
    for arrival in &arrivals {
        show_arrival(arrival, demo::CLOUD);
    }
    let good = verdict(&arrivals);
    if args.once || !good {
        world.stop().await;
        return Ok(good);
    }
    invite(&world);
    stay::consoles(&world.console.as_ref().map(|console| ("", console)).into_iter().collect::<Vec<_>>());
    let _trickle = world.trickle().filter(|_| !args.quiet).map(|trickle| Task(tokio::spawn(trickle.run())));
    let news = || heard.try_iter().filter_map(|line| Some((None, Record::parse(&line).ok()?))).collect();
    Screen::new(demo::CLOUD).follow(&mut world.arrivals, news).await?;
    world.stop().await;
    Ok(true)
}

/// A task that ends when this is dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What ends a demo that stays up.
struct End {
    terminate: Signal,
    hang_up: Signal,
}

impl End {
    fn new() -> std::io::Result<Self> {
        // A terminal that is closed ends it too, and the world's files with it.
        Ok(Self { terminate: signal(SignalKind::terminate())?, hang_up: signal(SignalKind::hangup())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

const BOLD: anstyle::Style = anstyle::Style::new().bold();
const DIM: anstyle::Style = anstyle::Style::new().dimmed();
const GREEN: anstyle::Style = anstyle::AnsiColor::Green.on_default();
const RED: anstyle::Style = anstyle::AnsiColor::Red.on_default();
const CYAN: anstyle::Style = anstyle::AnsiColor::Cyan.on_default();

fn heading(text: &str) {
    println!("{BOLD}{text}{BOLD:#}");
}

/// Breaks at blanks, so that a terminal of 80 columns does not break within names.
fn say(style: anstyle::Style, indent: usize, text: &str) {
    for line in broken(text, COLUMNS - indent) {
        println!("{:indent$}{style}{line}{style:#}", "");
    }
}

fn broken(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn introduce(world: &World) {
    println!("{BOLD}Causeway demo{BOLD:#}: one organization, two premises, all in this process, on loopback.\n");
    let row = |what: &str, address: SocketAddr, name: &str| {
        println!("{}", format!("    {what:<22}  {address:<18} {name}").trim_end())
    };
    row("the relay (MX)", world.internet_door, demo::RELAY);
    row("  its inner door", world.own_door, "");
    row("on-premises server", world.on_premises.address, demo::ON_PREMISES);
    row("cloud service", world.cloud.address, demo::CLOUD);
    row("a host on the Internet", world.internet.address, demo::INTERNET_HOST);
    println!("\n    {DIM}recipients.csv{DIM:#}");
    println!("    julie@contoso.com   mailbox on-premises");
    println!("    david@contoso.com   mailbox in the cloud");
    println!("    kate@contoso.com    forwards to kate@fabrikam.com");
    println!("    sales@contoso.com   group of julie and david");
    println!("    info@contoso.com    alias of julie\n");
}

/// Waits for so many messages, or until patience ends.
async fn collect(world: &mut World, count: usize) -> Vec<Arrival> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut arrivals = Vec::new();
    while arrivals.len() < count {
        match tokio::time::timeout_at(deadline, world.arrivals.recv()).await {
            Ok(Some(arrival)) => arrivals.push(arrival),
            _ => break,
        }
    }
    // The server's word came before the relay read it: the event of the last copy may be a moment behind.
    while world.daemon.relay().waiting() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    arrivals.sort_by_key(|arrival| std::cmp::Reverse(arrival.place));
    arrivals
}

fn tell_line(line: &str) {
    if let Ok(event) = Record::parse(line) {
        tell(None, &event);
    }
}

/// One tracking event, for a person; `relay`: whose it is, where there are two.
fn tell(relay: Option<Place>, event: &Record) {
    let whose = relay.map_or("  ", Place::word);
    let mut head = format!("  {BOLD}{whose:<2}{BOLD:#}{CYAN}{:<10}{CYAN:#}", event.event);
    if let Some(connector) = &event.connector {
        let towards = if matches!(event.event.as_str(), "RECEIVE" | "FAIL") { "by" } else { "to" };
        head.push_str(&match event.event.as_str() {
            "SEND" | "DEFER" | "TRANSFER" | "RESOLVE" => connector.clone(),
            _ => format!("{towards} {connector}"),
        });
        head.push_str("  ");
    }
    head.push_str(&event.to.join(", "));
    println!("{head}");
    let note = |text: &str| say(DIM, 14, text);
    for reason in &event.because {
        note(reason);
    }
    match (event.event.as_str(), &event.peer, &event.tls) {
        ("SEND", Some(peer), tls) => {
            note(peer);
            note(tls.as_deref().unwrap_or("in the clear"));
        }
        ("RECEIVE", Some(peer), _) => note(&format!("from {peer}, id {}", event.id.as_deref().unwrap_or("-"))),
        _ => {}
    }
    if let Some(detail) = &event.detail {
        note(detail);
    }
}

fn show_arrival(arrival: &Arrival, cloud: &str) {
    let (place, name) = match arrival.place {
        "cloud" => ("at the cloud service", cloud),
        "on-premises" => ("at the on-premises server", demo::ON_PREMISES),
        _ => ("on the Internet", demo::INTERNET_HOST),
    };
    println!("    {BOLD}{place}{BOLD:#} {DIM}({name}){DIM:#}");
    match &arrival.envelope.sender {
        Some(sender) => println!("        MAIL FROM:<{sender}>"),
        None => println!("        MAIL FROM:<>"),
    }
    for recipient in &arrival.envelope.recipients {
        println!("        RCPT TO:<{}>", recipient.address);
    }
    match (&arrival.tls, &arrival.client) {
        (Some(_), Some(client)) => say(GREEN, 8, &format!("the relay proved itself: {client}")),
        (Some(tls), None) => say(GREEN, 8, &format!("{tls}, without a certificate of the relay")),
        (None, _) => say(RED, 8, "in the clear"),
    }
    let text = String::from_utf8_lossy(&arrival.content);
    for line in text.lines().take_while(|line| line.starts_with("Received:") || line.starts_with([' ', '\t'])) {
        println!("        {DIM}{line}{DIM:#}");
    }
    println!();
}

/// Every copy where it should be, and nothing else anywhere.
fn verdict(arrivals: &[Arrival]) -> bool {
    let expected = [("on-premises", "julie@contoso.com"), ("cloud", "david@contoso.mail.onmicrosoft.com")];
    let got: Vec<(&str, String)> = arrivals
        .iter()
        .flat_map(|arrival| {
            arrival.envelope.recipients.iter().map(|recipient| (arrival.place, recipient.address.to_string()))
        })
        .collect();
    let proved = arrivals.iter().all(|arrival| arrival.tls.is_some() && arrival.client.is_some());
    let unchanged = arrivals.iter().all(|arrival| arrival.content.ends_with(CONTENT.as_bytes()));
    let placed = got.len() == expected.len()
        && expected.iter().all(|(place, address)| got.iter().any(|(at, to)| at == place && to == address));
    let good = placed && proved && unchanged;
    if good {
        say(GREEN, 0, "One message came in, one copy went to each premises, each over TLS with the names agreed.");
        println!();
    } else {
        println!("{RED}Not as it should be: expected {expected:?} over proved TLS, got {got:?}.{RED:#}\n");
    }
    good
}

fn invite(world: &World) {
    let (mx, own) = (world.internet_door, world.own_door);
    heading("Now you; what happens is told here. Ctrl-C ends the demo.");
    for (what, line) in [
        (
            "a group with members on both sides",
            format!("swaks --server {mx} --tls --from you@fabrikam.com --to sales@contoso.com"),
        ),
        ("a forward to the Internet", format!("swaks --server {mx} --from you@fabrikam.com --to kate@contoso.com")),
        ("nobody", format!("swaks --server {mx} --from you@fabrikam.com --to nobody@contoso.com")),
        ("no open relay", format!("swaks --server {mx} --from you@fabrikam.com --to erin@fabrikam.com")),
        (
            "from inside to the Internet, by MX",
            format!("swaks --server {own} --from julie@contoso.com --to erin@fabrikam.com"),
        ),
    ] {
        println!("    {line}\n        {DIM}{what}{DIM:#}");
    }
    // Not as it was called: `cargo run` shows no name that a shell finds.
    let causeway = std::env::current_exe().map_or_else(|_| "causeway".to_owned(), |path| path.display().to_string());
    println!(
        "    {causeway} -c {} explain --to david@contoso.com --from you@fabrikam.com",
        world.folder.join("causeway.toml").display()
    );
    println!("        {DIM}the same without sending anything{DIM:#}\n");
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::broken;

    #[test]
    fn lines_are_broken_at_blanks_only() {
        for (text, lines) in [
            ("", vec![""]),
            ("one two", vec!["one two"]),
            ("one two three", vec!["one two", "three"]),
            ("a-very-long-word b", vec!["a-very-long-word", "b"]),
        ] {
            assert_eq!(broken(text, 9), lines, "{text}");
        }
    }
}
