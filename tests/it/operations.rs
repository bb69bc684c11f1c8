//! docs/operations.md as its reader tries it: the Postfix that moves, held against what Postfix itself answers.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{PATIENCE, Scratch, causeway, run, said};
use serde_json::Value;

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap()
}

/// Writes the files of the example, which the page shows as blocks of code with a name.
fn lay_out(scratch: &Scratch, page: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let block: String = lines.by_ref().take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect();
        if let Some((_, name)) = info.split_once(' ') {
            scratch.write(name, block);
            names.push(name.to_owned());
        }
    }
    names
}

/// The rows of the table that begins with this line.
fn rows<'a>(page: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let (_, table) = page.split_once(title).unwrap_or_else(|| panic!("no table {title:?}"));
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn the_example_of_moving_from_postfix_goes_where_postfix_went() {
    let page = page();
    let scratch = Scratch::new();
    let names = lay_out(&scratch, &page);
    assert_eq!(
        names,
        ["main.cf", "relay_recipients", "transport", "tls_policy", "causeway.toml", "recipients.csv"],
        "the files of the example"
    );
    let root = scratch.authority();
    fs::create_dir(scratch.file("certs")).unwrap();
    // Below an intermediate, as with public authorities; and its root is what the system knows.
    scratch.issue(&root.intermediate("Issuer of the test"), "certs/mail.contoso.com", &["mail.contoso.com"]);
    let program = |arguments: &[&str]| {
        let mut command = causeway();
        command.env("SSL_CERT_FILE", scratch.file("ca.pem")).env_remove("SSL_CERT_DIR");
        run(command.current_dir(scratch.path()).args(["-c", "causeway.toml"]).args(arguments), PATIENCE)
    };
    let checked = program(&["check"]);
    assert!(checked.status.success(), "{}", said(&checked));
    assert!(!said(&checked).contains("warning"), "the page says that nothing is found:\n{}", said(&checked));

    let rows = rows(&page, "| to | from | Postfix | Causeway |");
    assert_eq!(rows.len(), 6);
    for row in rows {
        let [to, from, postfix, ours] = row[..] else { panic!("{row:?}") };
        let output = program(&["explain", "--json", "--origin", from, "--from", "erin@tailspintoys.com", "--to", to]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
        let via = answer["copies"][0]["via"].as_str();
        let hop = answer["copies"][0]["hop"].as_str();
        assert_eq!(via.unwrap_or("refused"), ours, "{to}: {}", said(&output));
        // smtp:[host]:port, and 25 where no port stands, is what Causeway calls host:port.
        let host = postfix.strip_prefix("smtp:[").map(|rest| match rest.split_once("]:") {
            Some((host, port)) => format!("{host}:{port}"),
            None => format!("{}:25", rest.trim_end_matches(']')),
        });
        match (postfix, hop) {
            ("refused", hop) => assert_eq!(hop, None),
            ("the MX", hop) => assert!(hop.is_some_and(|hop| hop.starts_with("the MX of ")), "{hop:?}"),
            (_, hop) => assert_eq!(hop, host.as_deref()),
        }
        if Path::new("/usr/sbin/postmap").exists() {
            assert_eq!(ask_postfix(&scratch, to, from), postfix, "Postfix sends {to} elsewhere than the page says");
        }
    }
}

/// Where this Postfix sends it, from its own maps, in the order in which transport(5) and access checks ask them.
fn ask_postfix(scratch: &Scratch, to: &str, from: &str) -> String {
    let map = |key: &str, name: &str| {
        let mut command = Command::new("/usr/sbin/postmap");
        let map = format!("texthash:{}", scratch.file(name).display());
        let output = run(command.arg("-c").arg(scratch.path()).args(["-q", key, &map]), PATIENCE);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let (_, domain) = to.split_once('@').unwrap();
    let main = fs::read_to_string(scratch.file("main.cf")).unwrap();
    let relayed = main.lines().find_map(|line| line.strip_prefix("relay_domains = ")).unwrap();
    let is_ours = relayed.split_whitespace().any(|ours| ours == domain);
    let is_known = || map(to, "relay_recipients").or_else(|| map(&format!("@{domain}"), "relay_recipients")).is_some();
    match (is_ours, from) {
        (true, _) if !is_known() => "refused".to_owned(),
        (false, "internet") => "refused".to_owned(),
        _ => map(to, "transport").or_else(|| map(domain, "transport")).unwrap_or_else(|| "the MX".to_owned()),
    }
}

/// A command that is not there is worse than none at three in the morning.
#[test]
fn every_command_of_the_page_exists() {
    let page = page();
    let mut tried = 0;
    let code = page.split('`').skip(1).step_by(2);
    let blocks = page.lines().filter(|line| line.starts_with("causeway "));
    for command in code.chain(blocks).filter_map(|code| code.strip_prefix("causeway ")) {
        // What stands before the first option or placeholder names the command.
        let words: Vec<&str> = command
            .split_whitespace()
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-'))
            .collect();
        let options = command.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        let known = run(causeway().args(&words).arg("--help"), PATIENCE);
        if words.is_empty() {
            continue;
        }
        assert!(known.status.success(), "causeway {command}: {}", said(&known));
        for option in options {
            assert!(said(&known).contains(option), "causeway {command}: no {option}");
        }
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
}
