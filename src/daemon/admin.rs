//! The admin interface's door: opened at the start, and opened, moved or closed by a reload.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::Error;
use crate::accept::ConnectionLimits;
use crate::admin::{self, Admin, Connections, Token};
use crate::config;
use crate::relay::Relay;

/// An open one.
#[derive(Debug)]
pub(super) struct AdminDoor {
    listen: SocketAddr,
    admin: Arc<Admin>,
    close: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What a configuration asks for, with all that can fail behind it.
#[derive(Debug)]
pub(super) enum Prepared {
    /// No door.
    Closed,
    /// The door that is open, and its token.
    Same(Token),
    /// Another.
    New(SocketAddr, TcpListener, Token),
}

impl Connections for ConnectionLimits {
    fn open(&self) -> usize {
        Self::open(self)
    }
}

impl Prepared {
    /// `ready`: bound by the caller.
    ///
    /// # Errors
    /// It cannot listen there, or the token cannot be read or made.
    pub(super) fn new(
        wanted: Option<&config::Admin>,
        open: Option<&AdminDoor>,
        ready: Option<StdListener>,
    ) -> Result<Self, Error> {
        let Some(wanted) = wanted else { return Ok(Self::Closed) };
        match Self::open(wanted, open, ready) {
            Err(error) if wanted.is_default => {
                warn!(%error, "there is no admin interface; [admin] says where it is to listen, listen = \"\" that it is not wanted");
                Ok(Self::Closed)
            }
            Err(error) if error.is_missing_ipv6() => {
                warn!("{error}; there is no admin interface until [admin] listen names an IPv4 address");
                Ok(Self::Closed)
            }
            prepared => prepared,
        }
    }

    fn open(wanted: &config::Admin, open: Option<&AdminDoor>, ready: Option<StdListener>) -> Result<Self, Error> {
        let token = Token::open(&wanted.token_file).map_err(|error| Error::System("[admin] token_file", error))?;
        if open.is_some_and(|open| open.listen == wanted.listen) {
            return Ok(Self::Same(token));
        }
        let bound = match ready {
            Some(listener) => TcpListener::from_std(listener),
            None => admin::bind(wanted.listen),
        };
        let listener = bound.map_err(|error| {
            let hint = match error.kind() {
                _ if super::is_missing_ipv6(wanted.listen, &error) => "; this machine has no IPv6",
                std::io::ErrorKind::AddrInUse => "; another program listens there: choose another [admin] listen",
                _ => "; this is [admin] listen",
            };
            Error::Listen { address: wanted.listen, error, hint }
        })?;
        Ok(Self::New(wanted.listen, listener, token))
    }

    /// The door as it is to be. Nothing fails any more.
    pub(super) fn adopt(
        self,
        open: Option<AdminDoor>,
        relay: &Relay,
        connections: &ConnectionLimits,
    ) -> Option<AdminDoor> {
        match (self, open) {
            (Self::Same(token), Some(open)) => {
                open.admin.set_token(token);
                return Some(open);
            }
            (Self::New(listen, listener, token), before) => {
                if let Some(before) = before {
                    before.shut();
                }
                let bound = listener.local_addr().unwrap_or(listen);
                relay.watch_flow();
                let admin = Admin::new(relay.clone(), token, Box::new(connections.clone()));
                let (close, closing) = watch::channel(false);
                let task = tokio::spawn(admin::listen(listener, Arc::clone(&admin), closing));
                info!(address = %bound, "the admin interface listens");
                return Some(AdminDoor { listen, admin, close, task });
            }
            (_, Some(open)) => {
                relay.forget_flow();
                open.shut();
            }
            (_, None) => {}
        }
        None
    }
}

impl AdminDoor {
    fn shut(self) {
        info!(address = %self.listen, "the admin interface listens no more");
        self.close.send_replace(true);
    }

    /// Closes it and waits for its end.
    pub(super) async fn close(self) {
        self.close.send_replace(true);
        let _ = self.task.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_stops_only_who_asked_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut wanted = config::Admin {
            listen: taken.local_addr().unwrap(),
            token_file: folder.path().join("admin"),
            is_default: false,
        };
        assert!(matches!(Prepared::new(Some(&wanted), None, None), Err(Error::Listen { .. })));
        wanted.is_default = true;
        assert!(matches!(Prepared::new(Some(&wanted), None, None), Ok(Prepared::Closed)));
        drop(taken);
        wanted.listen.set_port(0);
        assert!(matches!(Prepared::new(Some(&wanted), None, None), Ok(Prepared::New(..))));
    }
}
