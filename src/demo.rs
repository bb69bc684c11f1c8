//! A hybrid world in one process: CA, DNS, three servers and the relay between them, all on loopback.
//!
//! [`World`] has one relay and reaches the cloud service directly; [`HybridWorld`] has one on each premises, and the
//! four scenarios.
//!
//! The command `demo` shows it to people, the scenario tests live in it. Nothing in it is special to the relay: it runs
//! from a configuration text, with certificates in files, as any relay does.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::daemon::Daemon;
use crate::dns::zone::{self, Serving, Zone};
use crate::outcome::tracking::Tracker;
use crate::tls::Demand;
use crate::tls::authority::Authority;

pub mod client;
pub mod hops;
pub mod hybrid;
pub mod living;
pub mod mail;
pub mod site;
pub mod trickle;

pub use hybrid::HybridWorld;
pub use living::Console;
pub use site::{Arrival, Arrivals, Site};
pub use trickle::Trickle;

use client::Client;
use hops::Place;

/// The organization's domain.
pub const DOMAIN: &str = "contoso.com";
/// The name the relay proves to the cloud service.
pub const RELAY: &str = "mail.contoso.com";
/// The name the on-premises server proves.
pub const ON_PREMISES: &str = "ex1.contoso.com";
/// The name the cloud service proves.
pub const CLOUD: &str = "mail.protection.outlook.com";
/// The host the cloud service is reached at.
pub const CLOUD_HOST: &str = "contoso-com.mail.protection.outlook.com";
/// The name that the servers with the cloud's mailboxes prove to the relay before them.
pub const CLOUD_MAILBOXES: &str = "mailboxes.outlook.com";
/// The domain under which the premises know each other's mailboxes.
pub const ROUTING_DOMAIN: &str = "contoso.mail.onmicrosoft.com";
/// The domain on the Internet, and the host its MX names.
pub const INTERNET_DOMAIN: &str = "fabrikam.com";
/// The MX of [`INTERNET_DOMAIN`].
pub const INTERNET_HOST: &str = "mx1.fabrikam.com";
/// Another domain with the same MX.
pub const FORWARD_DOMAIN: &str = "tailspintoys.com";

/// The recipients of the demo.
const RECIPIENTS: &str = "address,type,target
julie@contoso.com,on-premises,
david@contoso.com,cloud,
kate@contoso.com,forward,kate@fabrikam.com
sales@contoso.com,group,julie@contoso.com david@contoso.com
info@contoso.com,alias,julie@contoso.com
";

/// The world, running.
#[derive(Debug)]
pub struct World {
    /// The relay.
    pub daemon: Daemon,
    /// Where the Internet reaches the relay.
    pub internet_door: SocketAddr,
    /// Where the organization's own servers and devices reach it.
    pub own_door: SocketAddr,
    /// The organization's mail server on-premises.
    pub on_premises: Site,
    /// The cloud service.
    pub cloud: Site,
    /// A mail server on the Internet.
    pub internet: Site,
    /// The partner, in a [living](Plan::living) world.
    pub partner: Option<Arc<Site>>,
    /// The relay's console, in a [living](Plan::living) world.
    pub console: Option<Console>,
    /// What the servers got, as it arrives.
    pub arrivals: Arrivals,
    /// The world's certificate authority.
    pub authority: Authority,
    /// Configuration, certificates, directory and spool.
    pub folder: PathBuf,
    _dns: Serving,
}

/// How a world is to be.
pub struct Plan<'a> {
    /// Where its files go; made if it is missing, never removed here.
    pub folder: &'a Path,
    /// Where tracking events go.
    pub tracker: Tracker,
    /// Appended to the directory file: lines `address,type,target`.
    pub recipients: &'a str,
    /// Changes the configuration before it is read.
    pub configuration: &'a dyn Fn(String) -> String,
    /// It stays up for a person to look at: see [`living`].
    pub living: bool,
}

impl<'a> Plan<'a> {
    /// A world as the demo shows it.
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, tracker: Tracker::none(), recipients: "", configuration: &|text| text, living: false }
    }
}

impl World {
    /// Makes the world and starts it.
    ///
    /// # Errors
    /// What could not be made: a file, a port, or the relay.
    pub async fn start(plan: Plan<'_>) -> io::Result<Self> {
        let folder = plan.folder;
        std::fs::create_dir_all(folder)?;
        let authority = Authority::new("Causeway demo CA");
        std::fs::write(folder.join("ca.pem"), authority.pem())?;
        let (certificate, key) = authority.issue(&[RELAY]);
        std::fs::write(folder.join("relay.crt"), certificate)?;
        hybrid::write_key(&folder.join("relay.key"), &key)?;
        std::fs::write(folder.join("recipients.csv"), format!("{RECIPIENTS}{}", plan.recipients))?;

        let (arrived, arrivals) = site::arrivals();
        let roots = authority.roots();
        let start = |name: &'static str, place, extensions| {
            Site::start(place, name, authority.identity(&[name]), roots.clone(), extensions, arrived.clone())
        };
        let on_premises = start(ON_PREMISES, "on-premises", site::Behaviour::default()).await?;
        let cloud = start(CLOUD, "cloud", site::Behaviour::default()).await?;
        let internet = start(INTERNET_HOST, "internet", site::Behaviour::default()).await?;

        let partner = match plan.living {
            true => Some(Arc::new(start(living::PARTNER_HOST, "partner", site::Behaviour::default()).await?)),
            false => None,
        };

        let loopback = Ipv4Addr::LOCALHOST.into();
        let zone = Zone::new()
            .mx(INTERNET_DOMAIN, 10, INTERNET_HOST)
            .address(INTERNET_HOST, loopback)
            .address(CLOUD_HOST, loopback)
            .address(ON_PREMISES, loopback)
            .address(living::PARTNER_HOST, loopback);
        let (dns, serving) = zone::serve(zone, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;

        let (internet_door, own_door) = (free_port()?, free_port()?);
        let doors = Doors { internet: internet_door.local_addr()?, own: own_door.local_addr()? };
        let mut text = configuration(&doors, dns, &on_premises, &cloud, &internet);
        let extras = partner.as_ref().map(|partner| living::Extras::new(partner.address, "ca.pem")).transpose()?;
        if let Some(extras) = &extras {
            text = extras.written_into(&text)?;
        }
        let text = (plan.configuration)(text);
        let path = folder.join("causeway.toml");
        std::fs::write(&path, &text)?;
        let config = config::parse(&text, &path).map_err(io::Error::other)?;
        let mut ready = HashMap::from([(doors.internet, internet_door), (doors.own, own_door)]);
        let mut listeners = HashMap::new();
        for address in config.receive_connectors.iter().flat_map(|connector| connector.listen.iter().copied()) {
            if let Some(listener) = ready.remove(&address) {
                listeners.insert(address, listener);
            }
        }
        let (daemon, console) = relay(config, text, listeners, plan.tracker, extras).await?;
        Ok(Self {
            daemon,
            internet_door: doors.internet,
            own_door: doors.own,
            on_premises,
            cloud,
            internet,
            partner,
            console,
            arrivals,
            authority,
            folder: folder.to_owned(),
            _dns: serving,
        })
    }

    /// A trickle of mail, ready to run; `None`: the world is not a living one.
    pub fn trickle(&self) -> Option<Trickle> {
        let sender =
            |place: Place, door| (place, (Client::new(place.host()).with_tls(None, RELAY, Demand::Nothing), door));
        let ways = [sender(Place::Internet, self.internet_door), sender(Place::OnPremises, self.own_door)];
        Some(Trickle::new(ways.into(), Arc::clone(self.partner.as_ref()?)))
    }

    /// Stops the relay, gracefully.
    pub async fn stop(mut self) {
        self.daemon.stop(Duration::from_secs(10)).await;
    }
}

/// Starts a relay, with what a living world has beside it.
async fn relay(
    config: config::Config,
    text: String,
    mut listeners: HashMap<SocketAddr, StdListener>,
    tracker: Tracker,
    extras: Option<living::Extras>,
) -> io::Result<(Daemon, Option<Console>)> {
    let tracker = match &config.tracking {
        Some(settings) => tracker.and_files(settings)?,
        None => tracker,
    };
    if let Some(extras) = extras {
        listeners.insert(extras.listener.local_addr()?, extras.listener);
    }
    let daemon = Daemon::start_with(config.clone(), text, listeners, tracker).await.map_err(io::Error::other)?;
    Ok((daemon, Console::of(&config)?))
}

struct Doors {
    internet: SocketAddr,
    own: SocketAddr,
}

/// A listener on a port that the system chose, ready for the relay.
fn free_port() -> io::Result<StdListener> {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The relay's configuration, scenario 3: the MX names the on-premises side, Internet mail leaves directly.
fn configuration(doors: &Doors, dns: SocketAddr, on_premises: &Site, cloud: &Site, internet: &Site) -> String {
    format!(
        r#"hostname = "{RELAY}"
postmaster = "julie@{DOMAIN}"
shutdown_grace = "5s"

[spool]
path = "spool"
min_free_space = "1MiB"

[tracking]
path = ""                                  # the demo shows its events itself

[admin]
listen = ""

[dns]
servers = ["{dns}"]
private_targets = ["127.0.0.0/8"]          # in this world the Internet is on loopback

[hybrid]
side = "on-premises"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "contoso.mail.onmicrosoft.com"
internet = "direct"

[[accepted_domain]]
name = "{DOMAIN}"
type = "authoritative"

[[directory]]
kind = "file"
path = "recipients.csv"

[[receive_connector]]
name = "internet"
listen = ["{internet_door}"]
origin = "internet"
tls = "offer"
certificate = "relay.crt"
key = "relay.key"
max_connections_per_ip = 5000              # everybody is 127.0.0.1 here

[[receive_connector]]
name = "own-servers"
listen = ["{own_door}"]
remote_ips = ["127.0.0.0/8"]
origin = "on-premises"
tls = "offer"
certificate = "relay.crt"
key = "relay.key"
max_connections_per_ip = 5000

[[send_connector]]
name = "to-on-premises"
smart_hosts = ["{ON_PREMISES}:{on_premises_port}"]
tls = "domain"
tls_domain = ["{ON_PREMISES}"]
ca_file = "ca.pem"
certificate = "relay.crt"
key = "relay.key"

[[send_connector]]
name = "to-cloud"
address_spaces = ["contoso.mail.onmicrosoft.com"]
smart_hosts = ["{CLOUD_HOST}:{cloud_port}"]
tls = "domain"
tls_domain = ["{CLOUD}"]
ca_file = "ca.pem"
certificate = "relay.crt"
key = "relay.key"

[[send_connector]]
name = "to-internet"
address_spaces = ["*"]
tls = "opportunistic"
port = {internet_port}
"#,
        internet_door = doors.internet,
        own_door = doors.own,
        on_premises_port = on_premises.address.port(),
        cloud_port = cloud.address.port(),
        internet_port = internet.address.port(),
    )
}
