//! The text of the configuration: every key that a scenario decides, each with the reason for its value.
//!
//! The examples in `config/` are what this file writes for contoso.com; a test holds the two together.

use std::fmt::Write as _;

use super::plan::{Other, Plan, Premises};

/// Comments behind a key begin here; a longer line has its comment above it.
const MARGIN: usize = 44;
/// No line is longer if it can be helped.
const COLUMNS: usize = 120;

/// The file as it grows.
struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        self.0.push_str(text.trim_end());
        self.0.push('\n');
    }

    fn gap(&mut self) {
        self.0.push('\n');
    }

    /// A paragraph of comment, broken into lines.
    fn say(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in text.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > COLUMNS {
                self.line(&line);
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.line(&line);
    }

    fn key(&mut self, key: &str, value: &str, why: &str) {
        let pair = format!("{key} = {value}");
        let length = pair.chars().count();
        match why {
            "" => self.line(&pair),
            why if length < MARGIN + 12 && length.max(MARGIN) + 3 + why.chars().count() <= COLUMNS => {
                // A long value keeps its blank before the comment.
                let pair = if length < MARGIN { pair } else { pair + " " };
                self.line(&format!("{pair:<MARGIN$}# {why}"));
            }
            why => {
                self.say(&sentence(why));
                self.line(&pair);
            }
        }
    }
}

/// The whole file.
pub(super) fn text(plan: &Plan) -> String {
    let mut page = Page(String::new());
    head(&mut page, plan);
    hybrid(&mut page, plan);
    domains(&mut page, plan);
    receive_connectors(&mut page, plan);
    send_connectors(&mut page, plan);
    page.line("[tracking]                                  # one JSON line for each event of each message");
    page.key("path", &quoted(&plan.tracking), "");
    page.key("keep", r#""30d""#, "older files are removed");
    page.gap();
    if let Some(admin) = &plan.admin {
        page.line("[admin]");
        page.key("listen", &quoted(admin), "admin API, and the console in a browser");
        page.gap();
    }
    page.line("[log]");
    page.key("format", r#""text""#, r#""json" for collectors; to stderr"#);
    page.key("level", r#""info""#, r#""debug" adds a line for every delivery"#);
    page.0
}

/// A directory to begin with: one recipient of every type.
pub(super) fn recipients(plan: &Plan) -> String {
    let domain = &plan.domain;
    format!(
        "address,type,target\n\
         julie@{domain},on-premises,\n\
         anna@{domain},on-premises,\n\
         david@{domain},cloud,\n\
         erik@{domain},cloud,erik.berg@{routing}\n\
         kate@{domain},forward,kate@tailspintoys.com\n\
         sales@{domain},group,julie@{domain} david@{domain}\n\
         info@{domain},alias,sales@{domain}\n\
         postmaster@{domain},alias,julie@{domain}\n",
        routing = plan.routing_domain
    )
}

fn head(page: &mut Page, plan: &Plan) {
    let Plan { scenario, side, domain, .. } = plan;
    page.say(&format!("{domain}, hybrid scenario {}, the {} side: {}.", scenario.number, side.word(), scenario.words));
    page.line("#");
    for (what, road) in scenario.roads(plan.called(Premises::OnPremises), plan.called(Premises::Cloud)) {
        page.line(&format!("#   {what:<9}{road}"));
    }
    page.line("#");
    let file = plan.output.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    let file = file.as_deref().unwrap_or("causeway.toml");
    page.line(&format!("# Check it with:  causeway -c {file} check"));
    page.line("# What is left out has its default (docs/configuration.md); paths start at this file's folder.");
    page.gap();
    page.key("hostname", &quoted(&plan.hostname), "must be in DNS: other servers look");
    page.key("postmaster", &quoted(&format!("postmaster@{domain}")), "whom reports come from");
    page.line(r#"# user = "causeway"                         # after the ports are bound as root, become this user"#);
    page.gap();
    page.line("[spool]");
    page.key("path", &quoted(&plan.spool), "on a disk that survives: mail stands here until it is delivered");
    page.key("message_lifetime", r#""2d""#, "then it goes back to its sender");
    page.gap();
}

fn hybrid(page: &mut Page, plan: &Plan) {
    page.line("[hybrid]");
    page.key("side", &quoted(plan.side.word()), "which premises this relay serves");
    page.key("on_premises", r#""to-on-premises""#, "send connector for mailboxes on-premises");
    page.key("cloud", r#""to-cloud""#, "send connector for mailboxes in the cloud");
    let why = "the cloud knows its mailboxes as local-part@ this domain";
    page.key("routing_domain", &quoted(&plan.routing_domain), why);
    let why = match plan.internet() {
        "direct" => "mail for the Internet: by the send connectors' address spaces",
        "cloud" => "mail for the Internet leaves through the cloud",
        _ => "mail for the Internet goes on-premises first",
    };
    page.key("internet", &quoted(plan.internet()), why);
    if plan.side == Premises::Cloud {
        let (first, why) = match plan.scenario.first_on_premises {
            true => ("on-premises", "mail from the Internet goes there first, for every mailbox"),
            false => ("here", "mail from the Internet goes straight to its mailbox"),
        };
        page.key("inbound_first_hop", &quoted(first), why);
    }
    let why = "a mailbox that each side holds to be at the other may be moving: its mail waits this long, then fails";
    page.key("disagreement_grace", r#""1h""#, why);
    page.gap();
}

fn domains(page: &mut Page, plan: &Plan) {
    page.line("[[accepted_domain]]");
    page.key("name", &quoted(&plan.domain), "");
    let why = "who is not in the directory gets 550 5.1.1; so it must know the mailboxes of both sides";
    page.key("type", r#""authoritative""#, why);
    page.gap();
    page.line("[[directory]]");
    page.key("kind", r#""file""#, "");
    page.key("path", &quoted(&plan.directory), "who has a mailbox where; re-read when it changes");
    page.gap();
}

fn receive_connectors(page: &mut Page, plan: &Plan) {
    page.say(
        "All receive connectors share their addresses. The narrowest network wins; among equal networks a certificate decides.",
    );
    page.gap();
    if plan.is_mx() {
        page.say(&format!("Anybody: may write to {} and nobody else. The MX leads here.", plan.domain));
        receive(page, plan, "internet", "internet");
        page.key("tls", r#""offer""#, "not every server of the world can do TLS");
        identity(page, plan);
    } else {
        page.say(&format!(
            "No connector takes strangers: the MX names the side {}, and nobody shall walk around what filters there. Who proves none of the names below is refused at MAIL FROM, 550 5.7.1.",
            plan.scenario.mx.place()
        ));
    }
    page.gap();
    from_other_side(page, plan);
    page.gap();
    from_own_side(page, plan);
    page.gap();
}

/// The first lines of each receive connector.
fn receive(page: &mut Page, plan: &Plan, name: &str, origin: &str) {
    page.line("[[receive_connector]]");
    page.key("name", &quoted(name), "");
    page.key("listen", &list(&plan.listen), "");
    page.key("origin", &quoted(origin), "");
}

fn from_other_side(page: &mut Page, plan: &Plan) {
    let there = plan.side.other();
    page.say(&format!(
        "The side {}, proved by its certificate: from whatever address it comes, nobody else gets this connector.",
        there.place()
    ));
    receive(page, plan, &format!("from-{}", there.word()), there.word());
    page.key("tls", r#""require""#, "a certificate needs TLS");
    identity(page, plan);
    page.key("tls_domain", &list(std::slice::from_ref(&plan.other_name)), "what its certificate must carry");
    client_authority(page, plan, there);
    page.key("internal", "true", "between our premises organization headers are believed");
    let why = match (plan.other, plan.side) {
        (Other::ExchangeOnline, _) => {
            "all customers of Exchange Online show that certificate; by this we know ours, the others count as strangers"
        }
        (Other::Causeway, Premises::OnPremises) => {
            "its mail must say that it is ours, or counts as a stranger's; it says the second where its first authoritative domain is that"
        }
        // A certificate of our own servers says enough.
        (Other::Causeway | Other::ExchangeServer, _) => "",
    };
    if !why.is_empty() {
        page.key("originator_org", &list(&plan.originators()), why);
    }
    match (plan.side, plan.relays_for_other()) {
        (Premises::OnPremises, true) => {
            page.key("relay", "true", "the cloud's mail for the Internet passes here");
        }
        (Premises::OnPremises, false) => {
            page.key("relay", "false", "the cloud has a way of its own to the Internet");
        }
        (Premises::Cloud, true) => page.key("relay", "true", "its mail for the Internet leaves from here"),
        (Premises::Cloud, false) => {
            page.key("relay", "false", "it has a way of its own to the Internet");
        }
    }
}

fn from_own_side(page: &mut Page, plan: &Plan) {
    let here = plan.side;
    let name = format!("from-{}", here.word());
    if plan.mailbox_networks.is_empty() {
        page.say(&format!(
            "The mailbox server {}, proved by its certificate. If it can show none, name its addresses instead: remote_ips = [\"192.0.2.10\"] in place of tls_domain.",
            here.place()
        ));
    } else {
        page.say(&format!(
            "The mailbox server {}, known by its addresses: keep them narrow, for they are all that it shows.",
            here.place()
        ));
    }
    receive(page, plan, &name, here.word());
    if plan.mailbox_networks.is_empty() {
        page.key("tls", r#""require""#, "a certificate needs TLS");
        identity(page, plan);
        page.key("tls_domain", &list(std::slice::from_ref(&plan.mailbox_name)), "what its certificate must carry");
        client_authority(page, plan, here);
    } else {
        page.key("remote_ips", &list(&plan.mailbox_networks), "");
        page.key("tls", r#""offer""#, r#""require" if all of them can"#);
        identity(page, plan);
    }
    page.key("internal", "true", "its organization headers travel on to the other side");
    page.key("relay", "true", "it may write to the Internet");
}

fn send_connectors(page: &mut Page, plan: &Plan) {
    let (here, there) = (plan.side, plan.side.other());
    page.say(&format!("To the mailbox server {}.", here.place()));
    page.line("[[send_connector]]");
    page.key("name", &quoted(&format!("to-{}", here.word())), "[hybrid] names it");
    proved(page, plan, here, (&plan.mailbox_host, &plan.mailbox_name));
    if here == Premises::OnPremises {
        tags(page);
    }
    page.gap();

    page.say(&format!("To the side {}.", there.place()));
    page.line("[[send_connector]]");
    page.key("name", &quoted(&format!("to-{}", there.word())), "[hybrid] names it");
    if there == Premises::Cloud {
        let why = "addresses that our own servers wrote out";
        page.key("address_spaces", &list(std::slice::from_ref(&plan.routing_domain)), why);
    }
    proved(page, plan, there, (&plan.other_host, &plan.other_name));
    if plan.other == Other::ExchangeServer && there == Premises::OnPremises {
        tags(page);
    }
    page.gap();

    if plan.has_way_out() {
        let egress = plan.scenario.egress() == here;
        match egress {
            true => page.say("To the Internet: the MX of the recipient's domain."),
            false => page.say(
                "To the Internet, but only what has been on-premises already, such as a forward that only this side knows: it never goes back there.",
            ),
        }
        page.line("[[send_connector]]");
        page.key("name", r#""to-internet""#, "");
        page.key("address_spaces", r#"["*"]"#, "no smart_hosts: by MX");
        page.key("tls", r#""opportunistic""#, "with every server that can do it");
        page.gap();
    }
}

/// Exchange Server has no plus addressing.
fn tags(page: &mut Page) {
    let why = "Exchange Server refuses julie+news@ where it has julie@; \"keep\" for a server that knows +tags";
    page.key("tags", r#""drop""#, why);
}

/// The rest of a send connector that leads to servers of our own.
fn proved(page: &mut Page, plan: &Plan, premises: Premises, (host, name): (&str, &str)) {
    page.key("smart_hosts", &list(&[host.to_owned()]), "");
    page.key("tls", r#""domain""#, "no certificate with that name, no mail: never in the clear");
    page.key("tls_domain", &list(&[name.to_owned()]), "what its certificate must carry");
    if let Some(authority) = plan.authority(premises) {
        page.key("ca_file", &quoted(authority), "leave it out if a public authority issued it");
    }
    page.key("certificate", &quoted(&plan.certificate), "by this the server knows us");
    page.key("key", &quoted(&plan.key), "");
    page.key("internal", "true", "organization headers travel along");
}

fn identity(page: &mut Page, plan: &Plan) {
    page.key("certificate", &quoted(&plan.certificate), "");
    page.key("key", &quoted(&plan.key), "");
}

fn client_authority(page: &mut Page, plan: &Plan, premises: Premises) {
    if let Some(authority) = plan.authority(premises) {
        page.key("client_ca_file", &quoted(authority), "leave it out if a public authority issued it");
    }
}

/// With a capital and a full stop.
pub(super) fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for sign in text.chars() {
        match sign {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(sign);
            }
            control if control.is_control() => {
                // A String takes whatever is written to it.
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            sign => quoted.push(sign),
        }
    }
    quoted.push('"');
    quoted
}

fn list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn whatever_a_path_holds_is_one_string() {
        for text in ["certs/a.crt", "C:\\certs", "a \"b\"", "ä/ü", "tab\there"] {
            let document: toml::Table = format!("path = {}", quoted(text)).parse().expect("TOML");
            assert_eq!(document["path"].as_str(), Some(text));
        }
    }
}
