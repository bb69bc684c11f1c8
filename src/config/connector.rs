//! Receive and send connectors: from tables to checked values. Only this file builds them.
//!
//! Here is what one connector must satisfy by itself; what several must satisfy together is in `together`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::files::{self, Files};
use super::problem::Problems;
use super::read::{Read, Reported, Table};
use super::{EightBit, Hops, Level, Login, Origin, ReceiveConnector, ReceiveTls, SendConnector, Tags, value};
use crate::tls::Names;

/// What stands for "no limit" (written 0): more than any host can hold, and small enough for any semaphore.
const NO_LIMIT: usize = u32::MAX as usize;

/// Every server must take recipients up to this number. RFC 5321 section 4.5.3.1.8.
const LEAST_RECIPIENTS: usize = 100;

/// Every server must take messages up to this size. RFC 5321 section 4.5.3.1.7.
const LEAST_MESSAGE_SIZE: u64 = 64 * 1024;

/// The TLS levels of a send connector, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Off,
    Opportunistic,
    Encrypt,
    Certificate,
    Domain,
}

/// Reads one `[[receive_connector]]`.
pub(super) fn receive_connector(
    table: &mut Table<'_>,
    files: &mut Files,
    problems: &mut Problems,
) -> Read<ReceiveConnector> {
    let name = table.required("name", "each connector has a name of its own", value::connector_name, problems);
    let listen = listen(table, problems);
    let remote_ips = remote_ips(table, problems);
    let origin = origin(table, problems);
    let tls = table.choice(
        "tls",
        &[
            ("off", ReceiveTls::Off),
            ("offer", ReceiveTls::Offer),
            ("require", ReceiveTls::Require),
            ("implicit", ReceiveTls::Implicit),
        ],
        problems,
    );
    let tls = tls.map(|tls| tls.unwrap_or(ReceiveTls::Offer));
    let identity = files.identity(table, problems);
    let tls_domain = names(table, problems);
    let client_ca_file = table.path("client_ca_file", problems);
    let only_here = table.flag("only_here", problems);
    let sender_domains = table.texts("sender_domains", value::wild_domain, problems);
    let relay = table.flag("relay", problems);
    let max_message_size = table.size("max_message_size", problems);
    let max_recipients = limit(table, "max_recipients", 1000, problems);
    let max_connections = limit(table, "max_connections", 5000, problems);
    let max_connections_per_ip = limit(table, "max_connections_per_ip", 100, problems);
    let max_errors = limit(table, "max_errors", 10, problems);
    let strict = table.flag("strict", problems);
    let internal = table.flag("internal", problems).map(|internal| internal.unwrap_or(false));
    let originator_org = table.texts("originator_org", value::domain, problems).map(Option::unwrap_or_default);
    let require_auth = table.flag("require_auth", problems).map(|require| require.unwrap_or(false));
    let users_file = table.path("users_file", problems);
    let proxy_protocol = table.flag("proxy_protocol", problems).map(|proxy| proxy.unwrap_or(false));
    let tls_handshake_timeout = table.text("tls_handshake_timeout", value::some_time, problems);
    let command_timeout = table.text("command_timeout", value::some_time, problems);
    let data_timeout = table.text("data_timeout", value::some_time, problems);
    table.finish(problems);

    let identity = match (tls, identity) {
        (Ok(ReceiveTls::Off), Ok(identity)) => {
            if identity.is_some() {
                table.warn("certificate", "is not used with tls = \"off\"", problems);
            }
            Ok(None)
        }
        (Ok(tls), Ok(None)) => {
            let word = receive_tls_word(tls);
            let key = if table.has("certificate") { "key" } else { "certificate" };
            Err(table.complain(key, format!("missing; tls = \"{word}\" needs a certificate and its key"), problems))
        }
        (_, identity) => identity,
    };
    if let (Ok(ReceiveTls::Off), Ok(Some(_))) = (tls, tls_handshake_timeout) {
        table.warn("tls_handshake_timeout", "is not used with tls = \"off\"", problems);
    }
    if let (Ok(ReceiveTls::Off), Ok(Some(_))) = (tls, &tls_domain) {
        table.complain("tls_domain", "no client can present a certificate with tls = \"off\"", problems);
    }
    let client_roots = match (&tls_domain, client_ca_file) {
        (Ok(Some(_)), Ok(file)) => files.roots(table, "client_ca_file", file, problems).map(Some),
        (Ok(None), Ok(Some(_))) => {
            table.warn("client_ca_file", "is not used without tls_domain", problems);
            Ok(None)
        }
        (_, Ok(_)) => Ok(None),
        (_, Err(Reported)) => Err(Reported),
    };
    let only_here = only_here.map(|only_here| only_here.unwrap_or(false));
    let sender_domains = sender_domains.map(Option::unwrap_or_default);
    if let (Ok(true), Ok([])) = (only_here, sender_domains.as_deref()) {
        table.complain("only_here", "needs sender_domains: whose mail must come this way?", problems);
    }
    let max_message_size = max_message_size.map(|size| size.unwrap_or(36 << 20));
    if let Ok(size @ 1..LEAST_MESSAGE_SIZE) = max_message_size {
        let text = format!("{size} bytes are too few; every server must take 64KiB (0: no limit)");
        table.complain("max_message_size", text, problems);
    }
    if let Ok(1..LEAST_RECIPIENTS) = max_recipients {
        table.warn("max_recipients", "other servers count on 100 at least (RFC 5321 section 4.5.3.1.8)", problems);
    }
    let relay = relay.and_then(|relay| Ok(relay.unwrap_or(relays_by_itself(origin?))));
    check_login_of_clients(table, tls, require_auth, &users_file, problems);
    if let (Ok(relay), Ok(listen), Ok(remote_ips), Ok(None), Ok(false)) =
        (relay, &listen, &remote_ips, &tls_domain, require_auth)
    {
        check_open_relay(table, relay, listen, remote_ips, problems);
    }
    if let (Ok(true), Ok(Some(names)), Ok([]), Ok([])) =
        (relay, &tls_domain, sender_domains.as_deref(), originator_org.as_deref())
    {
        warn_of_shared_certificate(table, names, problems);
    }
    if let (Ok(true), Ok(None), Ok(remote_ips)) = (internal, &tls_domain, &remote_ips)
        && is_world(remote_ips)
    {
        let text =
            "the organization headers of whoever connects would be believed; demand a tls_domain, or narrow remote_ips";
        table.warn("internal", text, problems);
    }
    if let (Ok(true), Ok(remote_ips)) = (proxy_protocol, &remote_ips)
        && is_world(remote_ips)
    {
        let text = "remote_ips is all the world, so whoever connects may name another client; set it to the proxies' addresses";
        table.complain("proxy_protocol", text, problems);
    }

    Ok(ReceiveConnector {
        name: name?,
        listen: listen?,
        remote_ips: remote_ips?,
        origin: origin?,
        tls: tls?,
        identity: identity?,
        tls_domain: tls_domain?,
        client_roots: client_roots?,
        only_here: only_here?,
        sender_domains: sender_domains?,
        internal: internal?,
        originator_org: originator_org?,
        users_file: users_file?,
        require_auth: require_auth?,
        proxy_protocol: proxy_protocol?,
        relay: relay?,
        max_message_size: no_limit_if_zero(max_message_size?),
        max_recipients: max_recipients?,
        max_connections: max_connections?,
        max_connections_per_ip: max_connections_per_ip?,
        max_errors: max_errors?,
        strict: strict?.unwrap_or(false),
        tls_handshake_timeout: tls_handshake_timeout?.unwrap_or(std::time::Duration::from_secs(60)),
        command_timeout: command_timeout?.unwrap_or(std::time::Duration::from_secs(300)),
        data_timeout: data_timeout?.unwrap_or(std::time::Duration::from_secs(180)),
    })
}

/// Reads one `[[send_connector]]`.
pub(super) fn send_connector(table: &mut Table<'_>, files: &mut Files, problems: &mut Problems) -> Read<SendConnector> {
    let name = table.required("name", "each connector has a name of its own", value::connector_name, problems);
    let serves = table.texts("address_spaces", value::address_space, problems).map(Option::unwrap_or_default);
    let smart_hosts = table.texts("smart_hosts", value::smart_host, problems).map(Option::unwrap_or_default);
    let port = table.number("port", 1, u16::MAX.into(), problems);
    let word = word(table, problems);
    let tls_domain = names(table, problems);
    let ca_file = table.path("ca_file", problems);
    let identity = files.identity(table, problems);
    let helo = table.text_or_empty("helo", value::domain, problems);
    let source_ip = source_ip(table, problems);
    let login = login(table, problems);
    let max_connections = limit(table, "max_connections", 20, problems);
    let max_messages_per_connection = limit(table, "max_messages_per_connection", 1000, problems);
    let max_recipients = limit(table, "max_recipients", 1000, problems);
    let max_message_size = table.size("max_message_size", problems);
    let rate = table.text_or_empty("rate", value::rate, problems);
    let connect_timeout = table.text("connect_timeout", value::some_time, problems);
    let chunking = table.flag("chunking", problems);
    let eight_bit = table.choice(
        "eight_bit",
        &[("convert", EightBit::Convert), ("as-is", EightBit::AsIs), ("return", EightBit::Return)],
        problems,
    );
    let tags = table.choice("tags", &[("keep", Tags::Keep), ("drop", Tags::Drop)], problems);
    let enabled = table.flag("enabled", problems);
    let internal = table.flag("internal", problems).map(|internal| internal.unwrap_or(false));
    if let Ok(Some(_)) = table.text_or_empty("srs", value::domain, problems) {
        table.refuse("srs", "", problems);
    }
    table.finish(problems);

    let hops = smart_hosts.map(|hosts| if hosts.is_empty() { Hops::Mx } else { Hops::SmartHosts(hosts) });
    // As soon as a login is meant: an unreadable password must not hide where it would have gone.
    if let (Ok(word), Ok(hops), Some(_)) = (word, &hops, table.peek("username").filter(|name| !name.is_empty())) {
        check_login(table, word, hops, problems);
    }
    let tls = match (word, tls_domain, ca_file) {
        (Ok(word), Ok(tls_domain), Ok(ca_file)) => {
            // A list with a fault in it is still one that was meant.
            let smart_hosts = !matches!(hops, Ok(Hops::Mx));
            level(table, word, smart_hosts, tls_domain, ca_file, files, problems)
        }
        _ => Err(Reported),
    };
    if let (Ok(Word::Off), Ok(Some(_))) = (word, &identity) {
        table.warn("certificate", "is not used with tls = \"off\"", problems);
    }

    if let (Ok(true), Ok(Word::Off | Word::Opportunistic | Word::Encrypt)) = (internal, word) {
        let text = r#"organization headers would go to whoever answers; the other premises prove themselves by tls = "domain""#;
        table.warn("internal", text, problems);
    }

    let (source_v4, source_v6) = source_ip?;
    Ok(SendConnector {
        name: name?,
        serves: serves?,
        hops: hops?,
        // The range was checked in reading.
        port: u16::try_from(port?.unwrap_or(25)).map_err(|_| Reported)?,
        tls: tls?,
        identity: identity?.filter(|_| word != Ok(Word::Off)),
        helo: helo?,
        source_v4,
        source_v6,
        login: login?,
        max_connections: max_connections?,
        max_messages_per_connection: max_messages_per_connection?,
        max_recipients: max_recipients?,
        max_message_size: max_message_size?.and_then(no_limit_if_zero),
        rate: rate?,
        connect_timeout: connect_timeout?.unwrap_or(std::time::Duration::from_secs(30)),
        chunking: chunking?.unwrap_or(true),
        eight_bit: eight_bit?.unwrap_or_default(),
        tags: tags?.unwrap_or(Tags::Keep),
        internal: internal?,
        enabled: enabled?.unwrap_or(true),
    })
}

fn listen(table: &mut Table<'_>, problems: &mut Problems) -> Read<Vec<SocketAddr>> {
    let listen = table.texts("listen", value::listen, problems)?.unwrap_or_default();
    if listen.is_empty() {
        let text = r#"missing; on which addresses? For example ["0.0.0.0:25", "[::]:25"]"#;
        return Err(table.complain("listen", text, problems));
    }
    for (number, address) in listen.iter().enumerate() {
        if listen[..number].contains(address) {
            return Err(table.complain("listen", format!("{address} stands there twice"), problems));
        }
    }
    Ok(listen)
}

fn remote_ips(table: &mut Table<'_>, problems: &mut Problems) -> Read<Vec<IpNet>> {
    match table.texts("remote_ips", value::network, problems)? {
        None => Ok(vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]),
        Some(networks) if networks.is_empty() => {
            let text = r#"is empty, so the connector would take nobody; all the world is ["0.0.0.0/0", "::/0"]"#;
            Err(table.complain("remote_ips", text, problems))
        }
        Some(networks) => Ok(networks),
    }
}

pub(super) fn origin(table: &mut Table<'_>, problems: &mut Problems) -> Read<Origin> {
    let origin = table.choice(
        "origin",
        &[
            ("internet", Origin::Internet),
            ("on-premises", Origin::OnPremises),
            ("cloud", Origin::Cloud),
            ("partner", Origin::Partner),
            ("client", Origin::Client),
        ],
        problems,
    )?;
    let text = r#"missing; who sends here: "internet", "on-premises", "cloud", "partner" or "client"?"#;
    origin.ok_or_else(|| table.complain("origin", text, problems))
}

fn names(table: &mut Table<'_>, problems: &mut Problems) -> Read<Option<Names>> {
    Ok(Names::new(table.texts("tls_domain", value::tls_name, problems)?.unwrap_or_default()))
}

fn relays_by_itself(origin: Origin) -> bool {
    match origin {
        Origin::OnPremises | Origin::Cloud | Origin::Client => true,
        Origin::Internet | Origin::Partner => false,
    }
}

/// Nobody means to be an open relay; lists of those are kept by people who block them.
fn check_open_relay(
    table: &Table<'_>,
    relay: bool,
    listen: &[SocketAddr],
    remote_ips: &[IpNet],
    problems: &mut Problems,
) {
    let world = is_world(remote_ips);
    // To a loopback address only this host can come.
    let reachable = listen.iter().any(|address| !address.ip().to_canonical().is_loopback());
    if relay && world && reachable {
        let why = match table.has("relay") {
            true => "true".to_owned(),
            false => format!("is true by default with origin = \"{}\"", table.peek("origin").unwrap_or_default()),
        };
        let text = format!(
            "{why}, and remote_ips is all the world: an open relay; narrow remote_ips, demand a tls_domain, or set relay = false"
        );
        table.complain("relay", text, problems);
    }
}

/// Aggregated, because 0.0.0.0/1 and 128.0.0.0/1 are the world as well.
fn is_world(remote_ips: &[IpNet]) -> bool {
    IpNet::aggregate(&remote_ips.to_vec()).iter().any(|network| network.prefix_len() == 0)
}

/// Every customer of a cloud service shows the service's certificate: only `originator_org` tells them apart.
fn warn_of_shared_certificate(table: &Table<'_>, names: &Names, problems: &mut Problems) {
    let shared = |name: &&str| name.trim_start_matches("*.").ends_with("protection.outlook.com");
    if let Some(name) = names.iter().find(shared) {
        let text = format!(
            "all customers of the cloud service show a certificate for {name}, and relay lets them send anywhere; set originator_org to your own domain"
        );
        table.warn("tls_domain", text, problems);
    }
}

/// A password travels in TLS only, and somebody has to know it.
fn check_login_of_clients(
    table: &Table<'_>,
    tls: Read<ReceiveTls>,
    require_auth: Read<bool>,
    users_file: &Read<Option<std::path::PathBuf>>,
    problems: &mut Problems,
) {
    if let (Ok(true), Ok(None)) = (require_auth, users_file) {
        table.complain("users_file", "missing; require_auth needs the users who may log in", problems);
    }
    if let (Ok(ReceiveTls::Off), Ok(Some(_))) = (tls, users_file) {
        table.complain("users_file", "AUTH is offered in TLS only, and tls = \"off\"", problems);
    }
    if let Ok(Some(file)) = users_file
        && let Err(error) = std::fs::File::open(file)
    {
        table.complain("users_file", format!("{} cannot be read: {error}", file.display()), problems);
    }
    if let Ok(Some(file)) = users_file
        && files::is_world_readable(file)
    {
        let text = "every user of this host can read the hashes and try passwords at leisure; chmod o= takes that away";
        table.warn("users_file", text, problems);
    }
}

fn word(table: &mut Table<'_>, problems: &mut Problems) -> Read<Word> {
    let words = [
        ("off", Word::Off),
        ("opportunistic", Word::Opportunistic),
        ("encrypt", Word::Encrypt),
        ("certificate", Word::Certificate),
        ("domain", Word::Domain),
    ];
    // Known, so that it is refused by name; nobody is told to write it.
    if table.peek("tls") == Some("dane") {
        table.text("tls", |_| Ok(()), problems)?;
        table.refuse("tls", r#""opportunistic" and "domain" are"#, problems);
        return Err(Reported);
    }
    let Some(word) = table.choice("tls", &words, problems)? else {
        let words = super::read::one_of(words.iter().map(|(word, _)| *word));
        let text = format!("missing; what must the receiver prove: {words}?");
        return Err(table.complain("tls", text, problems));
    };
    Ok(word)
}

fn level(
    table: &Table<'_>,
    word: Word,
    smart_hosts: bool,
    tls_domain: Option<Names>,
    ca_file: Option<std::path::PathBuf>,
    files: &mut Files,
    problems: &mut Problems,
) -> Read<Level> {
    if word != Word::Domain && tls_domain.is_some() {
        // Whoever writes names believes that they are checked.
        table.complain(
            "tls_domain",
            r#"is checked with tls = "domain" only; write that, or leave the names out"#,
            problems,
        );
    }
    if matches!(word, Word::Off | Word::Opportunistic | Word::Encrypt) && ca_file.is_some() {
        table.warn("ca_file", r#"is used with tls = "certificate" and "domain" only"#, problems);
    }
    let roots = |problems: &mut Problems| files.roots(table, "ca_file", ca_file, problems);
    match word {
        Word::Off => Ok(Level::Off),
        Word::Opportunistic => Ok(Level::Opportunistic),
        Word::Encrypt => Ok(Level::Encrypt),
        Word::Certificate => roots(problems).map(Level::Certificate),
        Word::Domain => {
            let roots = roots(problems);
            if tls_domain.is_none() && smart_hosts {
                let text = r#"missing; tls = "domain" with smart_hosts needs the names to accept"#;
                return Err(table.complain("tls_domain", text, problems));
            }
            Ok(Level::Domain(roots?, tls_domain))
        }
    }
}

fn source_ip(table: &mut Table<'_>, problems: &mut Problems) -> Read<(Option<IpAddr>, Option<IpAddr>)> {
    let addresses = table.texts("source_ip", value::source_ip, problems)?.unwrap_or_default();
    let (mut v4, mut v6) = (None, None);
    for address in addresses {
        let slot = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        if slot.replace(address).is_some() {
            return Err(table.complain("source_ip", "expected at most one IPv4 and one IPv6 address", problems));
        }
    }
    Ok((v4, v6))
}

fn login(table: &mut Table<'_>, problems: &mut Problems) -> Read<Option<Login>> {
    let username = table.text_or_empty("username", value::something, problems);
    let password_file = table.path("password_file", problems);
    match (username?, password_file?) {
        (None, None) => Ok(None),
        (Some(username), Some(file)) => {
            let password = files::secret(table, "password_file", &file, problems)?;
            Ok(Some(Login { username, password }))
        }
        (Some(_), None) => Err(table.complain("password_file", "missing; username needs one", problems)),
        (None, Some(_)) => Err(table.complain("username", "missing; password_file needs one", problems)),
    }
}

fn check_login(table: &Table<'_>, word: Word, hops: &Hops, problems: &mut Problems) {
    if matches!(hops, Hops::Mx) {
        table.complain("username", "is for smart_hosts; no password goes to whatever host an MX names", problems);
    }
    match word {
        Word::Off | Word::Opportunistic => {
            let text = r#"the password could travel in the clear; set tls = "domain", or at least "encrypt""#;
            table.complain("username", text, problems);
        }
        Word::Encrypt => {
            let text = r#"tls = "encrypt" takes any certificate, so whoever stands between could take the password; tls = "domain" does not"#;
            table.warn("username", text, problems);
        }
        Word::Certificate | Word::Domain => {}
    }
}

/// A limit that 0 lifts.
fn limit(table: &mut Table<'_>, key: &'static str, default: usize, problems: &mut Problems) -> Read<usize> {
    Ok(match table.number(key, 0, u32::MAX, problems)? {
        None => default,
        Some(0) => NO_LIMIT,
        Some(limit) => limit as usize,
    })
}

fn no_limit_if_zero(size: u64) -> Option<u64> {
    (size > 0).then_some(size)
}

pub(super) fn receive_tls_word(tls: ReceiveTls) -> &'static str {
    match tls {
        ReceiveTls::Off => "off",
        ReceiveTls::Offer => "offer",
        ReceiveTls::Require => "require",
        ReceiveTls::Implicit => "implicit",
    }
}
