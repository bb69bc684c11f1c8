//! From flags and questions to a plan. What was not said is asked on a terminal, with a default in brackets; where
//! nobody can be asked, all flags that are missing are named at once.
//!
//! A default that follows from what is known (a path, the certificate's name) is taken in silence too; a guess (which
//! host is the mailbox server?) is only ever offered to somebody who can say no.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use super::Args;
use super::plan::{Other, Plan, Premises, SCENARIOS, Scenario, host_only};
use crate::config::value;

/// Somebody who types nonsense this often is a script that plays a person.
const PATIENCE: usize = 20;

/// Where questions go and answers come from.
pub(super) struct Questions<'a> {
    /// `None`: there is nobody to ask.
    pub person: Option<(&'a mut dyn BufRead, &'a mut dyn Write)>,
    /// The flags without which there can be no plan.
    pub missing: Vec<&'static str>,
}

/// What is taken if nothing is said.
enum Fallback {
    /// It follows from what is known.
    Default(String),
    /// It is likely, but only a person can confirm it.
    Guess(String),
    Nothing,
}

impl Questions<'_> {
    /// The value of `flag`: as given, or as answered, or its default. `None`: it is missing, which is noted.
    fn ask<T>(
        &mut self,
        flag: &'static str,
        question: &str,
        given: Option<T>,
        fallback: Fallback,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if given.is_some() {
            return given;
        }
        let (default, certain) = match fallback {
            Fallback::Default(default) => (Some(default), true),
            Fallback::Guess(guess) => (Some(guess), false),
            Fallback::Nothing => (None, false),
        };
        let Some((input, output)) = &mut self.person else {
            let answer = default.filter(|_| certain).and_then(|default| parse(&default).ok());
            if answer.is_none() {
                self.missing.push(flag);
            }
            return answer;
        };
        for _ in 0..PATIENCE {
            let shown = default.as_ref().map(|default| format!(" [{default}]")).unwrap_or_default();
            let _ = write!(output, "{question}{shown}: ");
            let _ = output.flush();
            let mut line = String::new();
            if !matches!(input.read_line(&mut line), Ok(1..)) {
                break;
            }
            let answer = match (line.trim(), &default) {
                ("", Some(default)) => default,
                (answer, _) => answer,
            };
            match parse(answer) {
                Ok(value) => return Some(value),
                Err(expected) => {
                    let _ = writeln!(output, "  {expected}");
                }
            }
        }
        self.missing.push(flag);
        None
    }
}

/// The plan that flags and answers make.
///
/// # Errors
/// What is missing, or does not go together.
pub(super) fn plan(args: Args, questions: &mut Questions<'_>) -> Result<Plan, String> {
    let side = args.side.unwrap_or(Premises::OnPremises);
    let other = args.other.unwrap_or(match side {
        Premises::OnPremises => Other::ExchangeOnline,
        Premises::Cloud => Other::Causeway,
    });
    if (side, other) == (Premises::Cloud, Other::ExchangeOnline) {
        let text = "--side cloud: this relay stands in the cloud, so the other side is on-premises, and Exchange Online never is; --other is exchange-server or causeway";
        return Err(text.to_owned());
    }
    let (mailboxes, there) = (side.place(), side.other().place());

    if let (None, Some((_, output))) = (args.scenario, &mut questions.person) {
        for scenario in SCENARIOS {
            let _ = writeln!(output, "  {}  {}", scenario.number, scenario.words);
        }
    }
    let scenario =
        questions.ask("--scenario", "Which scenario, 1 to 4", args.scenario, Fallback::Nothing, Scenario::parse);
    let domain = questions.ask("--domain", "Domain of the organization", args.domain, Fallback::Nothing, domain);
    let of_domain = |make: &dyn Fn(&str) -> String| match &domain {
        Some(domain) => Fallback::Guess(make(domain)),
        None => Fallback::Nothing,
    };
    let (own, others) = match side {
        Premises::OnPremises => ("mail", "cloud"),
        Premises::Cloud => ("cloud", "mail"),
    };
    let hostname = of_domain(&|domain| format!("{own}.{domain}"));
    let hostname = questions.ask("--hostname", "Host name of this relay", args.hostname, hostname, domain_name);
    let other_host = match (other, &domain) {
        // Microsoft's rule for the MX of a domain there.
        (Other::ExchangeOnline, Some(domain)) => {
            Fallback::Default(format!("{}.mail.protection.outlook.com", domain.replace('.', "-")))
        }
        _ => of_domain(&|domain| format!("{others}.{domain}")),
    };
    let question = format!("Host of the other side, {there}");
    // Without a domain nothing follows from it, but that is not what is missing.
    let other_host = match (other, &domain) {
        (Other::ExchangeOnline, None) => args.other_host,
        _ => questions.ask("--other-host", &question, args.other_host, other_host, host),
    };
    let other_name = match (other, &other_host) {
        (Other::ExchangeOnline, _) => Fallback::Default("mail.protection.outlook.com".to_owned()),
        (_, host) => name_of(host.as_deref()),
    };
    // Asked only where it does not follow: a question less.
    let other_name = match (args.other_name, other_name) {
        (None, Fallback::Default(name)) => Some(name),
        (given, fallback) => {
            let question = "Name in the certificate of the other side";
            // Of a host that is missing no name can be asked.
            if other_host.is_none() {
                given
            } else {
                questions.ask("--other-name", question, given, fallback, value::tls_name)
            }
        }
    };
    let routing_domain = match &domain {
        Some(domain) => {
            let label = domain.split('.').next().unwrap_or(domain);
            Fallback::Default(format!("{label}.mail.onmicrosoft.com"))
        }
        None => Fallback::Nothing,
    };
    let question = "Routing domain: the cloud knows its mailboxes as local-part@";
    let routing_domain = if domain.is_some() {
        questions.ask("--routing-domain", question, args.routing_domain, routing_domain, domain_name)
    } else {
        args.routing_domain
    };
    let file = |end: &str| match &hostname {
        Some(hostname) => Fallback::Default(format!("certs/{hostname}.{end}")),
        None => Fallback::Default(format!("certs/relay.{end}")),
    };
    let question = "Certificate of this relay (PEM chain)";
    let certificate = questions.ask("--certificate", question, args.certificate, file("crt"), something);
    let key = questions.ask("--key", "Its private key", args.key, file("key"), something);
    let directory = Fallback::Default("recipients.csv".to_owned());
    let directory = questions.ask("--directory", "Recipient directory (CSV)", args.directory, directory, something);
    let mailbox = match side {
        Premises::OnPremises => "exchange",
        Premises::Cloud => "mailboxes",
    };
    let mailbox_host = of_domain(&|domain| format!("{mailbox}.{domain}"));
    let question = format!("Host of the mailbox server behind this relay, {mailboxes}");
    let mailbox_host = questions.ask("--mailbox-host", &question, args.mailbox_host, mailbox_host, host);
    let mailbox_name = match (&mailbox_host, args.mailbox_name) {
        (None, given) => given,
        (Some(host), given) => {
            let question = "Name in the certificate of the mailbox server";
            questions.ask("--mailbox-name", question, given, name_of(Some(host)), value::tls_name)
        }
    };
    let spool = Fallback::Default("/var/spool/causeway".to_owned());
    let spool = questions.ask("--spool", "Spool folder", args.spool, spool, something);
    let output = Fallback::Default("./causeway.toml".to_owned());
    let output = questions.ask("--output", "Write to (- is standard output)", args.output, output, something);

    let missing = || match questions.missing.as_slice() {
        [] => "the questions had no answers".to_owned(),
        [flag] => format!("{flag} is missing; say it, or run this on a terminal to be asked"),
        flags => format!("{} are missing; say them, or run this on a terminal to be asked", flags.join(", ")),
    };
    let plan = (|| {
        Some(Plan {
            scenario: scenario?,
            side,
            other,
            domain: domain?,
            hostname: hostname?,
            listen: args.listen,
            other_host: other_host?,
            other_name: other_name?,
            routing_domain: routing_domain?,
            certificate: certificate?,
            key: key?,
            ca_file: args.ca_file,
            directory: directory?,
            mailbox_host: mailbox_host?,
            mailbox_name: mailbox_name?,
            mailbox_networks: args.mailbox_networks,
            egress_ips: args.egress_ips,
            admin: args.admin,
            spool: spool?,
            tracking: args.tracking,
            output: output.filter(|output| output != "-").map(PathBuf::from),
        })
    })()
    .ok_or_else(missing)?;
    check(&plan)?;
    Ok(plan)
}

/// What no single answer shows.
fn check(plan: &Plan) -> Result<(), String> {
    if plan.domain == plan.routing_domain {
        return Err(format!(
            "--routing-domain: {} is the domain of both sides; the routing domain is the one that only the cloud has",
            plan.domain
        ));
    }
    // Two receive connectors are told apart by these names.
    if plan.mailbox_networks.is_empty() && plan.mailbox_name.eq_ignore_ascii_case(&plan.other_name) {
        return Err(format!(
            "--mailbox-name: {} is also the name of the other side, so nobody could tell the two apart; give the mailbox server a certificate of its own, or --mailbox-networks",
            plan.mailbox_name
        ));
    }
    for (flag, host) in [("--other-host", &plan.other_host), ("--mailbox-host", &plan.mailbox_host)] {
        if host_only(host).eq_ignore_ascii_case(&plan.hostname) {
            return Err(format!("{flag}: {host} is this relay itself"));
        }
    }
    Ok(())
}

/// A certificate carries the name of its host; of an address it does not say.
fn name_of(host: Option<&str>) -> Fallback {
    match host.map(|host| value::tls_name(host_only(host))) {
        Some(Ok(name)) => Fallback::Default(name),
        _ => Fallback::Nothing,
    }
}

/// The organization's domain, or the routing domain.
pub(super) fn domain(text: &str) -> Result<String, String> {
    value::domain(text).map(|domain| domain.to_string())
}

/// A name that DNS can know.
pub(super) fn domain_name(text: &str) -> Result<String, String> {
    match domain(text)? {
        name if name.contains('.') => Ok(name),
        name => Err(format!(r#"expected a full name such as "{name}.contoso.com""#)),
    }
}

/// A smart host, with or without its port.
pub(super) fn host(text: &str) -> Result<String, String> {
    value::smart_host(text).map(|host| host.to_string())
}

/// A path: anything but nothing.
pub(super) fn something(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err("expected a path".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args {
            scenario: None,
            side: None,
            other: None,
            domain: None,
            hostname: None,
            listen: vec!["0.0.0.0:25".into()],
            other_host: None,
            other_name: None,
            routing_domain: None,
            certificate: None,
            key: None,
            ca_file: None,
            directory: None,
            mailbox_host: None,
            mailbox_name: None,
            mailbox_networks: Vec::new(),
            egress_ips: Vec::new(),
            admin: None,
            spool: None,
            tracking: "/var/log/causeway".into(),
            output: None,
            force: false,
        }
    }

    fn asked(args: Args, typed: &str) -> (Result<Plan, String>, String) {
        let (mut input, mut output) = (typed.as_bytes(), Vec::new());
        let mut questions = Questions { person: Some((&mut input, &mut output)), missing: Vec::new() };
        let plan = plan(args, &mut questions);
        (plan, String::from_utf8(output).expect("text"))
    }

    #[test]
    fn whoever_presses_enter_gets_the_defaults_in_brackets() {
        let typed = format!("3\ncontoso.com\n{}", "\n".repeat(10));
        let (plan, said) = asked(args(), &typed);
        let plan = plan.expect("a plan");
        assert_eq!(plan.scenario.number, 3);
        let got = [
            &plan.hostname,
            &plan.other_host,
            &plan.other_name,
            &plan.routing_domain,
            &plan.certificate,
            &plan.key,
            &plan.directory,
            &plan.mailbox_host,
            &plan.mailbox_name,
            &plan.spool,
        ];
        let expected = [
            "mail.contoso.com",
            "contoso-com.mail.protection.outlook.com",
            "mail.protection.outlook.com",
            "contoso.mail.onmicrosoft.com",
            "certs/mail.contoso.com.crt",
            "certs/mail.contoso.com.key",
            "recipients.csv",
            "exchange.contoso.com",
            "exchange.contoso.com",
            "/var/spool/causeway",
        ];
        assert_eq!(got, expected.each_ref());
        assert_eq!(plan.output.as_deref(), Some(std::path::Path::new("./causeway.toml")));
        for default in expected.iter().filter(|name| **name != "mail.protection.outlook.com") {
            assert!(said.contains(&format!(" [{default}]: ")), "{default} is not offered:\n{said}");
        }
    }

    #[test]
    fn a_faulty_answer_is_told_and_asked_again() {
        let typed = format!("5\n1\nnot a domain\ncontoso.com\nmail\nmx.contoso.com\n{}", "\n".repeat(10));
        let (plan, said) = asked(args(), &typed);
        let plan = plan.expect("a plan");
        assert_eq!((plan.scenario.number, plan.hostname.as_str()), (1, "mx.contoso.com"));
        assert!(said.contains("expected 1, 2, 3 or 4"), "{said}");
        assert!(said.contains("expected a domain such as"), "{said}");
        assert!(said.contains("expected a full name such as \"mail.contoso.com\""), "{said}");
    }

    #[test]
    fn answers_that_end_early_make_no_plan() {
        let (plan, _) = asked(args(), "3\n");
        let why = plan.expect_err("no plan");
        assert!(why.starts_with("--domain, --hostname, "), "{why}");
    }

    #[test]
    fn where_nobody_can_be_asked_guesses_are_not_taken() {
        for (args, expected) in [
            (args(), "--scenario, --domain, --hostname, --mailbox-host are missing"),
            (
                Args { domain: Some("contoso.com".into()), ..args() },
                "--scenario, --hostname, --mailbox-host are missing",
            ),
            (
                Args {
                    scenario: Some(Scenario::parse("1").expect("a scenario")),
                    domain: Some("contoso.com".into()),
                    hostname: Some("mail.contoso.com".into()),
                    mailbox_host: Some("192.0.2.10".into()),
                    ..args()
                },
                "--mailbox-name is missing",
            ),
            (
                Args {
                    side: Some(Premises::Cloud),
                    scenario: Some(Scenario::parse("1").expect("a scenario")),
                    domain: Some("contoso.com".into()),
                    hostname: Some("cloud.contoso.com".into()),
                    mailbox_host: Some("mailboxes.contoso.com".into()),
                    ..args()
                },
                "--other-host is missing",
            ),
        ] {
            let mut questions = Questions { person: None, missing: Vec::new() };
            let why = plan(args, &mut questions).expect_err("something is missing");
            assert!(why.starts_with(expected), "{why}\nexpected {expected}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = || Args {
            scenario: Some(Scenario::parse("4").expect("a scenario")),
            domain: Some("contoso.com".into()),
            hostname: Some("mail.contoso.com".into()),
            mailbox_host: Some("exchange.contoso.com".into()),
            ..args()
        };
        for (args, expected) in [
            (Args { side: Some(Premises::Cloud), other: Some(Other::ExchangeOnline), ..good() }, "--side cloud: "),
            (Args { routing_domain: Some("contoso.com".into()), ..good() }, "--routing-domain: "),
            (Args { mailbox_name: Some("mail.protection.outlook.com".into()), ..good() }, "--mailbox-name: "),
            (Args { mailbox_host: Some("mail.contoso.com:2525".into()), ..good() }, "--mailbox-host: "),
        ] {
            let mut questions = Questions { person: None, missing: Vec::new() };
            let why = plan(args, &mut questions).expect_err("it does not go together");
            assert!(why.starts_with(expected), "{why}\nexpected {expected}");
        }
    }
}
