//! Both sides of the handshake.

use std::io;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{ClientCertificate, Demand, Identity, Proof, Stream, Unmet};

/// Makes this process use one provider of cryptography. Once, at the start of `main`.
pub fn install_provider() {
    todo!()
}

/// Accepts TLS on one listener. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {}

/// A handshake that ended well.
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// Protocol version and cipher suite, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`.
    pub protocol: String,
    /// The name that the client asked for.
    pub sni: Option<String>,
    /// What the client presented, not yet judged.
    pub client: Option<ClientCertificate>,
}

impl Acceptor {
    /// Presents `identity`; asks for the client's certificate if told so, and never insists.
    pub fn new(identity: &Identity, ask_client_certificate: bool) -> Self {
        let _ = (identity, ask_client_certificate);
        todo!()
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// If the handshake fails, or is not over by `deadline`.
    pub async fn accept(&self, stream: TcpStream, deadline: Instant) -> io::Result<Accepted> {
        let _ = (stream, deadline);
        todo!()
    }
}

/// Opens TLS to servers, and remembers sessions. Cheap to clone.
#[derive(Clone)]
pub struct Connector {}

impl Connector {
    /// Presents `identity` to servers that ask.
    pub fn new(identity: Option<&Identity>) -> Self {
        let _ = identity;
        todo!()
    }

    /// Shakes hands and judges, before any byte of SMTP. `server_name` is a host name or an address.
    ///
    /// # Errors
    /// What of the demand was not met.
    pub async fn connect(
        &self,
        stream: TcpStream,
        server_name: &str,
        demand: &Demand,
        deadline: Instant,
    ) -> Result<(Stream, Proof), Unmet> {
        let _ = (stream, server_name, demand, deadline);
        todo!()
    }
}
