//! Puts the parts together: signals, reload, its user, a graceful end.
//!
//! Order at start: hold signals back, read the configuration, bind the ports (as root, perhaps), become the user, read the
//! files again as that user, install the signal handlers, open the spool, open the doors. Deferred mail is indexed while the
//! doors are open already.
//!
//! A reload replaces configuration, directory and certificates whole, or not at all. What was read stays in use
//! until what is new is known to be good.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use nix::errno::Errno;
use socket2::{Domain as SocketDomain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use crate::accept::{self, ConnectionLimits, Door};
use crate::config::{self, Config, Problems};
use crate::deliver::{Deliverer, Issuers};
use crate::directory::Directory;
use crate::directory::users::UserFiles;
use crate::dns::Resolver;
use crate::message::visit;
use crate::outcome::tracking::Tracker;
use crate::relay::{Relay, Snapshot};
use crate::spool::{OpenError, Settings, Spool};
use crate::tls::{Identity, Roots};

mod admin;
mod certificates;
mod log;
mod manager;
mod otlp;
mod privileges;
mod signals;
mod visit_key;
mod watch_files;

use admin::{AdminDoor, Prepared};
use certificates::Certificates;
pub use log::start as start_log;
use signals::Signals;
use watch_files::Watcher;

/// How many connections wait in the kernel to be accepted.
const BACKLOG: i32 = 1024;

/// How often the dates of certificates are looked at.
const LOOK_AT_DATES: Duration = Duration::from_secs(3600);

/// So long a disk may take at the second signal.
const LAST_FLUSH: Duration = Duration::from_secs(1);

/// The pause before a timekeeper that failed begins again.
const TIMEKEEPER_REST: Duration = Duration::from_secs(1);

/// Why the daemon did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error("{0}")]
    Configuration(Problems),
    /// The configuration is right, but not for the user that the daemon becomes.
    #[error("as user \"{user}\", which the daemon becomes once its ports are bound:\n{problems}")]
    NotForUser {
        /// Who.
        user: String,
        /// What that user cannot do.
        problems: Problems,
    },
    /// A port cannot be bound.
    #[error("cannot listen on {address}: {error}{hint}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The user cannot be become.
    #[error("cannot become user \"{user}\": {why}")]
    User {
        /// Who.
        user: String,
        /// What went wrong.
        why: String,
    },
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(#[from] OpenError),
    /// DNS cannot be used.
    #[error("dns: {0}")]
    Dns(String),
    /// Something of the system.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

impl Error {
    /// The machine lacks IPv6 for this listener, as opposed to a slip in its address.
    fn is_missing_ipv6(&self) -> bool {
        matches!(self, Self::Listen { address, error, .. } if is_missing_ipv6(*address, error))
    }
}

/// `[::]` and `[::1]` exist on every machine that has IPv6. Any other address that is missing may be a slip.
fn is_missing_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let IpAddr::V6(ip) = address.ip() else { return false };
    let missing = matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL));
    missing && (ip.is_unspecified() || ip.is_loopback())
}

/// Reads the configuration at `path` and runs until SIGTERM or SIGINT.
///
/// # Errors
/// Why it could not start.
pub fn run(path: &Path) -> Result<(), Error> {
    // First of all, while there is one thread: the others inherit it.
    let held = signals::hold().map_err(|error| Error::System("signals", error))?;
    let text = config::read(path).map_err(Error::Configuration)?;
    let (config, warnings) = config::parse_with_warnings(&text, path).map_err(Error::Configuration)?;
    log::start(&config.log);
    warn_of(&warnings);
    privileges::take_descriptors();
    let listeners = bind_all(&config)?;
    let (text, config) = match &config.user {
        Some(user) => {
            privileges::become_user(user).map_err(|why| Error::User { user: user.clone(), why })?;
            // Keys that only root could read would be missed at the first reload: better now.
            let not_for_user = |problems| Error::NotForUser { user: user.clone(), problems };
            let text = config::read(path).map_err(not_for_user)?;
            let config = config::parse(&text, path).map_err(not_for_user)?;
            (text, config)
        }
        None => {
            privileges::umask();
            (text, config)
        }
    };
    // No thread was started before this line: all of them have the user's rights.
    let _traces = otlp::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::System("the runtime", error))?;
    let ended = runtime.block_on(async {
        let signals = Signals::catch(held).map_err(|error| Error::System("signals", error))?;
        let daemon = Daemon::start(config, text, listeners).await?;
        daemon.obey(signals).await
    });
    // What still waits for a disk that does not answer is not waited for.
    runtime.shutdown_background();
    ended
}

/// A running relay with its listeners.
#[derive(Debug)]
pub struct Daemon {
    relay: Relay,
    config: Arc<Config>,
    /// When the files it names began to be read.
    read_at: SystemTime,
    /// The configuration as it was read: files it names are read again without it.
    text: String,
    spool: Spool,
    /// Who issued the certificates that were seen.
    issuers: Arc<Issuers>,
    /// What was said about our own.
    certificates: Certificates,
    doors: HashMap<SocketAddr, OpenDoor>,
    /// Doors that a reload closed: their last sessions are waited for at the end.
    closed: Vec<JoinHandle<()>>,
    /// Sessions are cut off.
    abandon: watch::Sender<bool>,
    limits: ConnectionLimits,
    admin: Option<AdminDoor>,
    timekeeper: JoinHandle<()>,
    recovery: JoinHandle<()>,
}

#[derive(Debug)]
struct OpenDoor {
    bound: SocketAddr,
    door: watch::Sender<Arc<Door>>,
    close: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// A listener for every listen address of `config`: what the service manager passes in, the rest is bound. On a machine
/// without IPv6 `[::]` and `[::1]` are left out with a warning, if anything else is left to listen on.
///
/// # Errors
/// The first that cannot be bound, and why.
pub fn bind_all(config: &Config) -> Result<HashMap<SocketAddr, StdListener>, Error> {
    let mut passed = manager::sockets().map_err(|error| Error::System("a socket of the service manager", error))?;
    let mut listeners = HashMap::new();
    let mut without_ipv6 = None;
    for address in listen_addresses(config) {
        let bound = match passed.remove(&address) {
            Some(listener) => Ok(listener),
            None => bind(address),
        };
        match bound {
            Ok(listener) => _ = listeners.insert(address, listener),
            Err(error) if error.is_missing_ipv6() => {
                warn!("{error}");
                without_ipv6 = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = without_ipv6
        && listeners.is_empty()
    {
        return Err(error);
    }
    if let Some(address) = passed.into_keys().min() {
        // Whoever connects there would wait for ever.
        let error =
            io::Error::other("the service manager passes a socket for it, and no receive_connector listens there");
        return Err(Error::Listen {
            address,
            error,
            hint: "; write it into listen, or take it out of the socket unit",
        });
    }
    Ok(listeners)
}

fn listen_addresses(config: &Config) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> =
        config.receive_connectors.iter().flat_map(|connector| connector.listen.iter().copied()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn bind(address: SocketAddr) -> Result<StdListener, Error> {
    let bound = || -> io::Result<StdListener> {
        let socket = Socket::new(SocketDomain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // 0.0.0.0:25 and [::]:25 are two listeners.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bound().map_err(|error| {
        let hint = match error.kind() {
            _ if is_missing_ipv6(address, &error) => "; this machine has no IPv6",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need root (then set `user`) or CAP_NET_BIND_SERVICE",
            io::ErrorKind::AddrInUse => "; another program listens there",
            io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
            _ => "",
        };
        Error::Listen { address, error, hint }
    })
}

impl Daemon {
    /// Starts a relay with these listeners, which [`bind_all`] made of the same configuration.
    ///
    /// # Errors
    /// Why it could not start.
    pub async fn start(
        config: Config,
        text: String,
        listeners: HashMap<SocketAddr, StdListener>,
    ) -> Result<Self, Error> {
        let tracker = match &config.tracking {
            Some(settings) => Tracker::open(settings).map_err(|error| Error::System("tracking", error))?,
            None => Tracker::none(),
        };
        Self::start_with(config, text, listeners, tracker).await
    }

    /// The same, with the events going where the caller says. A listener for `[admin]` may be among the listeners.
    ///
    /// # Errors
    /// Why it could not start.
    pub async fn start_with(
        config: Config,
        text: String,
        mut listeners: HashMap<SocketAddr, StdListener>,
        tracker: Tracker,
    ) -> Result<Self, Error> {
        // With port 0 a connector may have the same address; then the listener is the connector's.
        let admin_listener = config.admin.as_ref().filter(|admin| !listen_addresses(&config).contains(&admin.listen));
        let admin_listener = admin_listener.and_then(|admin| listeners.remove(&admin.listen));
        let read_at = SystemTime::now();
        let config = Arc::new(config);
        let bound: Vec<SocketAddr> = listeners.values().filter_map(|listener| listener.local_addr().ok()).collect();
        let directory = load_directory(&config, None);
        let settings = Settings { path: config.spool.path.clone(), min_free_space: config.spool.min_free_space };
        let opened = tokio::task::spawn_blocking(move || Spool::open(settings)).await;
        let (spool, recovery) = opened.map_err(|error| Error::System("the spool", io::Error::other(error)))??;
        // The folder is there now, and ours.
        let issuers = Arc::new(Issuers::load(config.spool.path.join("issuers")));
        let visits = visit_key::open(&config.spool.path).map_err(|error| Error::System("the key of visits", error))?;
        let users = load_users(&config, &UserFiles::default());
        let snapshot = snapshot(&config, directory, users, bound, Arc::new(visits), &issuers, None)?;
        let admin = Prepared::new(config.admin.as_ref(), None, admin_listener)?;
        let relay = Relay::new(snapshot, spool.clone(), tracker);
        let timekeeper = tokio::spawn({
            let relay = relay.clone();
            async move {
                // Whatever it meets in the queue is not to be the last thing that is looked at.
                let mut task = JoinSet::new();
                loop {
                    let relay = relay.clone();
                    task.spawn(async move { relay.keep_time().await });
                    match task.join_next().await {
                        Some(Err(error)) => error!(%error, "the timekeeper has failed; it begins again"),
                        _ => return,
                    }
                    tokio::time::sleep(TIMEKEEPER_REST).await;
                }
            }
        });
        let recovery = tokio::spawn({
            let relay = relay.clone();
            async move {
                if let Err(error) = tokio::task::spawn_blocking(move || relay.resume(recovery)).await {
                    error!(%error, "the spool could not be read; what waits there waits for the next start");
                }
            }
        });
        let limits = ConnectionLimits::new(&relay);
        let mut daemon = Self {
            relay,
            config: Arc::clone(&config),
            read_at,
            text,
            spool,
            issuers,
            certificates: Certificates::default(),
            doors: HashMap::new(),
            closed: Vec::new(),
            abandon: watch::channel(false).0,
            limits,
            admin: None,
            timekeeper,
            recovery,
        };
        for (address, listener) in listeners {
            let listener = TcpListener::from_std(listener).map_err(|error| Error::System("a listener", error))?;
            daemon.open(address, listener, &config).map_err(|error| Error::System("a listener", error))?;
        }
        // Last: who asks whether the doors are open hears the truth.
        daemon.admin = admin.adopt(None, &daemon.relay, &daemon.limits);
        Ok(daemon)
    }

    /// Where it listens: the address as configured, and as bound (the port, where 0 was configured).
    pub fn addresses(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.doors.iter().map(|(listen, open)| (*listen, open.bound)).collect()
    }

    /// The relay behind the doors.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    fn open(&mut self, address: SocketAddr, listener: TcpListener, config: &Config) -> io::Result<()> {
        let bound = listener.local_addr()?;
        let (door, doors) = watch::channel(Arc::new(Door::new(address, config)));
        let (close, closing) = watch::channel(false);
        let (relay, limits) = (self.relay.clone(), self.limits.clone());
        let task = tokio::spawn(accept::listen(listener, doors, relay, limits, closing, self.abandon.subscribe()));
        info!(address = %bound, "listening");
        self.doors.insert(address, OpenDoor { bound, door, close, task });
        Ok(())
    }

    async fn obey(mut self, signals: Signals) -> Result<(), Error> {
        let Signals { mut term, mut int, mut hup } = signals;
        let mut watcher = Watcher::new(&self.config, self.read_at);
        info!(hostname = %self.config.hostname, version = env!("CARGO_PKG_VERSION"), "causeway is up");
        manager::ready();
        self.certificates.look(&self.config, Timestamp::now()).await;
        let mut dates = tokio::time::interval(LOOK_AT_DATES);
        loop {
            tokio::select! {
                _ = dates.tick() => self.certificates.look_at_dates(&self.config, Timestamp::now()),
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => {
                    info!("SIGHUP: reading the configuration again");
                    self.relay.reopen_tracking();
                    manager::reloading();
                    let reloaded = self.reload();
                    manager::ready();
                    if reloaded {
                        watcher = Watcher::new(&self.config, self.read_at);
                        self.certificates.look(&self.config, Timestamp::now()).await;
                    }
                }
                changed = watcher.changed() => {
                    let names = changed.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
                    info!(files = %names, "files changed: reading them again");
                    if self.reread_lists(&changed) {
                        info!("{names}: looked at again");
                    } else if self.adopt(self.text.clone(), Faulty::LeaveAlone(&names)) {
                        self.certificates.look(&self.config, Timestamp::now()).await;
                    }
                }
            }
        }
        manager::stopping(self.relay.waiting());
        info!("stopping: what is under way is finished, at most within {:?}", self.config.shutdown_grace);
        let grace = self.config.shutdown_grace;
        let spool = self.spool.clone();
        tokio::select! {
            () = self.stop(grace) => return Ok(()),
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        warn!("a second signal: stopping at once");
        // What was delivered is not to be delivered again for the few milliseconds that saying so takes.
        let _ = tokio::time::timeout(LAST_FLUSH, spool.flush()).await;
        Ok(())
    }

    /// Reads the configuration file again. False if it is faulty: then everything stays as it was.
    pub fn reload(&mut self) -> bool {
        match config::read(&self.config.path) {
            Ok(text) => self.adopt(text, Faulty::Refuse),
            Err(problems) => {
                refused(&problems, Faulty::Refuse);
                false
            }
        }
    }

    /// Reads the files that the configuration names again, without the configuration itself: it may be half edited. A
    /// certificate, key or file of roots that is worse than what is in use is left alone until it changes again.
    pub fn reread(&mut self) -> bool {
        self.adopt(self.text.clone(), Faulty::LeaveAlone("all files"))
    }

    /// Reads directories and users files again, if there are no others among `changed`: the configuration, the deliverer and
    /// the doors stay as they are. False: there are others.
    fn reread_lists(&self, changed: &[PathBuf]) -> bool {
        let config = &self.config;
        let users: Vec<&PathBuf> =
            config.receive_connectors.iter().filter_map(|connector| connector.users_file.as_ref()).collect();
        let is_directory = |file: &PathBuf| config.directories.iter().any(|source| source.path == *file);
        // A file may be named twice.
        if !changed.iter().all(|file| is_directory(file) || users.contains(&file)) {
            return false;
        }
        let old = self.relay.snapshot();
        if changed.iter().any(is_directory) {
            self.relay.replace_directory(load_directory(config, Some(&old.directory)));
        }
        if changed.iter().any(|file| users.contains(&file)) {
            self.relay.replace_users(load_users(config, &old.users));
        }
        true
    }

    fn adopt(&mut self, text: String, faulty: Faulty<'_>) -> bool {
        let read_at = SystemTime::now();
        let parsed = config::parse_over(&text, &self.config.path, &self.config, Timestamp::now());
        let (config, warnings, kept) = match parsed {
            Ok((config, warnings, kept)) => (Arc::new(config), warnings, kept),
            Err(problems) => {
                refused(&problems, faulty);
                return false;
            }
        };
        match faulty {
            Faulty::Refuse if !kept.is_empty() => {
                kept.iter().for_each(|why| error!("{why}"));
                error!("the new configuration is faulty; the old one stays");
                return false;
            }
            Faulty::Refuse | Faulty::LeaveAlone(_) => {}
        }
        let but = if kept.is_empty() { "" } else { "; what was refused stays as it was" };
        self.certificates.kept(kept);
        match self.change_to(Arc::clone(&config)) {
            Ok(()) => {
                let waits = waits_for_a_start(&self.config, &config);
                self.config = config;
                self.read_at = read_at;
                self.text = text;
                match faulty {
                    Faulty::Refuse => {
                        warn_of(&warnings);
                        waits.iter().for_each(|what| warn!("{what} has changed: that takes effect at the next start"));
                        info!("the new configuration is in force");
                    }
                    Faulty::LeaveAlone(files) => info!("{files}: looked at again{but}"),
                }
                true
            }
            Err(error) => {
                error!("{error}; the old configuration stays");
                false
            }
        }
    }

    fn change_to(&mut self, config: Arc<Config>) -> Result<(), Error> {
        if config.spool.path != self.config.spool.path {
            return Err(Error::System(
                "[spool] path",
                io::Error::other("cannot change while the daemon runs; restart it"),
            ));
        }
        if config.user != self.config.user {
            return Err(Error::System("user", io::Error::other("cannot change while the daemon runs; restart it")));
        }
        // Everything that can fail comes first; then nothing stands between the old and the new.
        let wanted = listen_addresses(&config);
        let fresh = self.bind_fresh(&wanted, &config)?;
        let admin = Prepared::new(config.admin.as_ref(), self.admin.as_ref(), None)?;
        let old = self.relay.snapshot();
        let directory = load_directory(&config, Some(&old.directory));
        let mut bound: Vec<SocketAddr> = fresh.iter().filter_map(|(_, listener)| listener.local_addr().ok()).collect();
        bound.extend(self.doors.iter().filter(|(listen, _)| wanted.contains(listen)).map(|(_, open)| open.bound));
        let users = load_users(&config, &old.users);
        let visits = match visit_key::read(&config.spool.path) {
            Ok(key) => Arc::new(key),
            // What is under way bears marks of the old one.
            Err(error) => {
                warn!("{error}; the key in use stays until the file changes again");
                Arc::clone(&old.visits)
            }
        };
        let next = snapshot(&config, directory, users, bound, visits, &self.issuers, Some(&old.deliverer))?;
        // The doors first, and each opens for both configurations: a connection in between finds its certificate.
        for (_, open) in self.doors.iter().filter(|(address, _)| wanted.contains(address)) {
            let door = Door::after(&open.door.borrow(), &config);
            open.door.send_replace(Arc::new(door));
        }
        let deliverer = Arc::clone(&next.deliverer);
        let replaced = self.relay.replace(next);
        replaced.deliverer.retire(&deliverer);
        self.closed.retain(|task| !task.is_finished());
        for (address, open) in self.doors.extract_if(|address, _| !wanted.contains(address)) {
            info!(%address, "listening no more");
            open.close.send_replace(true);
            self.closed.push(open.task);
        }
        for (address, listener) in fresh {
            self.open(address, listener, &config).map_err(|error| Error::System("a listener", error))?;
        }
        self.admin = admin.adopt(self.admin.take(), &self.relay, &self.limits);
        Ok(())
    }

    /// A listener for each address of `wanted` that has none yet. What the start left out for want of IPv6 is tried again,
    /// and is no reason to refuse a configuration.
    fn bind_fresh(&self, wanted: &[SocketAddr], config: &Config) -> Result<Vec<(SocketAddr, TcpListener)>, Error> {
        let mut fresh = Vec::new();
        let mut without_ipv6 = None;
        for &address in wanted.iter().filter(|address| !self.doors.contains_key(address)) {
            let was_left_out = listen_addresses(&self.config).contains(&address);
            match bind(address).map_err(|error| as_user(error, config)) {
                Ok(listener) => {
                    let listener =
                        TcpListener::from_std(listener).map_err(|error| Error::System("a listener", error))?;
                    fresh.push((address, listener));
                }
                Err(error) if was_left_out || error.is_missing_ipv6() => {
                    if !was_left_out || !error.is_missing_ipv6() {
                        warn!("{error}");
                    }
                    without_ipv6 = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match without_ipv6 {
            Some(error) if fresh.is_empty() && !wanted.iter().any(|address| self.doors.contains_key(address)) => {
                Err(error)
            }
            _ => Ok(fresh),
        }
    }

    /// Stops accepting, finishes what is under way within `grace`, and makes everything durable.
    pub async fn stop(&mut self, grace: Duration) {
        let deadline = tokio::time::Instant::now() + grace;
        let mut doors = std::mem::take(&mut self.closed);
        for (_, open) in self.doors.drain() {
            open.close.send_replace(true);
            doors.push(open.task);
        }
        // A slow client may use the whole grace. No attempt begins meanwhile: at its end none would be cut off between
        // the next hop's 250 and its record.
        self.relay.begin_stop();
        for mut door in doors {
            if tokio::time::timeout_at(deadline, &mut door).await.is_err() {
                // Gone before the spool closes: a message that a session is putting is taken back.
                self.abandon.send_replace(true);
                let _ = door.await;
            }
        }
        if !self.relay.stop(deadline).await {
            warn!("not all deliveries ended in time; they are tried again at the next start");
        }
        // To the last it said how far the end has come.
        if let Some(admin) = self.admin.take() {
            admin.close().await;
        }
        self.timekeeper.abort();
        self.recovery.abort();
        self.spool.clone().close().await;
        info!(waiting = self.relay.waiting(), "stopped");
    }
}

/// What has changed and is looked at only when the daemon starts.
fn waits_for_a_start(old: &Config, new: &Config) -> Vec<&'static str> {
    let mut waits = Vec::new();
    if old.spool.min_free_space != new.spool.min_free_space {
        waits.push("[spool] min_free_space");
    }
    if old.tracking != new.tracking {
        waits.push("[tracking]");
    }
    if old.log != new.log {
        waits.push("[log]");
    }
    waits
}

/// At a reload root's rights are long gone.
fn as_user(error: Error, config: &Config) -> Error {
    match error {
        Error::Listen { address, error, .. }
            if error.kind() == io::ErrorKind::PermissionDenied && config.user.is_some() =>
        {
            let hint = "; ports below 1024 are bound at the start, before the daemon becomes its user: restart it";
            Error::Listen { address, error, hint }
        }
        error => error,
    }
}

/// What is done with a certificate that is worse than the one in use.
#[derive(Clone, Copy)]
enum Faulty<'a> {
    /// Somebody changed the configuration and is to hear of it: nothing of it is taken.
    Refuse,
    /// These files changed: what is good of them is taken.
    LeaveAlone(&'a str),
}

fn refused(problems: &Problems, faulty: Faulty<'_>) {
    for problem in problems.errors() {
        error!("{problem}");
    }
    match faulty {
        Faulty::Refuse => error!("the new configuration is faulty; the old one stays"),
        Faulty::LeaveAlone(files) => error!("{files}: cannot be used; what is in use stays"),
    }
}

/// What `check` would warn of, a key that everybody can read say: not everybody runs it.
fn warn_of(warnings: &Problems) {
    for warning in warnings.warnings() {
        warn!("{warning}");
    }
}

fn snapshot(
    config: &Arc<Config>,
    directory: Arc<Directory>,
    users: Arc<UserFiles>,
    bound: Vec<SocketAddr>,
    visits: Arc<visit::Key>,
    issuers: &Arc<Issuers>,
    last: Option<&Deliverer>,
) -> Result<Snapshot, Error> {
    let servers = &config.dns.servers;
    let resolver = match last {
        Some(last) => last.resolver().succeeded_by(servers),
        None => Resolver::new(servers),
    };
    let resolver = resolver.map_err(Error::Dns)?;
    let mut deliverer = Deliverer::new(Arc::clone(config), resolver, bound).remembering(Arc::clone(issuers));
    if config.hybrid.is_some() {
        deliverer = deliverer.marking(Arc::clone(&visits));
    }
    if let Some(last) = last {
        deliverer = deliverer.succeeding(last);
    }
    Ok(Snapshot { config: Arc::clone(config), directory, users, deliverer: Arc::new(deliverer), visits })
}

/// Reads what changed. A source that cannot be read does not stop the relay: what it would know is 451, never 550.
fn load_directory(config: &Config, old: Option<&Directory>) -> Arc<Directory> {
    let (directory, reports) = match old {
        Some(old) => old.reload(&config.directories),
        None => Directory::load(&config.directories),
    };
    for report in &reports {
        // One event for the source, and one for each of its faults: a log line is a line.
        for (number, line) in report.to_string().lines().enumerate() {
            if number > 0 || report.is_refused() {
                warn!("{line}");
            } else {
                info!("{line}");
            }
        }
    }
    Arc::new(directory)
}

/// Reads the users files that changed. One that cannot be read does not stop the relay: AUTH is 454 then.
fn load_users(config: &Config, old: &UserFiles) -> Arc<UserFiles> {
    let paths = config.receive_connectors.iter().filter_map(|connector| connector.users_file.as_deref());
    let (users, reports) = old.reload(paths);
    for report in &reports {
        for line in report.to_string().lines() {
            if report.is_faulty() {
                warn!("{line}");
            } else {
                info!("{line}");
            }
        }
    }
    Arc::new(users)
}

/// The files that a configuration names and that are read again when they change.
fn files(config: &Config) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = config.identities().flat_map(Identity::files).collect();
    files.extend(config.roots().filter_map(Roots::file).map(Path::to_owned));
    files.extend(config.directories.iter().map(|source| source.path.clone()));
    files.extend(config.hybrid.as_ref().map(|_| config.spool.path.join(visit_key::NAME)));
    files.extend(config.receive_connectors.iter().filter_map(|connector| connector.users_file.clone()));
    files.sort_unstable();
    files.dedup();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a machine without IPv6 says, and what a slip in an address would.
    #[test]
    fn missing_ipv6_is_told_from_a_slip() {
        for (address, errno, expected) in [
            ("[::]:25", Errno::EAFNOSUPPORT, true),
            ("[::]:25", Errno::EADDRNOTAVAIL, true),
            ("[::1]:8025", Errno::EADDRNOTAVAIL, true),
            ("[::]:25", Errno::EADDRINUSE, false),
            ("[::]:25", Errno::EACCES, false),
            ("[2001:db8::1]:25", Errno::EADDRNOTAVAIL, false),
            ("[2001:db8::1]:25", Errno::EAFNOSUPPORT, false),
            ("0.0.0.0:25", Errno::EADDRNOTAVAIL, false),
            ("192.0.2.1:25", Errno::EADDRNOTAVAIL, false),
        ] {
            let error = io::Error::from(errno);
            assert_eq!(is_missing_ipv6(address.parse().unwrap(), &error), expected, "{address} {errno}");
        }
    }
}
