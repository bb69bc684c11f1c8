//! Routing one recipient, and making copies of few and of many.

use std::hint::black_box;
use std::path::Path;

use causeway::config::{self, Config, ConnectorName, Origin};
use causeway::directory::{Entry, Found, Lookup};
use causeway::message::{Address, Notify, Recipient};
use causeway::route::{Asking, Routed, Rules, plan};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

const CONFIG: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "spool"
[hybrid]
side = "on-premises"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "contoso.mail.onmicrosoft.com"
[[accepted_domain]]
name = "contoso.com"
type = "authoritative"
[[receive_connector]]
name = "internet"
listen = ["127.0.0.1:2525"]
origin = "internet"
tls = "off"
[[send_connector]]
name = "to-on-premises"
smart_hosts = ["mail.inside.contoso.com"]
tls = "opportunistic"
[[send_connector]]
name = "to-cloud"
address_spaces = ["contoso.mail.onmicrosoft.com"]
smart_hosts = ["contoso-com.mail.protection.outlook.com"]
tls = "opportunistic"
[[send_connector]]
name = "to-internet"
address_spaces = ["*"]
tls = "opportunistic"
"#;

/// Local parts that begin with a vowel are on-premises.
struct Vowels;

impl Lookup for Vowels {
    fn find(&self, address: &Address) -> Found {
        let on_premises = address.local().starts_with(['a', 'e', 'i', 'o', 'u']);
        let entry = if on_premises { Entry::OnPremises } else { Entry::Cloud(None) };
        Found::Entry { source: "recipients.csv".into(), entry, untagged: false }
    }
}

fn routed(config: &Config, to: &str) -> Vec<Routed> {
    let rules = Rules { config, directory: &Vowels };
    let connector = ConnectorName("internet".into());
    let asking = Asking { origin: Origin::Internet, connector: &connector, may_relay: true, size: Some(1024) };
    let address = Address::parse(to).expect("an address");
    rules.resolve(&asking, &Recipient { address, notify: Notify::Unsaid, orcpt: None }).expect("a route")
}

fn routing(criterion: &mut Criterion) {
    let config = config::parse(CONFIG, Path::new("causeway.toml")).expect("a sound configuration");
    let rules = Rules { config: &config, directory: &Vowels };
    let connector = ConnectorName("internet".into());
    let asking = Asking { origin: Origin::Internet, connector: &connector, may_relay: true, size: Some(1024) };

    let mut group = criterion.benchmark_group("resolve");
    for (what, to) in
        [("on-premises", "anna@contoso.com"), ("cloud", "david@contoso.com"), ("internet", "eve@fabrikam.com")]
    {
        let address = Address::parse(to).expect("an address");
        let recipient = Recipient { address, notify: Notify::Unsaid, orcpt: None };
        group.bench_function(what, |bencher| bencher.iter(|| rules.resolve(&asking, black_box(&recipient))));
    }
    group.finish();

    let mut group = criterion.benchmark_group("plan");
    for count in [1, 2, 10, 1000] {
        let all: Vec<_> = (0..count)
            .flat_map(|number| {
                let local = if number % 2 == 0 { 'a' } else { 'd' };
                routed(&config, &format!("{local}{number}@contoso.com"))
            })
            .collect();
        group.bench_function(format!("{count} recipients"), |bencher| {
            bencher.iter_batched(|| all.clone(), plan, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, routing);
criterion_main!(benches);
