//! A look at the world outside: what DNS says about the accepted domains, and what the send connectors' hosts show.
//!
//! Nothing is sent: no MAIL, no login. Nothing is connected to but the name servers and the hosts that the enabled send
//! connectors name. Several hosts are looked at at once, and each has its time, so that the whole ends.
//!
//! Not here: what follows for the exit status, and the words of the report (`cli::check`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::dns::Resolver;

pub mod hosts;
pub mod names;
pub mod spf;

pub use hosts::{HostSeen, TlsSeen};
pub use names::DomainSeen;

/// How long, and how many at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a connection to one address.
    pub connect: Duration,
    /// For one host with all its addresses, or one domain.
    pub host: Duration,
    /// Hosts and domains at one time.
    pub at_once: usize,
}

impl Default for Limits {
    /// A mail server that has not greeted after half a minute would delay mail, too.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), host: Duration::from_secs(30), at_once: 8 }
    }
}

/// All that was seen, in the order of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Accepted domains.
    pub domains: Vec<DomainSeen>,
    /// Hosts of the send connectors.
    pub hosts: Vec<HostSeen>,
}

/// One thing that was looked at.
enum One {
    Domain(DomainSeen),
    Host(HostSeen),
}

/// Looks. `progress` hears how many of how many are done.
pub async fn look(
    config: &Arc<Config>,
    resolver: &Resolver,
    limits: Limits,
    progress: impl Fn(usize, usize),
) -> Report {
    let (tasks, failed) = hosts::tasks(config, resolver).await;
    let places = Arc::new(Semaphore::new(limits.at_once.max(1)));
    // Whoever runs in it ends with it.
    let mut running = JoinSet::new();
    let mut total = 0;
    for domain in &config.accepted_domains {
        let (config, resolver, places) = (config.clone(), resolver.clone(), places.clone());
        let (name, kind, number) = (domain.name.clone(), domain.kind, total);
        running.spawn(async move {
            let _place = places.acquire().await;
            let mut seen = DomainSeen::default();
            let looking = names::look(&config, &name, kind, &resolver, &mut seen);
            if tokio::time::timeout(limits.host, looking).await.is_err() {
                seen.warn("DNS", format!("the name servers did not answer all within {} s", limits.host.as_secs_f32()));
            }
            (number, One::Domain(seen))
        });
        total += 1;
    }
    for task in tasks {
        let (resolver, places, number) = (resolver.clone(), places.clone(), total);
        let helo = task.connector.helo.as_ref().unwrap_or(&config.hostname).to_string();
        let own_name = config.hostname.to_string();
        running.spawn(async move {
            let _place = places.acquire().await;
            (number, One::Host(hosts::look(task, (helo, own_name), resolver, limits).await))
        });
        total += 1;
    }
    let mut done = Vec::new();
    progress(0, total);
    while let Some(ended) = running.join_next().await {
        // A task that panicked has nothing to report, and its panic was printed.
        if let Ok(one) = ended {
            done.push(one);
            progress(done.len(), total);
        }
    }
    done.sort_by_key(|(number, _)| *number);
    let mut report = Report { domains: Vec::new(), hosts: failed };
    for (_, one) in done {
        match one {
            One::Domain(seen) => report.domains.push(seen),
            One::Host(seen) => report.hosts.push(seen),
        }
    }
    let place = |host: &HostSeen| config.send_connectors.iter().position(|connector| connector.name == host.connector);
    report.hosts.sort_by_key(place);
    report
}
