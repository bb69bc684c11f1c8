//! What the rest of the world must know: DNS, the firewall, the other side, the mailbox server, and what to try first.
//!
//! Commands for Exchange are meant to be pasted; what only their owner knows stands in angle brackets. Parameter names
//! are those of Microsoft's documentation of each cmdlet.

use super::configuration::sentence;
use super::plan::{Other, Plan, Premises, host_only, port_of};
use crate::cli::page;

/// Sentences are broken here, or where the terminal ends; what is to be pasted is not.
const COLUMNS: usize = 96;

struct Guide {
    text: String,
    columns: usize,
}

impl Guide {
    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn chapter(&mut self, title: &str) {
        self.line("");
        self.line(title);
        self.line(&"-".repeat(title.chars().count()));
    }

    /// Sentences.
    fn say(&mut self, text: &str) {
        for line in page::fold(text, self.columns) {
            self.line(&line);
        }
    }

    /// One command over several lines, `continued` at the end of each but the last.
    fn command(&mut self, parts: &[String], continued: &str) {
        let last = parts.len().saturating_sub(1);
        for (number, part) in parts.iter().enumerate() {
            let indent = if number == 0 { "  " } else { "      " };
            let end = if number == last { "" } else { continued };
            self.line(&format!("{indent}{part}{end}"));
        }
    }

    fn power_shell(&mut self, parts: &[String]) {
        self.command(parts, " `");
    }
}

/// All of it.
pub(super) fn text(plan: &Plan, notes: &[String]) -> String {
    let columns = page::columns().map_or(COLUMNS, |columns| columns.min(COLUMNS));
    let mut guide = Guide { text: String::new(), columns };
    for note in notes {
        guide.line(note);
    }
    let Plan { scenario, .. } = plan;
    guide.chapter(&format!("Scenario {}, the {} side", scenario.number, plan.side.word()));
    guide.say(&sentence(scenario.words));
    guide.line("");
    for (what, road) in scenario.roads(plan.called(Premises::OnPremises), plan.called(Premises::Cloud)) {
        guide.line(&format!("  {what:<9}{road}"));
    }
    dns(&mut guide, plan);
    firewall(&mut guide, plan);
    other_side(&mut guide, plan);
    mailbox_server(&mut guide, plan);
    forwards(&mut guide, plan);
    next(&mut guide, plan);
    guide.text
}

fn dns(guide: &mut Guide, plan: &Plan) {
    guide.chapter("DNS records to publish");
    let domain = &plan.domain;
    let mx = plan.host_of(plan.scenario.mx);
    let egress = plan.scenario.egress();
    let ours = egress == plan.side || plan.other != Other::ExchangeOnline;
    let record = |name: &str, kind: &str, value: &str| format!("  {name:<28} {kind:<5} {value}");
    guide.line(&record(&format!("{domain}."), "MX", &format!("10 {mx}.")));
    guide.line(&record(&format!("{domain}."), "TXT", &format!("\"{}\"", spf(plan))));
    if ours {
        let host = plan.host_of(egress);
        guide.line(&record(&format!("{host}."), "A", "<its address>, and AAAA if it has one"));
        guide.line(&record("<its address>", "PTR", &format!("{host}.")));
    }
    if plan.side != egress || !ours {
        guide.line(&record(&format!("{}.", plan.hostname), "A", "<its address>"));
    }
    guide.line("");
    guide.say(&format!(
        "SPF names the side {}: from there all mail for the Internet leaves, whoever wrote it. {domain} has one SPF record; if there is one already, change that.",
        egress.place()
    ));
    if ours && plan.egress_ips.is_empty() {
        guide.say(
            "Addresses instead of the name are written ip4:192.0.2.25 and ip6:2001:db8::25, without a blank behind the colon; --egress-ip does so.",
        );
    }
    if plan.scenario.number == 3 && plan.side == Premises::OnPremises && plan.other == Other::ExchangeOnline {
        guide.say(
            "Exchange Online sends nothing back on-premises that came from there: what a forward or a group in the cloud adds leaves from the cloud. If you have such, put include:spf.protection.outlook.com before -all.",
        );
    }
}

/// The record that lets the egress send in the domain's name, and nobody else.
fn spf(plan: &Plan) -> String {
    let egress = plan.scenario.egress();
    if egress == Premises::Cloud && plan.side == Premises::OnPremises && plan.other == Other::ExchangeOnline {
        return "v=spf1 include:spf.protection.outlook.com -all".to_owned();
    }
    let mechanism = |ip: &String| if ip.contains(':') { format!("ip6:{ip}") } else { format!("ip4:{ip}") };
    let mut mechanisms: Vec<_> = plan.egress_ips.iter().map(mechanism).collect();
    if mechanisms.is_empty() {
        mechanisms.push(format!("a:{}", plan.host_of(egress)));
    }
    format!("v=spf1 {} -all", mechanisms.join(" "))
}

fn firewall(guide: &mut Guide, plan: &Plan) {
    guide.chapter(&format!("Firewall (this relay is {})", plan.hostname));
    let port = format!("TCP {}", plan.port());
    let (other, mailboxes) = (host_only(&plan.other_host), host_only(&plan.mailbox_host));
    let other_comes_from = if plan.other == Other::ExchangeOnline { "Exchange Online" } else { other };
    // The roles: on a trial host all of them have one address.
    let here = "this relay";
    let other_comes_from = match plan.other {
        Other::ExchangeOnline => other_comes_from.to_owned(),
        Other::ExchangeServer | Other::Causeway => format!("the other side ({other_comes_from})"),
    };
    let (other, mailboxes) = (format!("the other side ({other})"), format!("the mailbox server ({mailboxes})"));
    let mut row = |what: &str, from: &str, to: &str| guide.line(&format!("  {what:<16} {from} -> {to}"));
    if plan.is_mx() {
        row(&port, "Internet", here);
    }
    row(&port, &other_comes_from, here);
    row(&port, &mailboxes, here);
    row(&format!("TCP {}", port_of(&plan.other_host)), here, &other);
    row(&format!("TCP {}", port_of(&plan.mailbox_host)), here, &mailboxes);
    if plan.has_way_out() {
        row("TCP 25", here, "Internet");
    }
    row("TCP and UDP 53", here, "its DNS servers");
    if plan.other == Other::ExchangeOnline {
        guide.line("");
        guide.say(
            "Exchange Online comes from many addresses: Microsoft publishes them, and they change. The relay needs none of them; it goes by the certificate. No device between the two may touch SMTP (inspection, \"fixup\"): it would break the proof.",
        );
    }
}

fn other_side(guide: &mut Guide, plan: &Plan) {
    match plan.other {
        Other::ExchangeOnline => exchange_online(guide, plan),
        Other::ExchangeServer => exchange_server(guide, plan),
        Other::Causeway => causeway(guide, plan),
    }
}

fn exchange_online(guide: &mut Guide, plan: &Plan) {
    let Plan { scenario, domain, hostname, .. } = plan;
    guide.chapter("In Exchange Online (PowerShell, after Connect-ExchangeOnline)");
    guide.say(&format!(
        "The certificate of {hostname} is one of a public authority, and {domain} is an accepted domain there."
    ));
    guide.line("");
    guide.line("  # Mail from on-premises: known by its certificate, and internal");
    guide.power_shell(&[
        r#"New-InboundConnector -Name "From on-premises" -ConnectorType OnPremises"#.to_owned(),
        format!(r#"-SenderDomains "*" -RequireTls $true -TlsSenderCertificateName "{hostname}""#),
        "-CloudServicesMailEnabled $true".to_owned(),
    ]);
    guide.line("");
    let all = scenario.sends_through_other(Premises::Cloud) || scenario.first_on_premises;
    guide.line(match all {
        true => "  # Mail to on-premises: to the mailboxes there, and all mail for the Internet",
        false => "  # Mail to the mailboxes on-premises",
    });
    let smart_host = host_only(hostname);
    guide.power_shell(&[
        r#"New-OutboundConnector -Name "To on-premises" -ConnectorType OnPremises"#.to_owned(),
        format!(
            r#"-RecipientDomains "{}" -UseMXRecord $false -SmartHosts "{smart_host}""#,
            if all { "*" } else { domain }
        ),
        format!(r#"-TlsSettings DomainValidation -TlsDomain "{hostname}""#),
        format!("-RouteAllMessagesViaOnPremises ${all} -CloudServicesMailEnabled $true"),
    ]);
    guide.line("");
    guide.line("  # Whom the cloud does not know may be on-premises, which has the last word. Authoritative is right");
    guide.line("  # as soon as every recipient is synchronized to the cloud.");
    guide.power_shell(&[format!(r#"Set-AcceptedDomain -Identity "{domain}" -DomainType InternalRelay"#)]);
    if scenario.mx == Premises::OnPremises {
        guide.line("");
        guide.line("  # Optional: the MX leads on-premises, so nobody else may bring mail to the cloud");
        guide.power_shell(&[
            r#"New-InboundConnector -Name "Only through on-premises" -ConnectorType Partner"#.to_owned(),
            format!(r#"-SenderDomains "*" -RequireTls $true -TlsSenderCertificateName "{hostname}""#),
            "-RestrictDomainsToCertificate $true".to_owned(),
        ]);
        guide.line("");
        guide.line("  # Optional: judge senders by the server before this relay (Enhanced Filtering)");
        guide.power_shell(&[r#"Set-InboundConnector -Identity "From on-premises" -EFSkipLastIP $true"#.to_owned()]);
    }
    guide.line("");
    if port_of_listener_is_odd(plan) {
        guide.say(&format!(
            "Exchange Online connects to port 25 only, and this relay listens on {}: something must lead from the one to the other.",
            plan.port()
        ));
    }
    guide.say(&format!(
        "Each cloud mailbox needs its address at {} (the routing domain), and each mailbox on-premises a mail user in the cloud; directory synchronization makes both.",
        plan.routing_domain
    ));
}

fn port_of_listener_is_odd(plan: &Plan) -> bool {
    plan.port() != "25"
}

/// The line before commands that name a certificate by its names, as Exchange wants it.
fn certificate_name(guide: &mut Guide) {
    guide.line("  $cert = Get-ExchangeCertificate -Thumbprint <thumbprint of the certificate for SMTP>");
    guide.line(r#"  $name = "<I>$($cert.Issuer)<S>$($cert.Subject)""#);
}

/// A send connector of an Exchange Server that leads to this relay.
fn send_connector(guide: &mut Guide, plan: &Plan, name: &str, spaces: &str, helo: &str) {
    let mut parts = vec![
        format!(r#"New-SendConnector -Name "{name}" -AddressSpaces {spaces}"#),
        format!(r#"-DNSRoutingEnabled $false -SmartHosts "{}""#, plan.hostname),
        format!(r#"-RequireTLS $true -TlsAuthLevel DomainValidation -TlsDomain "{}""#, plan.hostname),
        format!(r#"-TlsCertificateName $name -Fqdn "{helo}" -CloudServicesMailEnabled $true"#),
    ];
    if port_of_listener_is_odd(plan) {
        parts.push(format!("-Port {}", plan.port()));
    }
    guide.power_shell(&parts);
}

/// An Exchange Server that believes this relay.
fn receive_connector(guide: &mut Guide, plan: &Plan) {
    guide.power_shell(&[
        r#"Set-ReceiveConnector -Identity "<server>\Default Frontend <server>""#.to_owned(),
        format!(r#"-TlsCertificateName $name -TlsDomainCapabilities "{}:AcceptCloudServicesMail""#, plan.hostname),
    ]);
}

fn exchange_server(guide: &mut Guide, plan: &Plan) {
    let there = plan.side.other();
    guide.chapter(&format!("On Exchange Server, {} (Exchange Management Shell)", there.place()));
    certificate_name(guide);
    guide.line("");
    let others_mailboxes = match there {
        Premises::OnPremises => &plan.routing_domain,
        Premises::Cloud => &plan.domain,
    };
    let everything = plan.scenario.sends_through_other(there);
    guide.line(match everything {
        true => "  # Mail for the mailboxes at this relay's side, and all mail for the Internet",
        false => "  # Mail for the mailboxes at this relay's side; the Internet is reached as before",
    });
    let spaces = if everything { format!(r#""{others_mailboxes}","*""#) } else { format!(r#""{others_mailboxes}""#) };
    send_connector(guide, plan, &format!("To {}", plan.side.word()), &spaces, &plan.other_name);
    guide.line("");
    guide.line("  # This relay, known by its certificate: its organization headers are believed");
    receive_connector(guide, plan);
    guide.line("");
    match there {
        Premises::OnPremises => guide.say(&format!(
            "Each cloud mailbox is a remote mailbox there, with a RemoteRoutingAddress at {}.",
            plan.routing_domain
        )),
        Premises::Cloud => {
            guide.line("  # Whom that server does not know is on-premises");
            guide
                .power_shell(&[format!(r#"Set-AcceptedDomain -Identity "{}" -DomainType InternalRelay"#, plan.domain)]);
            guide.power_shell(&[
                format!(r#"New-AcceptedDomain -Name "Routing domain" -DomainName "{}""#, plan.routing_domain),
                "-DomainType Authoritative".to_owned(),
            ]);
        }
    }
}

fn causeway(guide: &mut Guide, plan: &Plan) {
    let there = plan.side.other();
    guide.chapter(&format!("On the other side, {}", there.place()));
    guide.say("This command writes the relay there; HOST is the mailbox server behind that one.");
    guide.line("");
    let own = match port_of_listener_is_odd(plan) {
        true => format!("{}:{}", plan.hostname, plan.port()),
        false => plan.hostname.clone(),
    };
    let mut parts = vec![
        format!("causeway init --scenario {} --side {} --other causeway", plan.scenario.number, there.word()),
        format!("--domain {} --routing-domain {}", plan.domain, plan.routing_domain),
        format!("--hostname {} --other-host {own}", plan.other_name),
        "--mailbox-host HOST".to_owned(),
    ];
    if port_of(&plan.other_host) != "25" {
        parts.push(format!("--listen 0.0.0.0:{}", port_of(&plan.other_host)));
    }
    if let Some(authority) = &plan.ca_file {
        parts.push(format!("--ca-file {authority}"));
    }
    guide.command(&parts, " \\");
    guide.line("");
    guide.say("Copy the recipient directory there too: both sides must say the same of every mailbox.");
}

fn mailbox_server(guide: &mut Guide, plan: &Plan) {
    let host = host_only(&plan.mailbox_host);
    guide.chapter(&format!("On the mailbox server behind this relay ({host})"));
    guide.say(&format!(
        "It hands all mail for others to {}, port {}, over TLS{}. An Exchange Server does so by:",
        plan.hostname,
        plan.port(),
        match plan.mailbox_networks.is_empty() {
            true => format!(", and shows its certificate for {}", plan.mailbox_name),
            false => String::new(),
        }
    ));
    guide.line("");
    certificate_name(guide);
    send_connector(guide, plan, "To the relay", r#""*""#, &plan.mailbox_name);
    receive_connector(guide, plan);
    guide.line("");
    let accepted = match plan.side {
        Premises::OnPremises => format!("accepts {}", plan.domain),
        Premises::Cloud => format!("accepts {} and {}", plan.domain, plan.routing_domain),
    };
    let authority = match plan.authority(plan.side) {
        Some(authority) => format!("smtp_tls_CAfile = a copy of {authority}"),
        None => "smtp_tls_CAfile = the system's roots (Debian: /etc/ssl/certs/ca-certificates.crt)".to_owned(),
    };
    guide.say(&format!(
        "It {accepted}, and gives to the relay what has its mailbox elsewhere. Postfix: relayhost = [{}]:{}, smtp_tls_security_level = secure, {authority}, smtp_tls_cert_file and smtp_tls_key_file.",
        plan.hostname,
        plan.port()
    ));
}

fn forwards(guide: &mut Guide, plan: &Plan) {
    guide.chapter("Forwards to the Internet");
    let egress = plan.scenario.egress();
    let leaves = format!(
        "leaves {}",
        match egress {
            Premises::OnPremises => "from on-premises",
            Premises::Cloud => "through the cloud",
        }
    );
    let then = match (egress, plan.other, plan.side) {
        (Premises::Cloud, Other::ExchangeOnline, Premises::OnPremises) => {
            "Exchange Online may send it from a pool of addresses that no SPF record names"
        }
        _ => "a host that checks SPF finds that sender's domain does not name this way out, and may refuse it",
    };
    guide.say(&format!(
        "A forward (kate@{} to kate@tailspintoys.com) keeps its sender, and in scenario {} it {leaves}: {then}. External forwards need SRS, which rewrites such senders; this version has none yet. Forwards within {} are not affected.",
        plan.domain, plan.scenario.number, plan.domain
    ));
}

fn next(guide: &mut Guide, plan: &Plan) {
    guide.chapter("Next");
    let Some(file) = &plan.output else {
        guide.say("Save the configuration, and run causeway -c FILE check.");
        return;
    };
    let file = file.display();
    guide.line(&format!("  causeway -c {file} check"));
    guide.line(&format!("  causeway -c {file} check --live"));
    if plan.other == Other::Causeway {
        guide.line(&format!("  causeway -c {file} check --other-side FILE"));
    }
    let domain = &plan.domain;
    let (origin, from, to) = match (plan.is_mx(), plan.side) {
        (true, _) => ("internet", "erin@fabrikam.com".to_owned(), format!("julie@{domain} --to david@{domain}")),
        (false, Premises::OnPremises) => {
            ("on-premises", format!("julie@{domain}"), format!("david@{domain} --to erin@fabrikam.com"))
        }
        (false, Premises::Cloud) => {
            ("cloud", format!("david@{domain}"), format!("julie@{domain} --to erin@fabrikam.com"))
        }
    };
    guide.line(&format!("  causeway -c {file} explain --origin {origin} --from {from} \\"));
    guide.line(&format!("      --to {to}"));
    guide.line(&format!("  causeway -c {file} run"));
}
