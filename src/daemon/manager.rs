//! What the service manager gives and is told: sockets it has bound for us, and when we are ready, reloading or ending.
//!
//! With a systemd socket unit port 25 is bound before the daemon starts and stays so while it restarts: connections wait
//! in the kernel, and the daemon never needs root. Without a manager nothing here does anything.
//!
//! Interface: sd_listen_fds(3), sd_notify(3). The only file that names listenfd and sd-notify.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The listeners that were passed in, by the address they are bound to.
///
/// # Errors
/// One of the sockets is none that listens for TCP.
pub(super) fn sockets() -> io::Result<HashMap<SocketAddr, TcpListener>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = HashMap::new();
    for index in 0..passed.len() {
        if let Some(listener) = passed.take_tcp_listener(index)? {
            listener.set_nonblocking(true)?;
            sockets.insert(listener.local_addr()?, listener);
        }
    }
    Ok(sockets)
}

/// The doors are open: what is ordered after us may start.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("taking mail")]);
}

/// SIGHUP is being obeyed; [`ready`] says when that is over.
pub(super) fn reloading() {
    tell(&[NotifyState::Status("reading the configuration again")]);
}

/// No new mail is taken.
pub(super) fn stopping(waiting: usize) {
    tell(&[NotifyState::Stopping, NotifyState::Status(&format!("stopping; {waiting} messages wait in the spool"))]);
}

/// A manager that does not listen is no reason to fail.
fn tell(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
