//! Configurations of relays under test: a test writes what it is about, and the rest stands here once.

use std::fmt::Display;

/// Keys that stand before all sections.
const KEYS: [(&str, &str); 2] = [("hostname", "mail.contoso.com"), ("postmaster", "julie@contoso.com")];

/// Sections. A test reads the log, and nothing of a relay is outside of its folder: its tracking files lie beside its spool,
/// and no console stands at the port that all relays would have.
const SECTIONS: [&str; 5] = [
    "[log]\nformat = \"json\"\n",
    "[admin]\nlisten = \"\"\n",
    "[tracking]\npath = \"tracking\"\n",
    "[spool]\npath = \"spool\"\nmin_free_space = \"1MiB\"\nretry = [\"1s\"]\n",
    "[[accepted_domain]]\nname = \"contoso.com\"\ntype = \"external-relay\"\n",
];

/// What begins a receive connector that takes mail from everybody, at a port that the system chooses.
pub const IN: &str = "[[receive_connector]]\nname = \"in\"\nlisten = [\"127.0.0.1:0\"]\norigin = \"internet\"\n";

/// A send connector that sends everything to `next`, in the clear.
pub fn out(next: impl Display) -> String {
    format!("[[send_connector]]\nname = \"out\"\naddress_spaces = [\"*\"]\nsmart_hosts = [\"{next}\"]\ntls = \"off\"\n")
}

/// A whole configuration: `text`, with each key and section above that it leaves out.
pub fn relay(text: &str) -> String {
    let (keys, sections) = match text.find("\n[") {
        _ if text.starts_with('[') => ("", text),
        Some(at) => text.split_at(at + 1),
        None => (text, ""),
    };
    let has = |line: &str| sections.lines().any(|one| one == line);
    let mut whole = String::new();
    for (key, value) in KEYS {
        if !keys.lines().any(|line| line.starts_with(key)) {
            whole += &format!("{key} = \"{value}\"\n");
        }
    }
    whole += keys;
    for section in SECTIONS.iter().filter(|section| !has(section.lines().next().unwrap())) {
        whole += &format!("\n{section}");
    }
    whole + "\n" + sections
}
