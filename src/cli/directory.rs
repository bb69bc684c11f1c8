//! `causeway directory`: one recipient as the relay sees it, the faults of all sources, and the way here from Exchange.
//!
//! Not here: what is a fault and what becomes of an export (`directory::check`, `directory::import`), and where mail
//! goes (`route`).

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::WRONG;
use super::page::{self, Folding};
use crate::config::{self, Config, DirectorySource, Origin, Problems, ReceiveConnector, Severity};
use crate::directory::check::{self, Checked, Surroundings};
use crate::directory::import::{self, Imported, Organization, Replaced};
use crate::directory::{Directory, Entry, Found, LoadOutcome, Lookup, Owner, file, untagged};
use crate::message::{Address, Domain, Notify, Recipient};
use crate::route::explain::next_hop;
use crate::route::{Asking, Refusal, Resolution, Rules};

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One recipient as the relay sees it: who says so, where its mail goes, and who names it
    Show {
        /// The address
        #[arg(value_name = "ADDRESS", value_parser = |text: &str| Address::parse(text).map_err(|malformed| malformed.to_string()))]
        address: Address,
        /// One JSON object rather than text
        #[arg(long)]
        json: bool,
    },
    /// Every fault of every source
    Check {
        /// One JSON object rather than text
        #[arg(long)]
        json: bool,
    },
    /// Turn an Exchange export (Export-Csv) into a recipient file
    ///
    /// Exit status 1: the recipients have faults, as `directory check` finds them (the file is written all the same), or OUT
    /// was not replaced.
    Import {
        /// The export
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Write here rather than to standard output. A file that import wrote is replaced, and kept as OUT.bak
        #[arg(short = 'o', long, value_name = "OUT")]
        output: Option<PathBuf>,
        /// Replace OUT also where that loses lines that import did not write, or where it is no recipient file
        #[arg(long, requires = "output")]
        force: bool,
    },
}

/// Does it. Exit status: 0 done; 1 the recipient is unknown, there are errors, nothing could be used, a file is in the way;
/// 2 the question or the configuration is wrong.
pub fn run(path: &Path, args: &Args) -> ExitCode {
    match &args.what {
        What::Import { file, output, force } => convert(path, file, output.as_deref(), *force),
        What::Show { address, json } => with(path, |config| show(config, address, *json)),
        What::Check { json } => with(path, |config| examine(config, *json)),
    }
}

fn with(path: &Path, then: impl FnOnce(&Config) -> io::Result<bool>) -> ExitCode {
    match config::load(path) {
        Ok(config) => ended(then(&config)),
        Err(problems) => {
            eprint!("{problems}");
            eprintln!("causeway: the configuration cannot be used");
            ExitCode::from(WRONG)
        }
    }
}

/// The answer as an exit status.
fn ended(answer: io::Result<bool>) -> ExitCode {
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All that there is to say of one recipient.
struct Shown<'a> {
    address: &'a Address,
    found: Found,
    /// Whose hybrid routing address it is, if it was found as one.
    owner: Option<Address>,
    /// The line it stands in.
    line: Option<u64>,
    /// What becomes of mail for it, by the origins that the relay takes mail from.
    ways: Vec<(&'a ReceiveConnector, Result<Resolution, Refusal>)>,
    /// Forwards, groups and aliases that name it: source, line, address, what.
    named_by: Vec<(String, u64, Address, &'static str)>,
}

fn show(config: &Config, address: &Address, as_json: bool) -> io::Result<bool> {
    let (directory, reports) = Directory::load(&config.directories);
    for report in reports.iter().filter(|report| matches!(report.outcome, LoadOutcome::Refused { .. })) {
        eprintln!("causeway: {report}");
    }
    let shown = Shown::of(config, &directory, address);
    let mut out = Folding::new(anstream::stdout(), page::columns());
    if as_json {
        writeln!(out, "{:#}", shown.json(config))?
    } else {
        shown.write(&mut out, config)?
    }
    Ok(matches!(shown.found, Found::Entry { .. }))
}

impl<'a> Shown<'a> {
    fn of(config: &'a Config, directory: &dyn Lookup, address: &'a Address) -> Self {
        let rules = Rules { config, directory };
        let (found, owner) = match (directory.find(address), &config.hybrid) {
            (Found::Unknown, Some(hybrid)) if hybrid.routing_domain == *address.domain() => owner(&rules, address),
            (found, _) => (found, None),
        };
        // As it stands in the directory: without its tag, perhaps.
        let entered = match (&found, &owner) {
            (_, Some(owner)) => owner.clone(),
            (Found::Entry { untagged: true, .. }, None) => untagged(address.local())
                .and_then(|local| Address::new(local, address.domain().clone()).ok())
                .unwrap_or_else(|| address.clone()),
            (Found::Entry { .. } | Found::Unknown | Found::Unavailable(_), None) => address.clone(),
        };
        let (key, mut line, mut named_by) = (entered.key(), None, Vec::new());
        for source in &config.directories {
            let here = matches!(&found, Found::Entry { source: of, .. } if *of == source.name);
            // A file that cannot be read was reported when it was loaded.
            let _ = file::lines(&source.path, |number, read| {
                let Ok((owner, entry)) = read else { return };
                if here && line.is_none() && owner.key() == key {
                    line = Some(number);
                }
                let names = |targets: &[Address]| targets.iter().any(|target| target.key() == key);
                let what = match &entry {
                    Entry::Alias(of) if of.key() == key => "alias",
                    Entry::Forward(to) if to.key() == key => "forward",
                    Entry::Group(members) if names(members) => "group",
                    _ => return,
                };
                named_by.push((source.name.to_string(), number, owner, what));
            });
        }
        let ways = [Origin::Internet, Origin::Partner, Origin::OnPremises, Origin::Cloud, Origin::Client]
            .into_iter()
            .filter_map(|origin| config.receive_connectors.iter().find(|connector| connector.origin == origin))
            .map(|connector| {
                let asking = Asking {
                    origin: connector.origin,
                    connector: &connector.name,
                    may_relay: connector.relay,
                    size: None,
                };
                let recipient = Recipient { address: address.clone(), notify: Notify::Unsaid, orcpt: None };
                (&**connector, rules.expand(&asking, &recipient))
            })
            .collect();
        Self { address, found, owner, line, ways, named_by }
    }

    fn found_words(&self) -> String {
        match &self.found {
            Found::Entry { source, entry, untagged } => {
                let line = self.line.map(|line| format!(", line {line}")).unwrap_or_default();
                let tag = if *untagged { " without its tag" } else { "" };
                let owner = self.owner.as_ref().map(|owner| format!(", as the hybrid routing address of {owner}"));
                format!("found in {source}{line}{tag}{}: {}", owner.unwrap_or_default(), check::words(entry))
            }
            Found::Unknown => "not in the directory".to_owned(),
            Found::Unavailable(why) => format!("the directory cannot answer: {why}"),
        }
    }

    fn write(&self, out: &mut impl Write, config: &Config) -> io::Result<()> {
        writeln!(out, "{BOLD}{}{BOLD:#}", self.address)?;
        writeln!(out, "    {}", self.found_words())?;
        for (connector, way) in &self.ways {
            writeln!(out, "\nmail from {} (receive connector {})", connector.origin.word(), connector.name)?;
            match way {
                Ok(resolution) => {
                    for routed in &resolution.routed {
                        let via = config.send_connector(&routed.route.via);
                        let hop = next_hop(via, &routed.route.hop);
                        writeln!(out, "    {GREEN}-> {}, {hop}{GREEN:#}, as {}", routed.route.via, routed.route.to)?;
                    }
                    for failed in &resolution.failed {
                        writeln!(out, "    {RED}not to {}: {}{RED:#}", failed.address, failed.refusal)?;
                    }
                }
                Err(refusal) => writeln!(out, "    {RED}refused: {}{RED:#}", refusal.to_reply())?,
            }
        }
        if !self.named_by.is_empty() {
            writeln!(out, "\nnamed by")?;
        }
        for (source, line, owner, what) in &self.named_by {
            writeln!(out, "    {what} {owner} ({source}, line {line})")?;
        }
        Ok(())
    }

    fn json(&self, config: &Config) -> Value {
        let found = match &self.found {
            Found::Entry { source, entry, untagged } => json!({
                "source": &**source, "line": self.line, "untagged": untagged, "entry": entry_json(entry),
                "owner": self.owner.as_ref().map(ToString::to_string),
            }),
            Found::Unknown => Value::Null,
            Found::Unavailable(why) => json!({ "unavailable": why }),
        };
        let ways = self.ways.iter().map(|(connector, way)| {
            let (routes, refused) = match way {
                Ok(resolution) => (resolution.routed.as_slice(), Value::Null),
                Err(refusal) => ([].as_slice(), Value::from(refusal.to_reply().to_string())),
            };
            let failed = way.as_ref().map_or(Vec::new(), |resolution| {
                let one = |failed: &crate::route::Failed| {
                    json!({ "address": failed.address.to_string(), "why": failed.refusal.to_string() })
                };
                resolution.failed.iter().map(one).collect()
            });
            json!({
                "origin": connector.origin.word(),
                "connector": connector.name.to_string(),
                "routes": routes.iter().map(|routed| json!({
                    "via": routed.route.via.to_string(),
                    "hop": next_hop(config.send_connector(&routed.route.via), &routed.route.hop),
                    "as": routed.route.to.to_string(),
                    "because": routed.route.because.iter().map(ToString::to_string).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
                "failed": failed,
                "refused": refused,
            })
        });
        let named_by = self.named_by.iter().map(|(source, line, owner, what)| {
            json!({ "address": owner.to_string(), "type": what, "source": source, "line": line })
        });
        json!({
            "address": self.address.to_string(),
            "found": found,
            "mail": ways.collect::<Vec<_>>(),
            "named_by": named_by.collect::<Vec<_>>(),
        })
    }
}

/// Whose hybrid routing address it is, by the order in which `route` asks.
fn owner(rules: &Rules<'_>, address: &Address) -> (Found, Option<Address>) {
    match rules.directory.find_owner(address, &|domain| rules.rank(domain)) {
        Owner::Entry { source, address, entry, untagged } => (Found::Entry { source, entry, untagged }, Some(address)),
        Owner::Unknown => (Found::Unknown, None),
        Owner::Unavailable(why) => (Found::Unavailable(why), None),
    }
}

const BOLD: anstyle::Style = anstyle::Style::new().bold();
const GREEN: anstyle::Style = anstyle::AnsiColor::Green.on_default();
const RED: anstyle::Style = anstyle::AnsiColor::Red.on_default();

/// In the words of the file.
fn entry_json(entry: &Entry) -> Value {
    let (kind, target) = match entry {
        Entry::OnPremises => ("on-premises", String::new()),
        Entry::Cloud(target) => ("cloud", target.as_ref().map(ToString::to_string).unwrap_or_default()),
        Entry::Forward(to) => ("forward", to.to_string()),
        Entry::Alias(of) => ("alias", of.to_string()),
        Entry::Group(members) => ("group", members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
    };
    json!({ "type": kind, "target": target })
}

fn examine(config: &Config, as_json: bool) -> io::Result<bool> {
    let rules = Rules { config, directory: &Directory::default() };
    let accepted = |domain: &Domain| rules.ours(domain).map(|(_, kind)| kind);
    let routing_domain = config.hybrid.as_ref().map(|hybrid| &hybrid.routing_domain);
    let Checked { problems, recipients } =
        check::check(&config.directories, &Surroundings { accepted: &accepted, routing_domain });
    let (errors, warnings) = (problems.errors().count(), problems.warnings().count());
    let mut out = io::BufWriter::new(io::stdout());
    if as_json {
        let findings = problems.0.iter().map(|problem| {
            json!({
                "severity": problem.severity.to_string(),
                "file": problem.file.display().to_string(),
                "line": problem.place.map(|(line, _)| line),
                "text": problem.text,
            })
        });
        let findings: Vec<Value> = findings.collect();
        let answer = json!({ "recipients": recipients, "errors": errors, "warnings": warnings, "findings": findings });
        writeln!(out, "{answer:#}")?;
    } else {
        write!(out, "{problems}")?;
        let count = |many: usize, word: &str| format!("{many} {word}{}", if many == 1 { "" } else { "s" });
        writeln!(
            out,
            "{}: {}, {}",
            count(recipients, "recipient"),
            count(errors, "error"),
            count(warnings, "warning")
        )?;
    }
    out.flush()?;
    Ok(errors == 0)
}

/// Addresses and lines that are named one by one.
const NAMED: usize = 10;

fn convert(config: &Path, path: &Path, output: Option<&Path>, force: bool) -> ExitCode {
    let wrong = |why: &str| {
        eprintln!("causeway: {}: {why}", path.display());
        ExitCode::from(WRONG)
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return wrong(&error.to_string()),
    };
    // The configuration may have faults elsewhere: a first import comes before much else is there.
    let recipients = match config::glance(config) {
        Ok(glance) => Some(glance.recipients),
        Err(_) => {
            eprintln!(
                "causeway: {} cannot be read (-c FILE); which domains are accepted is not known, so less can be checked",
                config.display()
            );
            None
        }
    };
    let accepted = |domain: &Domain| recipients.as_ref().and_then(|recipients| recipients.accepted(domain));
    let is_accepted = |domain: &Domain| accepted(domain).is_some();
    let routing_domain = recipients.as_ref().and_then(|recipients| recipients.routing_domain.as_ref());
    let known = recipients.as_ref().map(|_| &is_accepted as &dyn Fn(&Domain) -> bool);
    let imported = match import::import(&bytes, &Organization { accepted: known, routing_domain }) {
        Ok(imported) => imported,
        Err(why) => return wrong(&why),
    };
    for remark in &imported.remarks {
        let lead = if remark.left_out { "left out: " } else { "" };
        eprintln!("{}:{}: {lead}{}", path.display(), remark.line, remark.text);
    }
    let kinds = ["on-premises", "cloud", "forward", "group", "alias"].map(|kind| match imported.count(kind) {
        0 => None,
        count => Some(format!("{count} {kind}")),
    });
    let kinds: Vec<String> = kinds.into_iter().flatten().collect();
    let left_out = imported.remarks.iter().filter(|remark| remark.left_out).count();
    eprintln!("causeway: {} lines ({}), {left_out} left out", imported.len(), kinds.join(", "));
    if imported.is_empty() {
        // The daemon would refuse such a file, and an old one of this name is worth more.
        return ExitCode::FAILURE;
    }
    let csv = imported.to_csv();
    let directories = recipients.as_ref().map(|recipients| recipients.directories.as_slice()).unwrap_or_default();
    let mut problems = faults(&csv, output, directories, &Surroundings { accepted: &accepted, routing_domain });
    if recipients.is_none() {
        // Those of domains that are not accepted.
        problems.0.retain(|problem| problem.severity == Severity::Error);
    }
    eprint!("{problems}");
    let errors = problems.errors().count();
    if errors > 0 {
        let s = if errors == 1 { "" } else { "s" };
        eprintln!(
            "causeway: {errors} error{s} in what is written: mail for these recipients is refused, at least in part"
        );
    }
    let written = match output {
        Some(output) => put(output, &imported, &csv, force),
        None => io::stdout().write_all(csv.as_bytes()).map(|()| true),
    };
    ended(written.map(|written| written && errors == 0))
}

/// What `directory check` would find in the new file, beside the others. `output` may be the file of a source.
fn faults(csv: &str, output: Option<&Path>, directories: &[DirectorySource], around: &Surroundings<'_>) -> Problems {
    let path = output.unwrap_or(Path::new("(standard output)"));
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut sources = directories.to_vec();
    let number = match sources.iter().position(|source| real(&source.path) == real(path)) {
        Some(number) => {
            sources[number].path = path.to_owned();
            number
        }
        None => {
            // It is to become the one there is; of several nobody knows which.
            if sources.len() == 1 {
                sources.clear();
            }
            sources.insert(0, DirectorySource { name: path.to_string_lossy().into(), path: path.to_owned() });
            0
        }
    };
    let mut problems = check::check_with(&sources, number, csv, around).problems;
    problems.0.retain(|problem| problem.file == path);
    problems
}

/// Writes the file, unless that would lose what somebody else wrote. False: it would.
fn put(path: &Path, imported: &Imported, csv: &str, force: bool) -> io::Result<bool> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    // What a link leads to is replaced, not the link.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let before = match std::fs::metadata(path) {
        Ok(there) if !there.is_file() => return Err(named(io::Error::other("it is no regular file"))),
        Ok(_) => std::fs::read(path).map_err(named)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return replace(path, csv, false).map_err(named).map(|()| true);
        }
        Err(error) => return Err(named(error)),
    };
    if before == csv.as_bytes() {
        eprintln!("causeway: {} is as it was", path.display());
        return Ok(true);
    }
    let more = |count: usize| match count.saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let gone = match imported.replacing(&before) {
        Err(_) if force => Vec::new(),
        Err(why) => {
            eprintln!("causeway: {} is no recipient file ({why}); --force replaces it", path.display());
            return Ok(false);
        }
        Ok(Replaced { by_hand, .. }) if !by_hand.is_empty() && !force => {
            eprintln!("causeway: {} has lines that import did not write, and they would be lost:", path.display());
            for (line, text) in by_hand.iter().take(NAMED) {
                eprintln!("{}:{line}: {text}", path.display());
            }
            eprintln!(
                "causeway: it stays as it is{}; put such lines into a recipient file of their own ([[directory]]), or replace it with --force",
                if by_hand.len() > NAMED {
                    format!(" ({} lines{})", by_hand.len(), more(by_hand.len()))
                } else {
                    String::new()
                }
            );
            return Ok(false);
        }
        Ok(Replaced { gone, .. }) => gone,
    };
    replace(path, csv, true).map_err(named)?;
    if !gone.is_empty() {
        let names: Vec<String> = gone.iter().take(NAMED).map(ToString::to_string).collect();
        eprintln!("causeway: {} recipients are no longer in it: {}{}", gone.len(), names.join(", "), more(gone.len()));
    }
    Ok(true)
}

/// Whoever reads the file meanwhile, the daemon for one, sees the old one or the new one. The old one is kept.
fn replace(path: &Path, text: &str, keep: bool) -> io::Result<()> {
    let beside = |ending: &str| -> io::Result<PathBuf> {
        let mut name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(ending);
        Ok(path.with_file_name(name))
    };
    let fresh = beside(".new")?;
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(text.as_bytes())?;
    if keep {
        // The daemon may read the old one as a member of its group.
        let old = std::fs::metadata(path)?;
        file.set_permissions(old.permissions())?;
        let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
        let link = beside(".bak.new")?;
        let _ = std::fs::remove_file(&link);
        std::fs::hard_link(path, &link).or_else(|_| std::fs::copy(path, &link).map(|_| ()))?;
        std::fs::rename(&link, beside(".bak")?)?;
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::fs::File::open(folder)?.sync_all(),
        Some(_) | None => std::fs::File::open(".")?.sync_all(),
    }
}
