//! `causeway init`: what it writes is a good configuration that routes as the scenario says, what it prints is what the
//! other servers need, and it overwrites nothing by accident. The examples in `config/` are what it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::common::{PATIENCE, Scratch, causeway, run, said};
use causeway::tls::Authority;
use serde_json::Value;

/// The hosts of either side: the relay, and the mailbox server behind it.
const HOSTS: [(&str, &str, &str); 2] = [
    ("on-premises", "mail.contoso.com", "exchange.contoso.com"),
    ("cloud", "cloud.contoso.com", "mailboxes.contoso.com"),
];

/// What can stand on the other side of each side.
const OTHERS: [(&str, &str); 5] = [
    ("on-premises", "exchange-online"),
    ("on-premises", "exchange-server"),
    ("on-premises", "causeway"),
    ("cloud", "exchange-server"),
    ("cloud", "causeway"),
];

/// A folder with the certificates of both relays.
struct Place(Scratch);

impl Place {
    fn new() -> Self {
        let scratch = Scratch::new();
        let root = Authority::new("Causeway test CA");
        let authority = root.intermediate("Causeway test issuer");
        fs::create_dir_all(scratch.file("certs/test")).expect("a folder");
        scratch.write("certs/test/ca.crt", root.pem());
        for (_, host, _) in HOSTS {
            scratch.issue(&authority, &format!("certs/test/{host}"), &[host]);
        }
        Self(scratch)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.file(name)
    }

    fn init(&self, args: &[&str]) -> Output {
        run(causeway().current_dir(self.0.path()).arg("init").args(args), PATIENCE)
    }

    /// Writes the configuration of one side to `output`.
    fn write(&self, scenario: &str, side: &str, other: &str, output: &str, more: &[&str]) -> Output {
        let args = flags(scenario, side, other);
        let args: Vec<&str> =
            args.iter().map(String::as_str).chain(["-o", output]).chain(more.iter().copied()).collect();
        self.init(&args)
    }

    fn check(&self, config: &str, args: &[&str]) -> Output {
        // What stands for the system's roots, wherever this runs.
        let roots = self.file("certs/test/ca.crt");
        run(causeway().env("SSL_CERT_FILE", roots).arg("-c").arg(self.file(config)).arg("check").args(args), PATIENCE)
    }

    /// `to-cloud david@…`, or the refusal.
    fn route(&self, config: &str, origin: &str, from: &str, to: &str) -> String {
        let mut command = causeway();
        command.arg("-c").arg(self.file(config)).args(["explain", "--json", "--origin", origin]);
        let output = run(command.args(["--from", from, "--to", to]), PATIENCE);
        let Ok(answer) = serde_json::from_slice::<Value>(&output.stdout) else { return said(&output) };
        let recipient = &answer["recipients"][0];
        match (recipient["refused"]["reply"].as_str(), &recipient["routes"][0]) {
            (Some(reply), _) => reply.to_owned(),
            (None, route) => {
                format!("{} {}", route["via"].as_str().unwrap_or("?"), route["as"].as_str().unwrap_or("?"))
            }
        }
    }
}

/// The flags that the examples are written with.
fn flags(scenario: &str, side: &str, other: &str) -> Vec<String> {
    let [own, there] = if side == HOSTS[0].0 { [HOSTS[0], HOSTS[1]] } else { [HOSTS[1], HOSTS[0]] };
    let (_, host, mailboxes) = own;
    let mut flags: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    flag("--scenario", scenario.to_owned());
    flag("--side", side.to_owned());
    flag("--other", other.to_owned());
    flag("--domain", "contoso.com".to_owned());
    flag("--hostname", host.to_owned());
    if other != "exchange-online" {
        flag("--other-host", there.1.to_owned());
    }
    flag("--mailbox-host", mailboxes.to_owned());
    flag("--certificate", format!("../certs/test/{host}.crt"));
    flag("--key", format!("../certs/test/{host}.key"));
    flag("--ca-file", "../certs/test/ca.crt".to_owned());
    flags
}

#[test]
fn what_is_written_is_good_whoever_stands_on_the_other_side() {
    let place = Place::new();
    for scenario in ["1", "2", "3", "4"] {
        for (side, other) in OTHERS {
            let file = format!("new-{scenario}-{side}-{other}/causeway.toml");
            let written = place.write(scenario, side, other, &file, &[]);
            assert_eq!(written.status.code(), Some(0), "{}", said(&written));
            let checked = place.check(&file, &[]);
            let text = said(&checked);
            assert_eq!(checked.status.code(), Some(0), "{file}: {text}");
            assert!(text.starts_with("the configuration is good: "), "{file}: {text}");
            assert!(!text.contains("warning"), "{file}: {text}");
            // Exchange Online's certificate is a public authority's, whoever issued those of our own servers.
            let written = fs::read_to_string(place.file(&file)).expect("the configuration");
            let named = written.matches("ca_file = \"../certs/test/ca.crt\"").count();
            assert_eq!(named, if other == "exchange-online" { 2 } else { 4 }, "{file}: {written}");
        }
    }
}

/// A mailbox server without a certificate is known by its addresses, which are not all the world.
#[test]
fn a_mailbox_server_may_be_known_by_its_addresses() {
    let place = Place::new();
    let networks = ["--mailbox-networks", "192.0.2.10", "--mailbox-networks", "fd00::/64"];
    for (scenario, side) in [("1", "on-premises"), ("3", "on-premises"), ("2", "cloud"), ("4", "cloud")] {
        let file = format!("by-address-{scenario}-{side}/causeway.toml");
        let written = place.write(scenario, side, "causeway", &file, &networks);
        assert_eq!(written.status.code(), Some(0), "{}", said(&written));
        let text = fs::read_to_string(place.file(&file)).expect("the configuration");
        assert!(text.contains(r#"remote_ips = ["192.0.2.10/32", "fd00::/64"]"#), "{text}");
        assert!(said(&place.check(&file, &[])).starts_with("the configuration is good: "), "{text}");
    }
    let world = place.write("3", "on-premises", "causeway", "w.toml", &["--mailbox-networks", "0.0.0.0/0"]);
    assert_eq!(world.status.code(), Some(2), "{}", said(&world));
}

/// What a first try needs: who is who where all have one address, which folder was made, which authority Postfix must
/// know, and that the second relay of a host needs its own address for the admin API.
#[test]
fn a_trial_on_one_host_is_told_what_it_needs() {
    let place = Place::new();
    let more = ["--admin", "127.0.0.1:8026", "--other-host", "127.0.0.1:2525", "--listen", "127.0.0.1:2626"];
    let args = flags("3", "cloud", "causeway");
    let named: Vec<&str> = args.iter().map(String::as_str).collect();
    // One flag cannot be given twice.
    let at = named.iter().position(|flag| *flag == "--other-host").expect("the flag");
    let kept = named[..at].iter().chain(&named[at + 2..]).copied().chain(more).chain([
        "--other-name",
        "mail.contoso.com",
        "-o",
        "a-slip/causeway.toml",
    ]);
    let kept: Vec<&str> = kept.collect();
    let written = place.init(&kept);
    let text = said(&written);
    assert_eq!(written.status.code(), Some(0), "{text}");
    for line in [
        "The folder a-slip is made for it.",
        "Firewall (this relay is cloud.contoso.com)",
        "TCP 2626         the other side (127.0.0.1) -> this relay\n",
        "TCP 2626         the mailbox server (mailboxes.contoso.com) -> this relay\n",
        "TCP 2525         this relay -> the other side (127.0.0.1)\n",
        "smtp_tls_CAfile",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let configuration = fs::read_to_string(place.file("a-slip/causeway.toml")).expect("the configuration");
    assert!(configuration.contains("[admin]\nlisten = \"127.0.0.1:8026\""), "{configuration}");
    let again = place.init(&[&kept[..], &["--force"]].concat());
    assert!(!said(&again).contains("is made for it"), "{}", said(&again));
    let open = place.init(&[&kept[..], &["--force", "--admin", "0.0.0.0:8026"]].concat());
    assert_eq!(open.status.code(), Some(2), "{}", said(&open));
    let lost = said(&place.check("a-slip/causeway.toml", &["--other-side", "nope.toml"]));
    assert!(lost.contains("is this its path (--other-side FILE)?"), "{lost}");
}

#[test]
fn nothing_is_overwritten_by_accident() {
    let place = Place::new();
    let write = |more: &[&str]| place.write("3", "on-premises", "exchange-online", "pair/causeway.toml", more);
    assert_eq!(write(&[]).status.code(), Some(0));
    let first = fs::read_to_string(place.file("pair/causeway.toml")).expect("the configuration");

    // Somebody has worked on both files since.
    place.0.write("pair/causeway.toml", "mine\n");
    place.0.write("pair/recipients.csv", "address,type,target\nboss@contoso.com,cloud,\n");
    let refused = write(&[]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("pair/causeway.toml is there already; --force overwrites it"),
        "{}",
        said(&refused)
    );
    assert_eq!(fs::read_to_string(place.file("pair/causeway.toml")).expect("a file"), "mine\n");

    assert_eq!(write(&["--force"]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(place.file("pair/causeway.toml")).expect("a file"), first);
    let recipients = fs::read_to_string(place.file("pair/recipients.csv")).expect("a file");
    assert!(recipients.contains("boss@contoso.com"), "--force is not for the directory: {recipients}");
}

#[test]
fn without_a_terminal_all_that_is_missing_is_named() {
    let place = Place::new();
    let named = place.init(&[]);
    assert_eq!(named.status.code(), Some(2));
    assert!(said(&named).contains("--scenario, --domain, --hostname, --mailbox-host are missing"), "{}", said(&named));
    let named = place.init(&["--scenario", "1", "--domain", "contoso.com", "--hostname", "mail.contoso.com"]);
    assert_eq!(named.status.code(), Some(2));
    assert!(said(&named).contains("init: --mailbox-host is missing"), "{}", said(&named));
    for faulty in [
        &["--scenario", "5"][..],
        &["--side", "left"],
        &["--other", "sendmail"],
        &["--hostname", "mail"],
        &["--listen", "::1"],
        &["--egress-ip", "ip4: 192.0.2.1"],
        &["--side", "cloud", "--other", "exchange-online"],
    ] {
        let output = place.init(faulty);
        assert_eq!(output.status.code(), Some(2), "{faulty:?}: {}", said(&output));
    }
    assert!(!place.file("causeway.toml").exists());
}

#[test]
fn standard_output_is_the_configuration_alone() {
    let place = Place::new();
    let output = place.write("2", "cloud", "causeway", "-", &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.starts_with("# contoso.com, hybrid scenario 2, the cloud side: "), "{text}");
    let parsed: Result<toml::Table, _> = text.parse();
    assert!(parsed.is_ok(), "{parsed:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("DNS records to publish"));
    assert!(!place.file("recipients.csv").exists(), "nothing is written beside standard output");
}

/// Both sides of each scenario, as they were written: nothing is found that only both together show.
#[test]
fn the_two_sides_fit() {
    let place = Place::new();
    for scenario in ["1", "2", "3", "4"] {
        let files = HOSTS.map(|(side, ..)| format!("{scenario}-{side}/causeway.toml"));
        for ((side, ..), file) in HOSTS.iter().zip(&files) {
            assert_eq!(place.write(scenario, side, "causeway", file, &[]).status.code(), Some(0));
        }
        for [own, other] in [[0, 1], [1, 0]] {
            let other = place.file(&files[other]);
            let output = place.check(&files[own], &["--other-side", &other.to_string_lossy()]);
            let text = said(&output);
            assert_eq!(output.status.code(), Some(0), "{text}");
            assert!(
                text.starts_with("the configuration is good: ") && text.ends_with("; the two sides fit\n"),
                "{text}"
            );
        }
    }
}

/// The table of the scenarios, asked of what was written. `""`: the connector alone is told.
#[test]
fn each_side_routes_as_its_scenario_says() {
    let place = Place::new();
    for scenario in ["1", "2", "3", "4"] {
        for (side, ..) in HOSTS {
            let written = place.write(scenario, side, "causeway", &format!("{scenario}-{side}/causeway.toml"), &[]);
            assert_eq!(written.status.code(), Some(0), "{}", said(&written));
        }
    }
    const JULIE: &str = "julie@contoso.com";
    const DAVID: &str = "david@contoso.com";
    const ROUTED: &str = "david@contoso.mail.onmicrosoft.com";
    const ERIN: &str = "erin@fabrikam.com";
    const NO_DOOR: &str = "causeway: no receive connector";
    for (config, origin, to, expected) in [
        ("1-on-premises", "internet", JULIE, NO_DOOR),
        ("1-on-premises", "cloud", JULIE, "to-on-premises julie@contoso.com"),
        ("1-on-premises", "on-premises", DAVID, "to-cloud david@contoso.mail.onmicrosoft.com"),
        ("1-on-premises", "on-premises", ERIN, "to-cloud erin@fabrikam.com"),
        ("1-on-premises", "cloud", ERIN, "550 5.7.1"),
        ("1-cloud", "internet", JULIE, "to-on-premises julie@contoso.com"),
        ("1-cloud", "internet", DAVID, "to-cloud david@"),
        ("1-cloud", "internet", ERIN, "550 5.7.1"),
        ("1-cloud", "on-premises", ROUTED, "to-cloud david@"),
        ("1-cloud", "on-premises", ERIN, "to-internet erin@fabrikam.com"),
        ("1-cloud", "cloud", ERIN, "to-internet erin@fabrikam.com"),
        ("1-cloud", "cloud", JULIE, "to-on-premises julie@contoso.com"),
        ("2-on-premises", "internet", JULIE, NO_DOOR),
        ("2-on-premises", "cloud", JULIE, "to-on-premises julie@contoso.com"),
        ("2-on-premises", "cloud", DAVID, "to-cloud david@contoso.mail.onmicrosoft.com"),
        ("2-on-premises", "cloud", ERIN, "to-cloud erin@fabrikam.com"),
        ("2-on-premises", "on-premises", ERIN, "to-cloud erin@fabrikam.com"),
        ("2-cloud", "internet", JULIE, "to-on-premises julie@contoso.com"),
        ("2-cloud", "internet", DAVID, "to-on-premises david@contoso.com"),
        ("2-cloud", "on-premises", ROUTED, "to-cloud david@"),
        ("2-cloud", "on-premises", ERIN, "to-internet erin@fabrikam.com"),
        ("2-cloud", "cloud", ERIN, "to-on-premises erin@fabrikam.com"),
        ("2-cloud", "cloud", DAVID, "to-cloud david@"),
        ("3-on-premises", "internet", JULIE, "to-on-premises julie@contoso.com"),
        ("3-on-premises", "internet", DAVID, "to-cloud david@contoso.mail.onmicrosoft.com"),
        ("3-on-premises", "internet", "nobody@contoso.com", "550 5.1.1"),
        ("3-on-premises", "internet", ERIN, "550 5.7.1"),
        ("3-on-premises", "on-premises", ERIN, "to-internet erin@fabrikam.com"),
        ("3-on-premises", "cloud", ERIN, "to-internet erin@fabrikam.com"),
        ("3-cloud", "internet", DAVID, NO_DOOR),
        ("3-cloud", "on-premises", ROUTED, "to-cloud david@"),
        ("3-cloud", "on-premises", ERIN, "550 5.7.1"),
        ("3-cloud", "cloud", ERIN, "to-on-premises erin@fabrikam.com"),
        ("3-cloud", "cloud", JULIE, "to-on-premises julie@contoso.com"),
        ("4-on-premises", "internet", JULIE, "to-on-premises julie@contoso.com"),
        ("4-on-premises", "internet", DAVID, "to-cloud david@contoso.mail.onmicrosoft.com"),
        ("4-on-premises", "internet", "kate@contoso.com", "to-cloud kate@tailspintoys.com"),
        ("4-on-premises", "on-premises", ERIN, "to-cloud erin@fabrikam.com"),
        ("4-on-premises", "cloud", ERIN, "550 5.7.1"),
        ("4-cloud", "internet", DAVID, NO_DOOR),
        ("4-cloud", "on-premises", ROUTED, "to-cloud david@"),
        ("4-cloud", "on-premises", ERIN, "to-internet erin@fabrikam.com"),
        ("4-cloud", "cloud", ERIN, "to-internet erin@fabrikam.com"),
    ] {
        let found = place.route(&format!("{config}/causeway.toml"), origin, "anna@contoso.com", to);
        assert!(found.starts_with(expected), "{config}, {origin} -> {to}\n expected {expected}\n found {found}");
    }
}

/// Each row: scenario, side, other; what must be printed and what must not.
#[test]
fn what_is_printed_is_what_the_others_need() {
    let place = Place::new();
    const OUTLOOK: &str = "v=spf1 include:spf.protection.outlook.com -all";
    type Row<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        (
            "1",
            "on-premises",
            "exchange-online",
            &[
                "MX    10 contoso-com.mail.protection.outlook.com.",
                OUTLOOK,
                "-ConnectorType OnPremises",
                "-TlsSenderCertificateName \"mail.contoso.com\"",
                "-RecipientDomains \"contoso.com\" -UseMXRecord $false -SmartHosts \"mail.contoso.com\"",
                "-TlsSettings DomainValidation -TlsDomain \"mail.contoso.com\"",
                "-RouteAllMessagesViaOnPremises $false -CloudServicesMailEnabled $true",
                "-DomainType InternalRelay",
                "External forwards need SRS",
            ],
            &["RestrictDomainsToCertificate", "Internet -> this relay\n", "--other-side"],
        ),
        (
            "2",
            "on-premises",
            "exchange-online",
            &[OUTLOOK, "-RecipientDomains \"*\"", "-RouteAllMessagesViaOnPremises $true", "External forwards need SRS"],
            &["-EFSkipLastIP"],
        ),
        (
            "3",
            "on-premises",
            "exchange-online",
            &[
                "MX    10 mail.contoso.com.",
                "Internet -> this relay\n",
                "\"v=spf1 a:mail.contoso.com -all\"",
                "-RecipientDomains \"*\"",
                "-RouteAllMessagesViaOnPremises $true",
                "-RestrictDomainsToCertificate $true",
                "External forwards need SRS",
            ],
            &[OUTLOOK],
        ),
        (
            "4",
            "on-premises",
            "exchange-online",
            &[
                "MX    10 mail.contoso.com.",
                OUTLOOK,
                "-RouteAllMessagesViaOnPremises $false",
                "External forwards need SRS",
            ],
            &["a:mail.contoso.com"],
        ),
        (
            "3",
            "cloud",
            "exchange-server",
            &[
                "New-SendConnector -Name \"To cloud\" -AddressSpaces \"contoso.mail.onmicrosoft.com\" ",
                "-TlsAuthLevel DomainValidation -TlsDomain \"cloud.contoso.com\"",
                "-TlsDomainCapabilities \"cloud.contoso.com:AcceptCloudServicesMail\"",
                "RemoteRoutingAddress",
                "a:mail.contoso.com",
            ],
            &["New-InboundConnector"],
        ),
        (
            "2",
            "on-premises",
            "exchange-server",
            &["-AddressSpaces \"contoso.com\",\"*\"", "a:cloud.contoso.com", "-DomainType InternalRelay"],
            &["New-OutboundConnector"],
        ),
        (
            "1",
            "on-premises",
            "causeway",
            &[
                "causeway init --scenario 1 --side cloud --other causeway",
                "--hostname cloud.contoso.com --other-host mail.contoso.com",
                "MX    10 cloud.contoso.com.",
                "check --other-side FILE",
                "New-SendConnector -Name \"To the relay\" -AddressSpaces \"*\"",
            ],
            &["New-InboundConnector", "outlook.com"],
        ),
    ];
    for (scenario, side, other, there, absent) in rows {
        let output = place.write(scenario, side, other, "config/causeway.toml", &["--force"]);
        let text = String::from_utf8(output.stdout).expect("text");
        for expected in *there {
            assert!(text.contains(expected), "{scenario} {side} {other}: no {expected:?} in\n{text}");
        }
        for unexpected in *absent {
            assert!(!text.contains(unexpected), "{scenario} {side} {other}: {unexpected:?} in\n{text}");
        }
        // Exchange Server, which stands on-premises, knows no tags.
        let written = fs::read_to_string(place.file("config/causeway.toml")).expect("the configuration");
        let connectors = written.split("[[send_connector]]").skip(1);
        let dropping: Vec<_> = connectors
            .filter(|connector| connector.contains("\ntags = \"drop\""))
            .map(|connector| connector.contains("name = \"to-on-premises\""))
            .collect();
        let expected: &[bool] = if *side == "on-premises" || *other == "exchange-server" { &[true] } else { &[] };
        assert_eq!(dropping, expected, "{scenario} {side} {other}: {written}");
        // A blank behind the colon makes the whole record invalid. RFC 7208 section 5.6.
        assert!(!text.contains("ip4: ") && !text.contains("ipv4"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
    }
    let ips = ["--force", "--egress-ip", "192.0.2.25", "--egress-ip", "2001:db8::25"];
    let output = place.write("3", "on-premises", "causeway", "config/causeway.toml", &ips);
    assert!(said(&output).contains("\"v=spf1 ip4:192.0.2.25 ip6:2001:db8::25 -all\""), "{}", said(&output));
}

/// Where the other side is a relay too, the printed command writes the mirror image: each names the other.
#[test]
fn the_printed_command_writes_the_other_side() {
    let place = Place::new();
    let more = ["--listen", "127.0.0.1:2525", "--directory", "lists/recipients.csv"];
    let output = place.write("4", "on-premises", "causeway", "here/causeway.toml", &more);
    assert!(place.file("here/lists/recipients.csv").exists(), "{}", said(&output));
    let text = said(&output).replace("\\\n", " ");
    let command = text.lines().find(|line| line.trim().starts_with("causeway init ")).expect("the command");
    let command = command.replace("HOST", "mailboxes.contoso.com");
    let mut args: Vec<&str> = command.split_whitespace().skip(2).collect();
    args.extend([
        "--certificate",
        "../certs/test/cloud.contoso.com.crt",
        "--key",
        "../certs/test/cloud.contoso.com.key",
    ]);
    args.extend(["-o", "there/causeway.toml"]);
    let written = place.init(&args);
    assert_eq!(written.status.code(), Some(0), "{args:?}: {}", said(&written));
    assert!(said(&place.check("there/causeway.toml", &[])).starts_with("the configuration is good: "));
    let there = fs::read_to_string(place.file("there/causeway.toml")).expect("the configuration");
    for line in
        [r#"smart_hosts = ["mail.contoso.com:2525"]"#, r#"tls_domain = ["mail.contoso.com"]"#, r#"side = "cloud""#]
    {
        assert!(there.contains(line), "{line}\n{there}");
    }
}

/// `config/` shows what `init` writes, word for word: run this with UPDATE_EXAMPLES=1 to write them anew.
#[test]
fn the_examples_are_what_init_writes() {
    let place = Place::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    fs::create_dir_all(place.file("config")).expect("a folder");
    let mut names = Vec::new();
    for scenario in ["1", "2", "3", "4"] {
        for (side, ..) in HOSTS {
            let name = format!("scenario-{scenario}-{side}.toml");
            let written = place.write(scenario, side, "causeway", &format!("config/{name}"), &[]);
            assert_eq!(written.status.code(), Some(0), "{}", said(&written));
            names.push(name);
        }
    }
    names.push("recipients.csv".to_owned());
    for name in names {
        let (written, example) = (place.file("config").join(&name), config.join(&name));
        if std::env::var_os("UPDATE_EXAMPLES").is_some() {
            fs::copy(&written, &example).expect("the example");
        }
        let written = fs::read_to_string(written).expect("what init wrote");
        let example = fs::read_to_string(&example).unwrap_or_else(|error| panic!("config/{name}: {error}"));
        assert_eq!(
            example, written,
            "config/{name} is not what init writes; UPDATE_EXAMPLES=1 cargo test --test it init::"
        );
    }
}
