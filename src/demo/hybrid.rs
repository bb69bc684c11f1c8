//! Both premises in one process: a relay on each, the mailbox servers behind them, a host on the Internet.
//!
//! Each of the five hosts has its own certificate of the world's authority and proves it to every other; the world's DNS
//! has their addresses, and its MX names the relay that the scenario says. The relays share nothing but the text
//! of the recipient directory: each has its folder, spool and configuration, the one the mirror image of the other.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::client::{Client, Sent};
use super::hops::Place;
use super::living::{Console, Extras, PARTNER_HOST};
use super::mail::{DAVID, JULIE, KATE, LISA, Mail, SALES, Scenario};
use super::site::{self, Arrivals, Behaviour, Site};
use super::trickle::Trickle;
use super::{CLOUD, CLOUD_HOST, CLOUD_MAILBOXES, DOMAIN, FORWARD_DOMAIN, INTERNET_DOMAIN, INTERNET_HOST};
use super::{ON_PREMISES, RELAY, ROUTING_DOMAIN, free_port};
use crate::config;
use crate::daemon::Daemon;
use crate::dns::zone::{self, Serving, Zone};
use crate::dns::{Answer, Resolve as _, Resolver};
use crate::message::Domain;
use crate::outcome::tracking::Tracker;
use crate::tls::authority::Authority;
use crate::tls::{Demand, Identity, Names};

/// How often [`HybridWorld::is_quiet`] is asked while somebody waits for it.
const POLL: Duration = Duration::from_millis(2);

/// The world, running.
#[derive(Debug)]
pub struct HybridWorld {
    /// Which of the four.
    pub scenario: &'static Scenario,
    /// The relay on-premises and the mailbox server behind it.
    pub on_premises: Premises,
    /// The relay in the cloud and the mailbox service behind it.
    pub cloud: Premises,
    /// A mail server on the Internet.
    pub internet: Site,
    /// The partner, in a [living](Plan::living) world.
    pub partner: Option<Arc<Site>>,
    /// What the servers got, as it arrives.
    pub arrivals: Arrivals,
    /// The world's certificate authority.
    pub authority: Authority,
    /// The authority, the servers' certificates, and a folder for each relay.
    pub folder: PathBuf,
    posted: AtomicUsize,
    senders: HashMap<Place, Client>,
    resolver: Resolver,
    _dns: Serving,
}

/// One side of the world.
#[derive(Debug)]
pub struct Premises {
    /// The relay.
    pub relay: Daemon,
    /// Where the Internet and the other premises' relay reach it; the certificate tells them apart.
    pub door: SocketAddr,
    /// Where its own mailbox server reaches it.
    pub own_door: SocketAddr,
    /// The server with this side's mailboxes.
    pub mailboxes: Site,
    /// The relay's configuration.
    pub configuration: PathBuf,
    /// Its console, in a [living](Plan::living) world.
    pub console: Option<Console>,
}

/// How a world is to be.
pub struct Plan<'a> {
    /// Which of the four.
    pub scenario: &'static Scenario,
    /// Where its files go; made if it is missing, never removed here.
    pub folder: &'a Path,
    /// Where tracking events go, for the relay at each place.
    pub tracker: &'a dyn Fn(Place) -> Tracker,
    /// Appended to the directory file of the relay at each place: lines `address,type,target`.
    pub recipients: &'a dyn Fn(Place) -> String,
    /// Changes the configuration of the relay at each place before it is read.
    pub configuration: &'a dyn Fn(Place, String) -> String,
    /// It stays up for a person to look at: see [`super::living`].
    pub living: bool,
}

impl<'a> Plan<'a> {
    /// A world as the scenario says.
    pub fn new(scenario: &'static Scenario, folder: &'a Path) -> Self {
        Self {
            scenario,
            folder,
            tracker: &|_| Tracker::none(),
            recipients: &|_| String::new(),
            configuration: &|_, configuration| configuration,
            living: false,
        }
    }
}

/// A message that was sent into the world.
#[derive(Debug)]
pub struct Posted {
    /// Its `Message-ID`, as tracking events name it.
    pub message_id: String,
    /// Its text, byte for byte.
    pub content: String,
    /// What the relay answered, and what it proved.
    pub sent: Sent,
}

impl HybridWorld {
    /// Makes the world and starts it.
    ///
    /// # Errors
    /// What could not be made: a file, a port, or a relay.
    pub async fn start(plan: Plan<'_>) -> io::Result<Self> {
        let folder = plan.folder;
        fs::create_dir_all(folder)?;
        let authority = Authority::new("Causeway demo CA");
        fs::write(folder.join("ca.pem"), authority.pem())?;
        let mut identities = HashMap::new();
        for (place, names) in [
            (Place::Internet, &[INTERNET_HOST][..]),
            (Place::OnPremises, &[ON_PREMISES]),
            (Place::P, &[RELAY]),
            (Place::C, &[CLOUD, CLOUD_HOST]),
            (Place::Cloud, &[CLOUD_MAILBOXES]),
        ] {
            let (certificate, key) = authority.issue(names);
            fs::write(folder.join(format!("{}.crt", place.host())), &certificate)?;
            write_key(&folder.join(format!("{}.key", place.host())), &key)?;
            let identity = Identity::from_pem(&certificate, &key).map_err(io::Error::other)?;
            identities.insert(place, identity);
        }

        let (arrived, arrivals) = site::arrivals();
        let start = |place: Place, name| {
            let (identity, roots) = (identities[&place].clone(), authority.roots());
            Site::start(name, place.host(), identity, roots, Behaviour::default(), arrived.clone())
        };
        let partner = match plan.living {
            true => {
                let identity = authority.identity(&[PARTNER_HOST]);
                let (roots, behaviour) = (authority.roots(), Behaviour::default());
                let site = Site::start("partner", PARTNER_HOST, identity, roots, behaviour, arrived.clone());
                Some(Arc::new(site.await?))
            }
            false => None,
        };
        let internet = start(Place::Internet, "internet").await?;
        let server = start(Place::OnPremises, "on-premises").await?;
        let service = start(Place::Cloud, "cloud").await?;

        let mut zone = Zone::new().mx(DOMAIN, 10, plan.scenario.mx.host());
        for domain in [INTERNET_DOMAIN, FORWARD_DOMAIN] {
            zone = zone.mx(domain, 10, INTERNET_HOST);
        }
        for place in identities.keys() {
            zone = zone.address(place.host(), Ipv4Addr::LOCALHOST.into());
        }
        zone = zone.address(PARTNER_HOST, Ipv4Addr::LOCALHOST.into());
        let (dns, serving) = zone::serve(zone, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;

        let doors = [Doors::new()?, Doors::new()?];
        let common = Common { scenario: plan.scenario, dns, internet: internet.address };
        let [on_premises, cloud] = [
            Mirror::on_premises(&doors[0], &doors[1], server.address),
            Mirror::cloud(&doors[1], &doors[0], service.address),
        ];
        let texts = [common.configuration(&on_premises), common.configuration(&cloud)];
        let [on_premises_doors, cloud_doors] = doors;
        let [on_premises_text, cloud_text] = texts;
        let senders = senders(&authority, &identities, plan.scenario)?;
        let near = partner.as_ref().map(|partner| partner.address);
        Ok(Self {
            scenario: plan.scenario,
            on_premises: Premises::start(&plan, Place::P, on_premises_text, on_premises_doors, server, near).await?,
            cloud: Premises::start(&plan, Place::C, cloud_text, cloud_doors, service, near).await?,
            internet,
            partner,
            arrivals,
            authority,
            folder: folder.to_owned(),
            posted: AtomicUsize::new(0),
            senders,
            resolver: Resolver::new(&[dns]).map_err(io::Error::other)?,
            _dns: serving,
        })
    }

    /// Sends a message as the host at its place would: the Internet by the MX of the organization's domain, a mailbox
    /// server to the relay before it.
    ///
    /// # Errors
    /// What the socket said, an answer that ends the session, or a relay that did not prove who it is.
    pub async fn post(&self, mail: &Mail) -> io::Result<Posted> {
        let number = self.posted.fetch_add(1, Ordering::Relaxed);
        let message_id = format!("<{number}.{}@{}>", mail.name.replace([' ', ',', '\''], "-"), mail.from.host());
        let content = content(mail, &message_id);
        let door = self.door_of(mail.from).await?;
        let sender = self.senders.get(&mail.from).ok_or_else(|| io::Error::other("nobody sends from there"))?;
        let sent = sender.send(door, mail.sender, mail.to, "", &content).await?;
        Ok(Posted { message_id, content, sent })
    }

    /// Where the host at this place brings its mail.
    async fn door_of(&self, place: Place) -> io::Result<SocketAddr> {
        match place {
            Place::OnPremises => Ok(self.on_premises.own_door),
            Place::Cloud => Ok(self.cloud.own_door),
            Place::Internet | Place::P | Place::C => self.mx().await,
        }
    }

    /// The door that the MX of the organization's domain leads to.
    async fn mx(&self) -> io::Result<SocketAddr> {
        let domain = Domain::parse(DOMAIN).map_err(io::Error::other)?;
        let answer = self.resolver.mx(&domain).await;
        let Answer::Found(found) = &answer else { return Err(io::Error::other(format!("the MX: {answer:?}"))) };
        let host = found.iter().min_by_key(|mx| mx.preference).and_then(|mx| mx.host.as_ref());
        // The ports of this world are not those of the Internet: the name decides.
        match host.and_then(|host| Place::of_host(host.as_str())) {
            Some(Place::P) => Ok(self.on_premises.door),
            Some(Place::C) => Ok(self.cloud.door),
            _ => Err(io::Error::other(format!("the MX names {host:?}"))),
        }
    }

    /// True if no message waits in either relay.
    pub fn is_quiet(&self) -> bool {
        // A message is in the next relay before it has left the last one. Looking twice at each, one after the other,
        // sees one that moves between the looks.
        let relays = [&self.on_premises.relay, &self.cloud.relay];
        relays.iter().chain(&relays).all(|daemon| daemon.relay().waiting() == 0)
    }

    /// Waits until no message waits in either relay. False: they still do when `patience` ends.
    pub async fn quiet(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while !self.is_quiet() {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    /// A trickle of mail, ready to run; `None`: the world is not a living one.
    ///
    /// # Errors
    /// Nobody knows where the MX leads.
    pub async fn trickle(&self) -> io::Result<Option<Trickle>> {
        let Some(partner) = &self.partner else { return Ok(None) };
        let mut ways = HashMap::new();
        for (place, client) in &self.senders {
            ways.insert(*place, (client.clone(), self.door_of(*place).await?));
        }
        Ok(Some(Trickle::new(ways, Arc::clone(partner))))
    }

    /// Stops both relays, gracefully.
    pub async fn stop(mut self) {
        let grace = Duration::from_secs(10);
        tokio::join!(self.on_premises.relay.stop(grace), self.cloud.relay.stop(grace));
    }
}

impl Premises {
    async fn start(
        plan: &Plan<'_>,
        place: Place,
        mut text: String,
        doors: Doors,
        mailboxes: Site,
        partner: Option<SocketAddr>,
    ) -> io::Result<Self> {
        let folder = plan.folder.join(place.word());
        fs::create_dir_all(&folder)?;
        let recipients = format!("{}{}", recipients(), (plan.recipients)(place));
        fs::write(folder.join("recipients.csv"), recipients)?;
        let extras = partner.map(|partner| Extras::new(partner, "../ca.pem")).transpose()?;
        if let Some(extras) = &extras {
            text = extras.written_into(&text)?;
        }
        let text = (plan.configuration)(place, text);
        let configuration = folder.join("causeway.toml");
        fs::write(&configuration, &text)?;
        let config = config::parse(&text, &configuration).map_err(io::Error::other)?;
        let (door, own_door) = (doors.common.local_addr()?, doors.own.local_addr()?);
        let listeners = HashMap::from([(door, doors.common), (own_door, doors.own)]);
        let (relay, console) = super::relay(config, text, listeners, (plan.tracker)(place), extras).await?;
        Ok(Self { relay, door, own_door, mailboxes, configuration, console })
    }
}

/// A relay's listeners, bound before any configuration is written, because each names the other's.
struct Doors {
    common: StdListener,
    own: StdListener,
}

impl Doors {
    fn new() -> io::Result<Self> {
        Ok(Self { common: free_port()?, own: free_port()? })
    }
}

/// Key files are for the relay alone.
pub(super) fn write_key(path: &Path, key: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(key.as_bytes())
}

/// Who sends from where, and what each demands of the relay it speaks to.
fn senders(
    authority: &Authority,
    identities: &HashMap<Place, Identity>,
    scenario: &Scenario,
) -> io::Result<HashMap<Place, Client>> {
    let mut senders = HashMap::new();
    for (place, relay) in [(Place::Internet, scenario.mx), (Place::OnPremises, Place::P), (Place::Cloud, Place::C)] {
        let names =
            Names::new(vec![relay.proves().to_owned()]).ok_or_else(|| io::Error::other("a relay has a name"))?;
        let demand = Demand::Domain(authority.roots(), names);
        senders.insert(place, Client::new(place.host()).with_tls(identities.get(&place), relay.host(), demand));
    }
    Ok(senders)
}

/// The recipients, the same on both sides.
fn recipients() -> String {
    format!(
        "address,type,target\n{JULIE},on-premises,\n{DAVID},cloud,\n{LISA},cloud,\n\
         {KATE},forward,kate@{FORWARD_DOMAIN}\n{SALES},group,{JULIE} {DAVID}\ninfo@{DOMAIN},alias,{JULIE}\n"
    )
}

/// A message with the organization's fields in its header. From inside they are the organization's own; from the
/// Internet they are forged.
fn content(mail: &Mail, message_id: &str) -> String {
    let from = if mail.sender.is_empty() { format!("postmaster@{}", mail.from.host()) } else { mail.sender.to_owned() };
    format!(
        "From: <{from}>\r\nTo: <{}>\r\nSubject: {}\r\nMessage-ID: {message_id}\r\n\
         Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\
         X-MS-Exchange-Organization-AuthAs: Internal\r\n\
         X-MS-Exchange-Organization-AuthSource: {}\r\n\
         X-MS-Exchange-CrossPremises-SCL:\r\n\t-1\r\n\
         X-Kept: a field like any other\r\n\
         \r\n\
         This is \"{}\".\r\n.\r\n..two dots\r\n",
        mail.to.join(">, <"),
        mail.name,
        mail.from.host(),
        mail.name,
    )
}

/// What both configurations agree on.
struct Common {
    scenario: &'static Scenario,
    dns: SocketAddr,
    internet: SocketAddr,
}

/// What is one relay's, and mirrored in the other's.
struct Mirror {
    hostname: &'static str,
    /// The lines of `[hybrid]` that only this side has.
    hybrid: fn(&Scenario) -> String,
    /// `on-premises` or `cloud`: this side, and the other.
    own: &'static str,
    other: &'static str,
    door: SocketAddr,
    own_door: SocketAddr,
    /// The receive connector of this side's mailbox server, and what that server is called.
    from_mailboxes: &'static str,
    mailboxes: &'static str,
    mailboxes_at: SocketAddr,
    /// The other relay: its host, the name it proves, its door.
    relay: &'static str,
    relay_proves: &'static str,
    relay_at: SocketAddr,
}

impl Mirror {
    fn on_premises(own: &Doors, other: &Doors, mailboxes_at: SocketAddr) -> Self {
        Self {
            hostname: RELAY,
            hybrid: |scenario| format!("internet = \"{}\"", scenario.on_premises_internet),
            own: "on-premises",
            other: "cloud",
            door: address(&own.common),
            own_door: address(&own.own),
            from_mailboxes: "from-on-premises",
            mailboxes: ON_PREMISES,
            mailboxes_at,
            relay: CLOUD_HOST,
            relay_proves: CLOUD,
            relay_at: address(&other.common),
        }
    }

    fn cloud(own: &Doors, other: &Doors, mailboxes_at: SocketAddr) -> Self {
        Self {
            hostname: CLOUD_HOST,
            hybrid: |scenario| {
                let (internet, first) = (scenario.cloud_internet, scenario.inbound_first_hop);
                format!("internet = \"{internet}\"\ninbound_first_hop = \"{first}\"")
            },
            own: "cloud",
            other: "on-premises",
            door: address(&own.common),
            own_door: address(&own.own),
            from_mailboxes: "from-cloud-mailboxes",
            mailboxes: CLOUD_MAILBOXES,
            mailboxes_at,
            relay: RELAY,
            relay_proves: RELAY,
            relay_at: address(&other.common),
        }
    }
}

/// Mail to hybrid routing addresses never leaves for the Internet, whoever answers it.
fn spaces(towards: &str) -> String {
    if towards == "cloud" { format!("[\"{ROUTING_DOMAIN}\"]") } else { "[]".to_owned() }
}

fn address(listener: &StdListener) -> SocketAddr {
    listener.local_addr().expect("a listener that was bound has an address")
}

impl Common {
    /// One relay's configuration.
    fn configuration(&self, side: &Mirror) -> String {
        format!(
            r#"hostname = "{hostname}"
postmaster = "{JULIE}"
shutdown_grace = "5s"

[spool]
path = "spool"
min_free_space = "1MiB"

[tracking]
path = ""                                  # the world shows its events itself

[admin]
listen = ""

[dns]
servers = ["{dns}"]
private_targets = ["127.0.0.0/8"]          # in this world the Internet is on loopback

[hybrid]
side = "{own}"
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "{ROUTING_DOMAIN}"
{hybrid}

[[accepted_domain]]
name = "{DOMAIN}"

[[directory]]
kind = "file"
path = "recipients.csv"

[[receive_connector]]
name = "internet"
listen = ["{door}"]
origin = "internet"
tls = "offer"
certificate = "../{hostname}.crt"
key = "../{hostname}.key"
max_connections_per_ip = 5000              # everybody is 127.0.0.1 here

[[receive_connector]]
name = "from-{other}"                      # the relay there: the same door, told apart by its certificate
listen = ["{door}"]
origin = "{other}"
tls = "offer"
certificate = "../{hostname}.crt"
key = "../{hostname}.key"
tls_domain = ["{relay_proves}"]
client_ca_file = "../ca.pem"
internal = true
originator_org = ["{DOMAIN}"]
max_connections_per_ip = 5000

[[receive_connector]]
name = "{from_mailboxes}"
listen = ["{own_door}"]
origin = "{own}"
tls = "require"
certificate = "../{hostname}.crt"
key = "../{hostname}.key"
tls_domain = ["{mailboxes}"]
client_ca_file = "../ca.pem"
internal = true
max_connections_per_ip = 5000

[[send_connector]]
name = "to-{own}"                          # the mailboxes here
address_spaces = {own_spaces}
smart_hosts = ["{mailboxes}:{mailboxes_port}"]
tls = "domain"
tls_domain = ["{mailboxes}"]
ca_file = "../ca.pem"
certificate = "../{hostname}.crt"
key = "../{hostname}.key"
internal = true

[[send_connector]]
name = "to-{other}"                        # the relay there
address_spaces = {other_spaces}
smart_hosts = ["{relay}:{relay_port}"]
tls = "domain"
tls_domain = ["{relay_proves}"]
ca_file = "../ca.pem"
certificate = "../{hostname}.crt"
key = "../{hostname}.key"
internal = true

[[send_connector]]
name = "to-internet"
address_spaces = ["*"]
tls = "opportunistic"
port = {internet_port}
"#,
            hostname = side.hostname,
            dns = self.dns,
            own = side.own,
            other = side.other,
            own_spaces = spaces(side.own),
            other_spaces = spaces(side.other),
            hybrid = (side.hybrid)(self.scenario),
            door = side.door,
            own_door = side.own_door,
            from_mailboxes = side.from_mailboxes,
            mailboxes = side.mailboxes,
            mailboxes_port = side.mailboxes_at.port(),
            relay = side.relay,
            relay_proves = side.relay_proves,
            relay_port = side.relay_at.port(),
            internet_port = self.internet.port(),
        )
    }
}
