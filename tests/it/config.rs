//! Configurations from outside: the examples, and all that can be wrong with one.
//!
//! `tests/config/*.toml` are whole files. The lines that start with `#!` say what `check` finds in them: severity,
//! place and text, in the order of the file. `FOLDER` stands for the folder the file lies in; beside it are
//! `mail.crt`, `mail.key`, `ca.pem` and `recipients.csv`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use causeway::config::{self, Config, EightBit, FirstHop, Internet, Level, Problems, ReceiveTls, Severity, Side, Tags};
use causeway::tls::Authority;
use causeway::tls::authority::Template;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

const SOURCE: &str = env!("CARGO_MANIFEST_DIR");

/// A folder with the files that configurations name.
struct Place {
    folder: TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let root = Authority::new("Root of the test");
        let authority = root.intermediate("Issuer of the test");
        let place = Self { folder: TempDir::new().expect("a folder for the test"), authority };
        place.write("ca.pem", &root.pem());
        place.certify("mail", &Template::new(&["mail.contoso.com"]));
        place.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
        place.secret("password", "s3cret-of-the-test\n", 0o600);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the test's own file");
        path
    }

    fn secret(&self, name: &str, text: &str, mode: u32) {
        let path = self.write(name, text);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the test's own file");
    }

    fn certify(&self, name: &str, template: &Template) {
        let (certificate, key) = self.authority.issue_as(template);
        // With its root: it is one that this host does not know otherwise.
        let root = fs::read_to_string(self.path("ca.pem")).expect("the test's own file");
        self.write(&format!("{name}.crt"), &(certificate + &root));
        self.secret(&format!("{name}.key"), &key, 0o600);
    }

    /// What `check` says of `text`, a line for each finding.
    fn findings(&self, text: &str) -> Vec<String> {
        self.check(text).1
    }

    fn check(&self, text: &str) -> (Option<Config>, Vec<String>) {
        let path = self.write("causeway.toml", text);
        let (config, problems) = config::check(&path, Timestamp::now());
        (config, self.lines(&problems))
    }

    fn lines(&self, problems: &Problems) -> Vec<String> {
        let folder = self.folder.path().display().to_string();
        let line = |problem: &config::Problem| {
            let text = problem.to_string();
            let text = text.strip_prefix(&format!("{folder}/causeway.toml:")).expect("the finding names the file");
            format!("{}:{}", problem.severity, text.replace(&folder, "FOLDER"))
        };
        problems.0.iter().map(line).collect()
    }
}

/// A plain configuration without any fault; each part of it can be replaced.
const GOOD: &str = r#"hostname = "mail.contoso.com"
[spool]
path = "spool"
[[accepted_domain]]
name = "contoso.com"
[[directory]]
path = "recipients.csv"
[[receive_connector]]
name = "in"
listen = ["0.0.0.0:25"]
remote_ips = ["0.0.0.0/0"]
origin = "internet"
certificate = "mail.crt"
key = "mail.key"
[[send_connector]]
name = "out"
address_spaces = ["*"]
tls = "opportunistic"
"#;

#[test]
fn each_faulty_file_is_told_all_that_is_wrong_with_it() {
    let place = Place::new();
    let mut files: Vec<_> = fs::read_dir(Path::new(SOURCE).join("tests/config"))
        .expect("the folder of faulty files")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 7, "only {} files found", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a faulty file");
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#! ")).collect();
        let found = place.findings(&text);
        assert_eq!(found.join("\n"), expected.join("\n"), "{}", file.display());
    }
}

/// Each row: what is replaced in the good configuration, by what, and all that is found then.
#[test]
fn each_mistake_is_told_with_its_place_and_its_cure() {
    let place = Place::new();
    place.secret("open", "s3cret\n", 0o644);
    place.secret("empty", "\n", 0o600);
    place.secret("lines", "one\ntwo\n", 0o600);
    place.certify("other", &Template::new(&["other.example"]));
    place.secret("open.key", &fs::read_to_string(place.path("mail.key")).expect("a key"), 0o644);
    place.certify("expired", &Template::new(&["mail.contoso.com"]).expired());
    let send = "address_spaces = [\"*\"]\ntls = \"opportunistic\"";
    let rows: &[(&str, &str, &[&str])] = &[
        ("", "", &[]),
        // The top.
        (
            "hostname = \"mail.contoso.com\"",
            "",
            &[
                r#"error: hostname: missing; by what name do other servers know this one? For example "mail.contoso.com""#,
            ],
        ),
        (
            "mail.contoso.com\"",
            "[192.0.2.1]\"",
            &[r#"error:1:12: hostname: found "[192.0.2.1]", expected a domain such as "contoso.com""#],
        ),
        (
            "mail.contoso.com\"",
            "localhost\"",
            &[r#"error:1:1: hostname: every host calls itself "localhost"; other servers need a name of its own"#],
        ),
        (
            "[[accepted_domain]]\nname = \"contoso.com\"",
            "",
            &[
                r#"error: postmaster: missing; without an accepted_domain there is no default for where mail to postmaster goes"#,
            ],
        ),
        (
            "[spool]\npath = \"spool\"",
            "",
            &[r#"error: spool: path: missing; in which folder is mail kept until it is delivered?"#],
        ),
        (
            "path = \"spool\"",
            "path = \"mail.crt/spool\"",
            &[r#"error:3:1: spool: path: expected a folder; there is a file on the way to it"#],
        ),
        (
            "[spool]",
            "[log]\nlevel = \"loud\"\nformat = \"xml\"\n[spool]",
            &[
                r#"error:3:9: log: level: found "loud", expected "error", "warn", "info", "debug", "trace" or a filter such as "info,causeway::deliver=debug""#,
                r#"error:4:10: log: format: found "xml", expected "text" or "json""#,
            ],
        ),
        (
            "[spool]",
            "[dns]\nservers = [\"::1\"]\nprivate_targets = [\"10.0.0.1/8\"]\n[spool]",
            &[
                r#"error:3:12: dns: servers: found "::1", expected brackets around an IPv6 address: "[2001:db8::1]" or "[2001:db8::1]:25""#,
                r#"error:4:20: dns: private_targets: found "10.0.0.1/8", expected "10.0.0.0/8" or a longer prefix"#,
            ],
        ),
        // Domains and directories.
        (
            "name = \"contoso.com\"",
            "name = \"contoso.com\"\ntype = \"internal-relay\"",
            &[
                r#"warning:6:1: accepted_domain "contoso.com": type: without [hybrid] there are no other premises: unknown recipients go by address space, as with "external-relay""#,
            ],
        ),
        (
            "[[directory]]\npath = \"recipients.csv\"",
            "",
            &[
                r#"warning:4:1: accepted_domain "contoso.com": type: "authoritative" without any [[directory]]: every recipient gets 550 5.1.1"#,
            ],
        ),
        (
            "[[directory]]\npath = \"recipients.csv\"",
            "[[directory]]",
            &[r#"error:6:1: directory number 1: path: missing; in which file are the recipients?"#],
        ),
        // Receive connectors.
        (
            "origin = \"internet\"",
            "",
            &[
                r#"error:8:1: receive_connector "in": origin: missing; who sends here: "internet", "on-premises", "cloud", "partner" or "client"?"#,
            ],
        ),
        (
            "name = \"in\"",
            "",
            &[r#"error:8:1: receive_connector number 1: name: missing; each connector has a name of its own"#],
        ),
        (
            "name = \"in\"",
            "name = \"\"",
            &[
                r#"error:9:8: receive_connector number 1: name: found "", expected a name of 1 to 64 characters such as "to-cloud""#,
            ],
        ),
        (
            "[\"0.0.0.0:25\"]",
            "\"0.0.0.0:25\"",
            &[
                r#"error:10:10: receive_connector "in": listen: found "0.0.0.0:25", expected a list such as ["0.0.0.0:25"]"#,
            ],
        ),
        (
            "[\"0.0.0.0:25\"]",
            "[]",
            &[
                r#"error:10:1: receive_connector "in": listen: missing; on which addresses? For example ["0.0.0.0:25", "[::]:25"]"#,
            ],
        ),
        (
            "[\"0.0.0.0:25\"]",
            "[\"0.0.0.0:25\", \"0.0.0.0:25\"]",
            &[r#"error:10:1: receive_connector "in": listen: 0.0.0.0:25 stands there twice"#],
        ),
        (
            "[\"0.0.0.0/0\"]",
            "[]",
            &[
                r#"error:11:1: receive_connector "in": remote_ips: is empty, so the connector would take nobody; all the world is ["0.0.0.0/0", "::/0"]"#,
            ],
        ),
        (
            "certificate = \"mail.crt\"\n",
            "",
            &[
                r#"error:8:1: receive_connector "in": certificate: missing; the key needs the certificate it belongs to"#,
            ],
        ),
        (
            "key = \"mail.key\"\n",
            "",
            &[r#"error:8:1: receive_connector "in": key: missing; the certificate needs the key that belongs to it"#],
        ),
        (
            "mail.key",
            "open.key",
            &[
                r#"warning:14:1: receive_connector "in": key: every user of this host can read the key; chmod o= takes that away"#,
            ],
        ),
        (
            "origin",
            "tls = \"off\"\ntls_domain = [\"mx.fabrikam.com\"]\nclient_ca_file = \"ca.pem\"\norigin",
            &[
                r#"error:13:1: receive_connector "in": tls_domain: no client can present a certificate with tls = "off""#,
                r#"warning:16:1: receive_connector "in": certificate: is not used with tls = "off""#,
            ],
        ),
        (
            "origin",
            "tls = \"off\"\ntls_handshake_timeout = \"9s\"\norigin",
            &[
                r#"warning:13:1: receive_connector "in": tls_handshake_timeout: is not used with tls = "off""#,
                r#"warning:15:1: receive_connector "in": certificate: is not used with tls = "off""#,
            ],
        ),
        (
            "origin",
            "tls_handshake_timeout = \"0s\"\norigin",
            &[
                r#"error:12:25: receive_connector "in": tls_handshake_timeout: found "0s", expected a duration longer than "0s""#,
            ],
        ),
        (
            "origin",
            "client_ca_file = \"ca.pem\"\norigin",
            &[r#"warning:12:1: receive_connector "in": client_ca_file: is not used without tls_domain"#],
        ),
        (
            "origin",
            "client_ca_file = \"none.pem\"\ntls_domain = [\"a.example\", \"*\"]\norigin",
            &[
                r#"error:13:28: receive_connector "in": tls_domain: found "*", expected a name such as "mail.contoso.com" or "*.contoso.com""#,
            ],
        ),
        (
            "origin",
            "client_ca_file = \"none.pem\"\ntls_domain = [\"a.example\"]\norigin",
            &[
                r#"error:12:1: receive_connector "in": client_ca_file: FOLDER/none.pem: No such file or directory (os error 2)"#,
            ],
        ),
        (
            "origin",
            "only_here = true\norigin",
            &[r#"error:12:1: receive_connector "in": only_here: needs sender_domains: whose mail must come this way?"#],
        ),
        // C163: 64 KiB is acceptable under any configuration. C120: 0 is no limit.
        (
            "origin",
            "max_message_size = \"63KiB\"\norigin",
            &[
                r#"error:12:1: receive_connector "in": max_message_size: 64512 bytes are too few; every server must take 64KiB (0: no limit)"#,
            ],
        ),
        ("origin", "max_message_size = 0\nmax_errors = 0\norigin", &[]),
        (
            "origin",
            "max_message_size = 1000\norigin",
            &[
                r#"error:12:20: receive_connector "in": max_message_size: found the number 1000, expected a size such as "36MiB" (B, KiB, MiB or GiB)"#,
            ],
        ),
        (
            "origin",
            "max_recipients = 99\norigin",
            &[
                r#"warning:12:1: receive_connector "in": max_recipients: other servers count on 100 at least (RFC 5321 section 4.5.3.1.8)"#,
            ],
        ),
        // An open relay, however it is written.
        (
            "origin",
            "relay = true\norigin",
            &[
                r#"error:12:1: receive_connector "in": relay: true, and remote_ips is all the world: an open relay; narrow remote_ips, demand a tls_domain, or set relay = false"#,
            ],
        ),
        (
            "origin = \"internet\"",
            "origin = \"client\"",
            &[
                r#"error:8:1: receive_connector "in": relay: is true by default with origin = "client", and remote_ips is all the world: an open relay; narrow remote_ips, demand a tls_domain, or set relay = false"#,
            ],
        ),
        (
            "[\"0.0.0.0/0\"]\norigin",
            "[\"0.0.0.0/1\", \"128.0.0.0/1\"]\nrelay = true\norigin",
            &[
                r#"error:12:1: receive_connector "in": relay: true, and remote_ips is all the world: an open relay; narrow remote_ips, demand a tls_domain, or set relay = false"#,
            ],
        ),
        ("origin", "relay = true\ntls_domain = [\"a.example\"]\nclient_ca_file = \"ca.pem\"\norigin", &[]),
        (
            "origin",
            "relay = true\ntls_domain = [\"mail.protection.outlook.com\"]\nclient_ca_file = \"ca.pem\"\norigin",
            &[
                r#"warning:13:1: receive_connector "in": tls_domain: all customers of the cloud service show a certificate for mail.protection.outlook.com, and relay lets them send anywhere; set originator_org to your own domain"#,
            ],
        ),
        // Who is believed, and who may say who comes.
        (
            "origin",
            "internal = true\norigin",
            &[
                r#"warning:12:1: receive_connector "in": internal: the organization headers of whoever connects would be believed; demand a tls_domain, or narrow remote_ips"#,
            ],
        ),
        ("origin", "internal = true\ntls_domain = [\"a.example\"]\nclient_ca_file = \"ca.pem\"\norigin", &[]),
        (
            "tls = \"opportunistic\"",
            "tls = \"opportunistic\"\ninternal = true",
            &[
                r#"warning:19:1: send_connector "out": internal: organization headers would go to whoever answers; the other premises prove themselves by tls = "domain""#,
            ],
        ),
        (
            "origin",
            "proxy_protocol = true\norigin",
            &[
                r#"error:12:1: receive_connector "in": proxy_protocol: remote_ips is all the world, so whoever connects may name another client; set it to the proxies' addresses"#,
            ],
        ),
        (
            "origin",
            "require_auth = true\norigin",
            &[r#"error:8:1: receive_connector "in": users_file: missing; require_auth needs the users who may log in"#],
        ),
        ("origin = \"internet\"", "origin = \"client\"\nrequire_auth = true\nusers_file = \"password\"", &[]),
        (
            "origin = \"internet\"",
            "origin = \"internet\"\nusers_file = \"recipients.csv\"",
            &[
                r#"warning:13:1: receive_connector "in": users_file: every user of this host can read the hashes and try passwords at leisure; chmod o= takes that away"#,
            ],
        ),
        // Send connectors.
        (
            "tls = \"opportunistic\"",
            "",
            &[
                r#"error:15:1: send_connector "out": tls: missing; what must the receiver prove: "off", "opportunistic", "encrypt", "certificate" or "domain"?"#,
            ],
        ),
        (
            send,
            "smart_hosts = [\"a.example\"]\ntls = \"domain\"\nca_file = \"ca.pem\"\naddress_spaces = [\"*\"]",
            &[
                r#"error:15:1: send_connector "out": tls_domain: missing; tls = "domain" with smart_hosts needs the names to accept"#,
            ],
        ),
        (send, "tls = \"domain\"\nca_file = \"ca.pem\"\naddress_spaces = [\"*\"]", &[]),
        (
            send,
            "tls = \"encrypt\"\nca_file = \"ca.pem\"\ntls_domain = [\"a.example\"]\naddress_spaces = [\"*\"]",
            &[
                r#"warning:18:1: send_connector "out": ca_file: is used with tls = "certificate" and "domain" only"#,
                r#"error:19:1: send_connector "out": tls_domain: is checked with tls = "domain" only; write that, or leave the names out"#,
            ],
        ),
        (
            send,
            "tls = \"encrypt\"\ntags = \"strip\"\naddress_spaces = [\"*\"]",
            &[r#"error:18:8: send_connector "out": tags: found "strip", expected "keep" or "drop""#],
        ),
        (
            send,
            "tls = \"encrypt\"\naddress_spaces = [\"*;0\"]",
            &[
                r#"error:18:19: send_connector "out": address_spaces: found "*;0", expected a cost from 1 to 100 behind the semicolon"#,
            ],
        ),
        (
            "tls =",
            "source_ip = [\"192.0.2.1\", \"192.0.2.2\"]\nrate = \"fast\"\nconnect_timeout = \"0s\"\ntls =",
            &[
                r#"error:18:1: send_connector "out": source_ip: expected at most one IPv4 and one IPv6 address"#,
                r#"error:19:8: send_connector "out": rate: found "fast", expected a rate such as "600/min" (s, min or h)"#,
                r#"error:20:19: send_connector "out": connect_timeout: found "0s", expected a duration longer than "0s""#,
            ],
        ),
        (
            "tls =",
            "certificate = \"mail.crt\"\nkey = \"other.key\"\ntls =",
            &[
                r#"error:19:1: send_connector "out": key: FOLDER/other.key: the key does not belong to the first certificate in FOLDER/mail.crt; one of the two is another server's, or was not renewed with it"#,
            ],
        ),
        // A file that is not there is told where it is named.
        (
            "mail.crt",
            "gone.crt",
            &[
                r#"error:13:1: receive_connector "in": certificate: FOLDER/gone.crt: No such file or directory (os error 2)"#,
            ],
        ),
        (
            "mail.key",
            "gone.key",
            &[r#"error:14:1: receive_connector "in": key: FOLDER/gone.key: No such file or directory (os error 2)"#],
        ),
        (
            "mail.key",
            "recipients.csv",
            &[
                r#"error:14:1: receive_connector "in": key: FOLDER/recipients.csv: there is no key in it (a line -----BEGIN PRIVATE KEY----- is expected)"#,
            ],
        ),
        (
            "origin",
            "users_file = \"gone\"\norigin",
            &[
                r#"error:12:1: receive_connector "in": users_file: FOLDER/gone cannot be read: No such file or directory (os error 2)"#,
            ],
        ),
        (
            "recipients.csv",
            "gone.csv",
            &[
                r#"error:7:1: directory "gone.csv": path: FOLDER/gone.csv cannot be read: No such file or directory (os error 2)"#,
            ],
        ),
        (
            "tls = \"opportunistic\"",
            "tls = \"certificate\"\nca_file = \"gone.pem\"",
            &[r#"error:19:1: send_connector "out": ca_file: FOLDER/gone.pem: No such file or directory (os error 2)"#],
        ),
        // Logins. S-166: no secret that everybody can read.
        (
            "tls =",
            "password = \"hunter2\"\ntls =",
            &[r#"error:18:1: send_connector "out": unknown key "password"; did you mean "password_file"?"#],
        ),
        (
            "tls = \"opportunistic\"",
            "username = \"contoso\"\npassword_file = \"password\"\ntls = \"opportunistic\"",
            &[
                r#"error:18:1: send_connector "out": username: is for smart_hosts; no password goes to whatever host an MX names"#,
                r#"error:18:1: send_connector "out": username: the password could travel in the clear; set tls = "domain", or at least "encrypt""#,
            ],
        ),
        (
            "tls = \"opportunistic\"",
            "smart_hosts = [\"a.example\"]\nusername = \"contoso\"\npassword_file = \"password\"\ntls = \"encrypt\"",
            &[
                r#"warning:19:1: send_connector "out": username: tls = "encrypt" takes any certificate, so whoever stands between could take the password; tls = "domain" does not"#,
            ],
        ),
        (
            "tls = \"opportunistic\"",
            "smart_hosts = [\"a.example\"]\nusername = \"contoso\"\ntls = \"certificate\"\nca_file = \"ca.pem\"",
            &[r#"error:15:1: send_connector "out": password_file: missing; username needs one"#],
        ),
        (
            "tls =",
            "password_file = \"password\"\ntls =",
            &[r#"error:15:1: send_connector "out": username: missing; password_file needs one"#],
        ),
    ];
    let mut wrong = String::new();
    for (from, to, expected) in rows {
        assert!(GOOD.contains(from), "{from} is not in the good configuration");
        let found = place.findings(&GOOD.replacen(from, to, 1));
        if found != *expected {
            wrong += &format!("{from} -> {to}\n  expected {expected:#?}\n  found {found:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for (file, why) in [
        ("open", "every user of this host can read FOLDER/open; chmod 600 takes that away"),
        ("empty", "FOLDER/empty is empty"),
        ("lines", "FOLDER/lines does not hold one line with a password"),
        ("none", "FOLDER/none cannot be read: No such file or directory (os error 2)"),
    ] {
        let to = format!(
            "smart_hosts = [\"a.example\"]\nusername = \"contoso\"\npassword_file = \"{file}\"\ntls = \"certificate\"\nca_file = \"ca.pem\""
        );
        let found = place.findings(&GOOD.replacen("tls = \"opportunistic\"", &to, 1));
        assert_eq!(found, [format!("error:20:1: send_connector \"out\": password_file: {why}")], "{file}");
    }
}

/// Connectors that share an address: networks, tls_domain and proxy_protocol of each, and the networks that are contested,
/// because a certificate decides there and the header would have to be known before.
#[test]
fn connectors_that_one_client_may_belong_to_agree_about_the_proxy_protocol() {
    const PROXY: &str = "proxy_protocol = true\n";
    const NAMED: &str = "tls_domain = [\"mail.partner.example\"]\nclient_ca_file = \"ca.pem\"\n";
    const ALL: &str = "0.0.0.0/0";
    const TEN: &str = "10.0.0.0/8";
    const ONE: &str = "10.0.0.5/32";
    let place = Place::new();
    for (first, second, contested) in [
        // The network alone decides: a proxy beside everybody.
        ((ALL, ""), (ONE, PROXY), None),
        ((ONE, PROXY), (ALL, ""), None),
        ((TEN, PROXY), (ONE, ""), None),
        ((ONE, PROXY), ("10.0.0.6/32", NAMED), None),
        // They agree.
        ((TEN, PROXY), (TEN, &format!("{PROXY}{NAMED}")), None),
        // The proven one is the narrower or as wide: before its certificate the connection is the other's.
        ((TEN, PROXY), (TEN, NAMED), Some(TEN)),
        ((TEN, ""), (ONE, &format!("{PROXY}{NAMED}")), Some(ONE)),
        ((ONE, &format!("{PROXY}{NAMED}")), (ALL, ""), Some(ALL)),
        // The proven one is wider: where they meet, the other has every client.
        ((ONE, PROXY), (ALL, NAMED), None),
        // Two proven ones.
        ((TEN, &format!("{PROXY}{NAMED}")), (ONE, &NAMED.replace("partner", "other")), Some(ONE)),
        ((ONE, &format!("{PROXY}{NAMED}")), ("10.0.0.6/32", NAMED), None),
    ] {
        let connector = |name: &str, (network, more): (&str, &str)| {
            format!(
                "[[receive_connector]]\nname = \"{name}\"\nlisten = [\"0.0.0.0:25\"]\nremote_ips = [\"{network}\"]\n\
                 origin = \"partner\"\ncertificate = \"mail.crt\"\nkey = \"mail.key\"\n{more}"
            )
        };
        let (before, after) = (GOOD.find("[[receive").unwrap(), GOOD.find("[[send").unwrap());
        let connectors = connector("a", first) + &connector("b", second);
        let text = format!("{}{connectors}{}", &GOOD[..before], &GOOD[after..]);
        let found: Vec<String> = place.findings(&text).into_iter().filter(|line| line.starts_with("error")).collect();
        match (contested, &found[..]) {
            (None, []) => {}
            (Some(network), [only]) => {
                let value = second.1.contains("proxy_protocol");
                let expected = format!(
                    r#"receive_connector "b": proxy_protocol: {value} differs from receive_connector "a" on 0.0.0.0:25: a client of {network} may belong to either"#
                );
                assert!(only.contains(&expected), "{first:?} {second:?}: {only}");
            }
            (_, found) => panic!("{first:?} {second:?}: {found:?}"),
        }
    }
    // Not the same address: each has its own way.
    let text = GOOD.replace(
        "[[send_connector]]",
        "[[receive_connector]]\nname = \"b\"\nlisten = [\"0.0.0.0:26\"]\nremote_ips = [\"10.0.0.0/8\"]\norigin = \"partner\"\n\
         certificate = \"mail.crt\"\nkey = \"mail.key\"\nproxy_protocol = true\n[[send_connector]]",
    );
    assert_eq!(place.findings(&text), Vec::<String>::new());
}

#[test]
fn certificates_are_judged_by_the_date_given() {
    let place = Place::new();
    let path = place.write("causeway.toml", GOOD);
    let now = Timestamp::now();
    for (days, expected) in [(0, None), (50, None), (61, Some("warning")), (89, Some("warning")), (91, Some("error"))] {
        let (config, problems) = config::check(&path, now + SignedDuration::from_hours(24 * days));
        let found = place.lines(&problems);
        match expected {
            None => assert!(found.is_empty(), "after {days} days: {found:?}"),
            Some(severity) => {
                let start = format!("{severity}:13:1: receive_connector \"in\": certificate: the certificate ");
                assert!(found.iter().any(|line| line.starts_with(&start)), "after {days} days: {found:?}");
            }
        }
        assert_eq!(config.is_some(), expected != Some("error"), "after {days} days");
    }
    // Trust anchors end too, and are told where they are named.
    let anchored = GOOD.replacen("tls = \"opportunistic\"", "tls = \"certificate\"\nca_file = \"ca.pem\"", 1);
    let path_of_anchored = place.write("anchored.toml", &anchored);
    for (days, expected) in [(3600, None), (3640, Some(" ends in ")), (3660, Some(" was valid until "))] {
        let (_, problems) = config::check(&path_of_anchored, now + SignedDuration::from_hours(24 * days));
        let said = problems.0.iter().find(|problem| problem.text.contains("ca_file: the trusted certificate Root of"));
        assert_eq!(said.is_some(), expected.is_some(), "after {days} days: {problems}");
        assert!(said.is_none_or(|said| said.text.contains(expected.unwrap_or_default())), "{said:?}");
    }
    // A daemon starts with the certificate that it has: mail in the clear or from those who do not look goes on.
    place.certify("mail", &Template::new(&["mail.contoso.com"]).expired());
    config::load(&path).expect("dates are no reason not to start");
    // Once for a certificate, however many connectors name it.
    place.certify("mail", &Template::new(&["mail.contoso.com"]).without_chain());
    let twice = GOOD.replace("tls =", "certificate = \"mail.crt\"\nkey = \"mail.key\"\ntls =");
    let found = place.findings(&twice);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("the certificate of the issuer (CN=Issuer of the test) is missing"), "{found:?}");
}

/// One wrong file is one fault, which names all who need it.
#[test]
fn what_several_connectors_name_is_wrong_once() {
    let place = Place::new();
    place.certify("other", &Template::new(&["other.example"]));
    let pair = "certificate = \"mail.crt\"\nkey = \"other.key\"\n";
    let out =
        |name: &str| format!("[[send_connector]]\nname = \"{name}\"\naddress_spaces = [\"{name}.example\"]\n{pair}");
    let text = GOOD.replace("key = \"mail.key\"", "key = \"other.key\"")
        + &out("two").replace(pair, &format!("{pair}tls = \"domain\"\nca_file = \"none.pem\"\n"))
        + &out("three").replace(pair, &format!("{pair}tls = \"certificate\"\nca_file = \"none.pem\"\n"));
    let found = place.findings(&text);
    let [pair, roots] = found.as_slice() else { panic!("{found:?}") };
    assert!(
        pair.starts_with("error:14:1: receive_connector \"in\": key: FOLDER/other.key: the key does not "),
        "{pair}"
    );
    assert!(pair.ends_with("; it is also named by send_connector \"two\", send_connector \"three\""), "{pair}");
    assert!(roots.contains("send_connector \"two\": ca_file: ") && roots.contains("none.pem"), "{roots}");
    assert!(roots.ends_with("; it is also named by send_connector \"three\""), "{roots}");
}

#[test]
fn a_file_that_cannot_be_read_is_unreadable() {
    let place = Place::new();
    let check = |path: &Path| config::check(path, Timestamp::now()).1;
    let (missing, folder) = (place.path("none.toml"), place.path("."));
    let bytes = place.path("causeway.toml");
    fs::write(&bytes, b"# \xc3\xa4\n\nname = \"\xff\"\n").expect("the test's own file");
    for (path, text) in [
        (
            missing,
            "cannot be read: No such file or directory (os error 2); is this its path (-c FILE)? `causeway init` writes one",
        ),
        (folder, "cannot be read: Is a directory (os error 21)"),
        (bytes, "this is not UTF-8"),
    ] {
        let problems = check(&path);
        assert!(problems.unreadable());
        assert_eq!(problems.0.len(), 1);
        assert_eq!((problems.0[0].text.as_str(), problems.0[0].severity), (text, Severity::Unreadable));
        assert_eq!(problems.0[0].place.is_some(), text == "this is not UTF-8");
        assert!(problems.0[0].place.is_none_or(|place| place == (3, 9)));
    }
    assert!(!config::parse("", Path::new("x.toml")).expect_err("nothing is required?").unreadable());
}

#[test]
fn what_is_left_out_has_its_default() {
    let place = Place::new();
    let (config, found) = place.check(GOOD);
    assert!(found.is_empty(), "{found:?}");
    let config = config.expect("the good configuration");
    let seconds = |duration: std::time::Duration| duration.as_secs();
    assert_eq!(config.postmaster.to_string(), "postmaster@contoso.com");
    assert_eq!(seconds(config.shutdown_grace), 30);
    assert_eq!(config.spool.path, place.path("spool"));
    assert_eq!(seconds(config.spool.message_lifetime), 172_800);
    assert_eq!(config.spool.delay_warning.map(seconds), Some(14_400));
    assert_eq!(config.spool.retry.iter().copied().map(seconds).collect::<Vec<_>>(), [60, 300, 600, 1200, 1800]);
    assert_eq!(config.spool.min_free_space, 268_435_456);
    assert!(config.dns.servers.is_empty() && config.hybrid.is_none());
    assert!(config.tracking.is_some_and(|tracking| tracking.path == Path::new("/var/log/causeway")));
    let admin = config.admin.expect("[admin] has defaults");
    assert_eq!((admin.listen, admin.token_file), ("127.0.0.1:8025".parse().unwrap(), place.path("secrets/admin")));
    assert_eq!((config.log.json, config.log.level.as_str()), (false, "info"));
    assert_eq!(&*config.directories[0].name, "recipients.csv");

    let receive = &config.receive_connectors[0];
    assert_eq!(receive.tls, ReceiveTls::Offer);
    assert!(receive.identity.is_some() && !receive.relay && !receive.strict && !receive.only_here);
    assert_eq!(receive.max_message_size, Some(37_748_736));
    assert_eq!((receive.max_recipients, receive.max_connections), (1000, 5000));
    assert_eq!((receive.max_connections_per_ip, receive.max_errors), (100, 10));
    assert_eq!((seconds(receive.command_timeout), seconds(receive.data_timeout)), (300, 180));
    assert_eq!(seconds(receive.tls_handshake_timeout), 60);

    let send = &config.send_connectors[0];
    assert!(matches!(send.tls, Level::Opportunistic));
    assert_eq!((send.port, send.max_connections), (25, 20));
    assert_eq!((send.max_messages_per_connection, send.max_recipients), (1000, 1000));
    assert!(send.max_message_size.is_none() && send.rate.is_none() && send.helo.is_none() && send.login.is_none());
    assert!(send.chunking && send.enabled);
    assert_eq!((send.eight_bit, send.tags), (EightBit::Convert, Tags::Keep));
    assert_eq!(seconds(send.connect_timeout), 30);
}

#[test]
fn zero_lifts_a_limit() {
    let place = Place::new();
    let lifted = GOOD
        .replace("origin", "max_message_size = \"0\"\nmax_recipients = 0\nmax_connections = 0\norigin")
        .replace("4h", "0s")
        .replace("path = \"spool\"", "path = \"spool\"\ndelay_warning = \"0s\"");
    let (config, found) = place.check(&lifted);
    let config = config.unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(config.spool.delay_warning, None);
    let receive = &config.receive_connectors[0];
    assert_eq!(receive.max_message_size, None);
    assert!(receive.max_recipients > 1_000_000_000 && receive.max_connections > 1_000_000_000);
}

/// Where only such connectors take this address, `tls_domain` implies `tls = "require"`.
#[test]
fn tls_domain_implies_require_where_nobody_else_may_come() {
    let place = Place::new();
    let proven = "tls_domain = [\"mx.fabrikam.com\"]\nclient_ca_file = \"ca.pem\"\norigin";
    let alone = GOOD.replacen("origin", proven, 1);
    let second = r#"
[[receive_connector]]
name = "anybody"
listen = ["0.0.0.0:25"]
origin = "internet"
certificate = "mail.crt"
key = "mail.key"
"#;
    for (text, expected) in [(alone.clone(), ReceiveTls::Require), (format!("{alone}{second}"), ReceiveTls::Offer)] {
        let (config, found) = place.check(&text);
        let config = config.unwrap_or_else(|| panic!("{found:?}"));
        assert_eq!(config.receive_connectors[0].tls, expected);
    }
}

/// S-166: what is secret stays out of what people send around.
#[test]
fn secrets_are_not_shown() {
    let place = Place::new();
    let login = "smart_hosts = [\"a.example\"]\nusername = \"contoso\"\npassword_file = \"password\"\ntls = \"certificate\"\nca_file = \"ca.pem\"";
    let (config, found) = place.check(&GOOD.replacen("tls = \"opportunistic\"", login, 1));
    let config = config.unwrap_or_else(|| panic!("{found:?}"));
    let login = config.send_connectors[0].login.as_ref().expect("a login");
    assert_eq!(login.password, "s3cret-of-the-test");
    let shown = format!("{config:?} {config:#?} {found:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(!shown.contains("PRIVATE KEY"));
    let inline = place.findings(&GOOD.replacen("tls =", "password = \"s3cret\"\ntls =", 1));
    assert!(!inline.join("\n").contains("s3cret"), "{inline:?}");
}

/// Every key of the documented example is known: what is said of it is that a feature is not built, or that a file,
/// the user or a connector it names is not here.
#[test]
fn every_documented_key_is_known() {
    let place = Place::new();
    let text = fs::read_to_string(Path::new(SOURCE).join("tests/config/interface/causeway.toml")).expect("the example");
    let found = place.findings(&text);
    let (refused, other): (Vec<_>, Vec<_>) =
        found.iter().partition(|line| line.contains("not supported in this version"));
    let places: Vec<_> = refused
        .iter()
        .filter_map(|line| line.split_once(": ")?.1.split(": not supported").next())
        .map(|what| what.split(" = ").next().unwrap_or(what))
        .collect();
    let expected = [
        "directory number 2: kind",
        "inbound_authentication: spf",
        "inbound_authentication: dkim",
        "inbound_authentication: dmarc",
        r#"milter "127.0.0.1:11332""#,
        r#"journal "archive@journal.contoso.com""#,
        r#"rule "legal hold""#,
    ];
    assert_eq!(places, expected);
    for line in other {
        let absent = line.contains("No such file") // certificates
            || line.contains(r#"no send_connector is named "to-on-premises""#)
            || line.contains("the system has no trusted roots")
            || line.contains("expected a user of this host");
        assert!(absent, "{line}");
    }
}

/// Whatever stands behind a key is judged, not trusted: no value of any kind ends in a panic, and one that no key
/// can mean is told at its line.
#[test]
fn no_key_takes_just_anything() {
    let place = Place::new();
    let text = fs::read_to_string(Path::new(SOURCE).join("tests/config/interface/causeway.toml")).expect("the example");
    // The system's roots are many, and would be read each time.
    let text = text.replace("ca_file = \"\"", "ca_file = \"ca.pem\"");
    let lines: Vec<&str> = text.lines().collect();
    let unsupported = lines.iter().position(|line| line.starts_with("[inbound_authentication]")).expect("the section");
    let ldap = lines.iter().position(|line| line.starts_with("kind = \"ldap\"")).expect("the directory");
    let after_ldap = lines.iter().position(|line| line.starts_with("[[receive_connector]]")).expect("the section");
    let values = [
        "{ x = 1 }",
        "[]",
        "[[]]",
        "[1, \"x\", {}]",
        "0",
        "-1",
        "99999999999999999999999999",
        "0x10",
        "1e400",
        "nan",
        "true",
        "1979-05-27T07:32:00Z",
        "\"\"",
        "\"\\u0000\"",
        "\"*\"",
        "\"*.\"",
        "\";\"",
        "\"[::1\"",
        "\"٣s\"",
        "\"18446744073709551615GiB\"",
        "\"/\"",
    ];
    let mut keys = 0;
    for (number, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with([' ', '#', '['])) else {
            continue;
        };
        keys += 1;
        for value in values {
            let mut changed = lines.clone();
            let replaced = format!("{key} = {value}");
            changed[number] = &replaced;
            let found = place.findings(&changed.join("\n"));
            assert!(!found.is_empty(), "{replaced}");
            if value == "{ x = 1 }" && number < unsupported && !(ldap + 1..after_ldap).contains(&number) {
                let here = format!("error:{}:", number + 1);
                assert!(found.iter().any(|line| line.starts_with(&here)), "{replaced}: {found:#?}");
            }
        }
    }
    assert!(keys > 90, "only {keys} keys in the example");
}

/// The examples are what people start from: they hold as they stand, beside the certificates of certs/make-test-ca.
#[test]
fn the_examples_are_good() {
    const HERE: Option<Side> = Some(Side::Cloud { inbound_first_hop: FirstHop::Here });
    const ON_PREMISES_FIRST: Option<Side> = Some(Side::Cloud { inbound_first_hop: FirstHop::OnPremises });
    const ON_PREMISES: Option<Side> = Some(Side::OnPremises);
    let place = Place::new();
    fs::create_dir_all(place.path("config")).expect("a folder");
    fs::create_dir_all(place.path("certs/test")).expect("a folder");
    fs::copy(place.path("ca.pem"), place.path("certs/test/ca.crt")).expect("the test's own file");
    for host in ["mail.contoso.com", "cloud.contoso.com"] {
        place.certify(&format!("certs/test/{host}"), &Template::new(&[host]));
    }
    let mut seen = Vec::new();
    for entry in fs::read_dir(Path::new(SOURCE).join("config")).expect("the examples") {
        let from = entry.expect("an example").path();
        let name = from.file_name().expect("a name").to_string_lossy().into_owned();
        fs::copy(&from, place.path("config").join(&name)).expect("a copy");
        seen.push(name);
    }
    seen.retain(|name| name.ends_with(".toml"));
    seen.sort();
    let expected = [
        ("plain-relay.toml", None, None),
        ("scenario-1-cloud.toml", HERE, Some(Internet::Direct)),
        ("scenario-1-on-premises.toml", ON_PREMISES, Some(Internet::OtherPremises)),
        ("scenario-2-cloud.toml", ON_PREMISES_FIRST, Some(Internet::OtherPremises)),
        ("scenario-2-on-premises.toml", ON_PREMISES, Some(Internet::OtherPremises)),
        ("scenario-3-cloud.toml", HERE, Some(Internet::OtherPremises)),
        ("scenario-3-on-premises.toml", ON_PREMISES, Some(Internet::Direct)),
        ("scenario-4-cloud.toml", HERE, Some(Internet::Direct)),
        ("scenario-4-on-premises.toml", ON_PREMISES, Some(Internet::OtherPremises)),
    ];
    assert_eq!(seen, expected.map(|(name, ..)| name));
    for (name, side, internet) in expected {
        let (config, problems) = config::check(&place.path("config").join(name), Timestamp::now());
        assert_eq!(problems.to_string(), "", "{name}");
        let config = config.expect("no problems");
        assert_eq!(config.hybrid.as_ref().map(|hybrid| hybrid.side), side, "{name}");
        assert_eq!(config.hybrid.map(|hybrid| hybrid.internet), internet, "{name}");
    }
}
